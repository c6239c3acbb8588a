"""One serving host: engines, gateway and reconcilers under one supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import shutil
import signal
import time
from pathlib import Path

import uvloop

from adapterops.engine.client import is_healthy
from adapterops.engine.server import EngineProcess, start_engine
from adapterops.errors import AdapterOpsError, UsageError
from adapterops.serving.channel_follower import Follower
from adapterops.serving.connections import Listening, listen
from adapterops.serving.descriptors import make_room
from adapterops.serving.gateway import make_gateway
from adapterops.serving.gateway_metrics import Metrics
from adapterops.serving.reconciler import Reconciler
from adapterops.serving.state import Engine, HostState
from adapterops.specs.serving import ServingConfig
from adapterops.store.objects import open_store

log = logging.getLogger("host")
_LONGEST_BACKOFF_S = 60
_ENGINE_ROUND_S = 1.0
_CHANNEL_TIMEOUT_S = 3.0
_MISSED_CHECKS = 3


def serve(config: ServingConfig, engine_urls: list[str]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: the serving configuration.
        engine_urls: running engines to attach to; with none, `engine.replicas` are started, and
            restarted when they end.

    Raises:
        UsageError: a port is taken.
        Exception: whatever ended one of the host's tasks, so that systemd sees a failure and starts
            the host again.
    """
    uvloop.run(_serve(config, engine_urls))


async def _serve(config: ServingConfig, engine_urls: list[str]) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    own = [
        f"http://{config.engine.host}:{config.engine.port + replica}"
        for replica in range(config.engine.replicas)
    ]
    follower = Follower(
        open_store(config.bucket, timeout_s=_CHANNEL_TIMEOUT_S),
        config.state_directory / "channels",
        config.trust,
    )
    state = HostState(
        config.base_model.name,
        [Engine(url) for url in engine_urls or own],
        {adapter: follower.remembered(adapter) for adapter in config.adapters},
    )
    state.refresh()
    metrics = Metrics()
    listening = await _open_gateway(config, state, metrics)
    if not engine_urls:
        _forget_old_releases(config, state)
    tasks = [
        asyncio.create_task(_follow(config, state, metrics, follower, adapter))
        for adapter in config.adapters
    ]
    for replica, engine in enumerate(state.engines):
        keep = (
            _watch(engine) if engine_urls else _supervise(config, engine, stopping, replica=replica)
        )
        tasks += [
            asyncio.create_task(keep),
            asyncio.create_task(_reconcile(config, state, metrics, replica)),
        ]
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    state.draining = True
    if waiting.done() and config.gateway.drain_delay_s:
        log.info(
            "stopping: /health says so for %.0f s, so that load balancers look elsewhere",
            config.gateway.drain_delay_s,
        )
        await asyncio.sleep(config.gateway.drain_delay_s)
    log.info("stopping: answers under way end, up to %.0f s", config.gateway.drain_s)
    await listening.close()  # stops listening, lets running answers end
    for task in [waiting, *tasks]:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):  # not a cancelled one
            raise result


async def _open_gateway(config: ServingConfig, state: HostState, metrics: Metrics) -> Listening:
    """Listen on the public port, for as many connections and requests as descriptors allow.

    Raises:
        UsageError: the port is taken, or there are too few descriptors.
    """
    wanted, settings = config.connections, config.gateway
    room = make_room(wanted.max_open, settings.max_in_flight, len(state.engines))
    if (room.connections, room.requests) != (wanted.max_open, settings.max_in_flight):
        message = (
            "%d file descriptors are enough for the following only. Raise ulimit -n (LimitNOFILE)."
        )
        log.warning(message, room.descriptors)
    settings = dataclasses.replace(settings, max_in_flight=room.requests)
    try:
        listening = await listen(
            make_gateway(state, settings, metrics, capacity=config.engine.max_num_seqs),
            settings,
            dataclasses.replace(wanted, max_open=room.connections),
            lambda reason: metrics.rejected.labels(reason).inc(),
        )
    except OSError as error:
        raise UsageError(
            f"gateway port {settings.port}: {error.strerror}. Change gateway.port in {config.path}."
        ) from None
    message = "gateway on http://%s:%s for %d connections, %d requests"
    log.info(message, settings.host, settings.port, room.connections, room.requests)
    return listening


async def _follow(
    config: ServingConfig, state: HostState, metrics: Metrics, follower: Follower, adapter: str
) -> None:
    """Read one channel again and again; a change counts at once, whatever the engines are busy
    with.
    """
    metrics.read_at.labels(adapter)  # 0 until it is read: an alert needs a series
    while True:
        started = time.monotonic()
        try:
            followed = await asyncio.to_thread(follower.look, adapter)
            if not followed.errors:
                metrics.read_at.labels(adapter).set_to_current_time()
            former = state.channels[adapter]
            if followed != former:
                for message in (*followed.errors, *followed.notes):
                    if message not in (*former.errors, *former.notes):
                        log.warning("%s: %s", adapter, message)
                if followed.channel.generation != former.channel.generation:
                    log.info(
                        "%s: generation %d: %s",
                        adapter,
                        followed.channel.generation,
                        followed.channel.reason,
                    )
                state.channels = {**state.channels, adapter: followed}
                _show(state, metrics)
        except Exception:
            log.exception(
                "%s: following the channel failed", adapter
            )  # a defect here must not end the host
        await asyncio.sleep(max(0.05, config.interval_s - (time.monotonic() - started)))


def _show(state: HostState, metrics: Metrics) -> None:
    state.refresh()
    metrics.show(state)


async def _reconcile(
    config: ServingConfig, state: HostState, metrics: Metrics, number: int
) -> None:
    """Bring one engine to what the channels name; the engines of a host do not wait for each
    other.
    """
    engine = state.engines[number]
    loop = asyncio.get_running_loop()

    def take() -> None:
        engine.ready, engine.failures = dict(reconciler.ready), reconciler.failures
        engine.unfit, engine.unknown, engine.settled = (
            reconciler.unfit,
            reconciler.unknown,
            reconciler.settled,
        )
        _show(state, metrics)

    store = open_store(config.bucket)
    reconciler = Reconciler(
        config,
        store,
        engine.url,
        on_ready=lambda: asyncio.run_coroutine_threadsafe(_call(take), loop).result(),
    )
    was_up = False
    while True:
        if engine.up != was_up:
            was_up = engine.up
            engine.settled = reconciler.settled = False
            if was_up:
                metrics.engine_starts.labels(str(number)).inc()
            _show(state, metrics)
        if was_up:
            try:
                followed = list(state.channels.values())
                channels, known = (
                    [item.served for item in followed],
                    all(item.known for item in followed),
                )
                withdrawn = frozenset(
                    (item.channel.adapter, digest) for item in followed for digest in item.withdrawn
                )
                await asyncio.to_thread(
                    reconciler.run_once, channels, known=known, withdrawn=withdrawn
                )
                take()
            except AdapterOpsError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("reconciling %s failed", engine.url)
        await asyncio.sleep(min(_ENGINE_ROUND_S, config.interval_s))


async def _call(function: object) -> None:
    assert callable(function)
    function()


async def _supervise(
    config: ServingConfig, engine: Engine, stopping: asyncio.Event, *, replica: int = 0
) -> None:
    """Keep an engine running; wait longer after each failure in a row.

    Raises:
        AdapterOpsError or OSError: it cannot be started the first time: what is wrong then does not
        mend itself.
    """
    backoff, proven = 1.0, False
    while not stopping.is_set():
        process = None
        try:
            process = await asyncio.to_thread(
                start_engine, config, log=_engine_log(config, replica), replica=replica
            )
            while await asyncio.to_thread(process.starting):
                await asyncio.sleep(0.3)
            engine.up, engine.ready = True, {}  # a new process has loaded nothing
            backoff, proven = 1.0, True
            log.info("engine on %s is healthy", process.url)
            await _await_end(process, engine, config.engine.hang_timeout_s)
            log.error("the engine on %s ended or hangs. %s", process.url, process.diagnosis())
        except (AdapterOpsError, OSError) as error:
            if not proven:
                raise
            log.error("%s", error)
        finally:
            engine.up = False
            if process:
                await asyncio.to_thread(process.stop)
        await asyncio.sleep(backoff)
        backoff = min(backoff * 2, _LONGEST_BACKOFF_S)


async def _await_end(process: EngineProcess, engine: Engine, hang_timeout_s: float) -> None:
    """Return when the engine ended, or has not answered a health check for `hang_timeout_s` though
    its process lives.
    """
    answered = time.monotonic()
    while process.alive:
        if await asyncio.to_thread(is_healthy, process.url, 2):
            answered = time.monotonic()
        silent = time.monotonic() - answered
        engine.up = silent < min(_MISSED_CHECKS * 2, hang_timeout_s)
        if silent > hang_timeout_s:
            return
        await asyncio.to_thread(process.bound_log)
        await asyncio.sleep(0.5)


async def _watch(engine: Engine) -> None:
    """Follow the health of an engine that somebody else runs; one check that fails is not the end
    of it.
    """
    missed = _MISSED_CHECKS
    while True:
        missed = 0 if await asyncio.to_thread(is_healthy, engine.url, 2) else missed + 1
        engine.up = missed < _MISSED_CHECKS
        await asyncio.sleep(0.5)


def _forget_old_releases(config: ServingConfig, state: HostState) -> None:
    """Remove local copies that no channel names; only before the host's own engines start.

    A running engine, and so one that somebody else started, may read them again.
    """
    kept = {
        (adapter, f"sha256-{digest}")
        for adapter, followed in state.channels.items()
        for digest in followed.served.versions
    }
    for directory in config.releases.glob("*/*"):
        if (directory.parent.name, directory.name) not in kept:
            shutil.rmtree(directory, ignore_errors=True)
            log.info("removed %s, which no channel names", directory)


def _engine_log(config: ServingConfig, replica: int) -> Path:
    path = config.state_directory / ("engine.log" if replica == 0 else f"engine.{replica}.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, path.with_suffix(".previous.log"))
    return path
