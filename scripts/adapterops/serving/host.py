"""One serving host: engine, gateway and reconciler under one supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path

from aiohttp import web

from adapterops.engine.client import is_healthy
from adapterops.engine.server import start_engine
from adapterops.errors import AdapterOpsError, UsageError
from adapterops.serving.config import ServingConfig
from adapterops.serving.gateway import HostState, Metrics, make_gateway
from adapterops.serving.reconciler import Reconciler
from adapterops.store.objects import open_store

log = logging.getLogger("host")
_DRAIN_S = 30
_LONGEST_BACKOFF_S = 60


def serve(config: ServingConfig, engine_url: str | None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: the serving configuration.
        engine_url: a running engine to attach to; None starts one and restarts it when it ends.

    Raises:
        UsageError: a port is taken.
    """
    asyncio.run(_serve(config, engine_url))


async def _serve(config: ServingConfig, engine_url: str | None) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    url = engine_url or f"http://{config.engine.host}:{config.engine.port}"
    state = HostState(config.base_model.name, url, report={name: {"errors": ["not looked at yet"]} for name in config.adapters})
    metrics = Metrics()
    runner = web.AppRunner(
        make_gateway(state, config.gateway, metrics), access_log=None, shutdown_timeout=_DRAIN_S, handler_cancellation=True
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, config.gateway.host, config.gateway.port).start()
    except OSError as error:
        await runner.cleanup()
        raise UsageError(f"gateway port {config.gateway.port}: {error.strerror}. Change gateway.port in {config.path}.") from None
    log.info("gateway on http://%s:%s", config.gateway.host, config.gateway.port)
    reconciler = Reconciler(config, open_store(config.bucket), url)
    supervisor = _watch(state) if engine_url else _supervise(config, state, stopping)
    tasks = [asyncio.create_task(supervisor), asyncio.create_task(_reconcile(config, state, metrics, reconciler))]
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    log.info("stopping")
    await runner.cleanup()  # stops listening, lets running answers end
    for task in [waiting, *tasks]:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, AdapterOpsError):
            raise result


async def _supervise(config: ServingConfig, state: HostState, stopping: asyncio.Event) -> None:
    """Keep an engine running; wait longer after each failure in a row.

    Raises:
        AdapterOpsError: it cannot be started the first time: what is wrong then does not mend itself.
    """
    backoff = 1.0
    proven = False
    while not stopping.is_set():
        engine = await asyncio.to_thread(start_engine, config, log=_engine_log(config))
        try:
            while await asyncio.to_thread(engine.starting):
                await asyncio.sleep(0.3)
            state.engine_ready = True
            backoff, proven = 1.0, True
            log.info("engine on %s is healthy", engine.url)
            while engine.alive:
                await asyncio.sleep(0.5)
            log.error("the engine ended. %s", engine.diagnosis())
        except AdapterOpsError as error:
            if not proven:
                raise
            log.error("%s", error)
        finally:
            state.engine_ready = False
            await asyncio.to_thread(engine.stop)
        await asyncio.sleep(backoff)
        backoff = min(backoff * 2, _LONGEST_BACKOFF_S)


async def _watch(state: HostState) -> None:
    """Follow the health of an engine that somebody else runs."""
    while True:
        state.engine_ready = await asyncio.to_thread(is_healthy, state.engine_url)
        await asyncio.sleep(1)


async def _reconcile(config: ServingConfig, state: HostState, metrics: Metrics, reconciler: Reconciler) -> None:
    while True:
        if state.engine_ready:
            try:
                outcome = await asyncio.to_thread(reconciler.run_once)
                state.routes, state.report = outcome.routes, outcome.report
                metrics.show_routes(outcome.routes)
            except AdapterOpsError as error:
                log.warning("%s", error)
            except Exception:
                # A defect here must not take the gateway down with it.
                log.exception("reconciling failed")
        await asyncio.sleep(config.interval_s)


def _engine_log(config: ServingConfig) -> Path:
    path = config.state_directory / "engine.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, path.with_suffix(".previous.log"))
    return path
