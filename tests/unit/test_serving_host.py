"""Supervision: an engine that dies is started again; one that never came up ends the host."""

import asyncio
import contextlib
import dataclasses

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from adapterops.errors import InfrastructureError, UsageError
from adapterops.schemas import ROOT
from adapterops.serving import host
from adapterops.serving.routes import Version
from adapterops.serving.state import Engine as EngineState
from adapterops.specs.serving import load_serving_config
from processes import AWS, free_port

VERSION = Version("support-demo", "a" * 64, "2026-11-01T00:00:00+00:00")


class Engine:
    """An engine that lives as long as it is told."""

    url = "http://127.0.0.1:9"

    def __init__(self, healthy=True):
        self.healthy, self.alive, self.stopped = healthy, True, False

    def starting(self):
        if not self.healthy:
            raise InfrastructureError("vLLM ended while starting")
        return False

    def bound_log(self):
        self.bounded = True

    def diagnosis(self):
        return ""

    def stop(self):
        self.stopped = True


@pytest.fixture
def supervise(monkeypatch, tmp_path):
    """Runs the supervisor over the given engines while `test(state, engines)` watches."""
    config = load_serving_config(ROOT / "configs/serving.demo.yaml")
    monkeypatch.setattr(host, "_engine_log", lambda *_: tmp_path / "engine.log")
    monkeypatch.setattr(host, "is_healthy", lambda *_: True)

    def run(engines, test):
        waiting = list(engines)

        def start(*_, **__):
            following = waiting.pop(0)
            if isinstance(following, Exception):
                raise following
            return following

        monkeypatch.setattr(host, "start_engine", start)

        async def main():
            state = EngineState("http://127.0.0.1:9")
            task = asyncio.create_task(host._supervise(config, state, asyncio.Event()))
            try:
                await test(state, task)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        asyncio.run(asyncio.wait_for(main(), 20))

    return run


def small_host(directory):
    """The demo's configuration on a port of its own."""
    config = load_serving_config(ROOT / "configs/serving.demo.yaml")
    gateway = dataclasses.replace(config.gateway, port=free_port(), drain_s=0.1)
    return dataclasses.replace(config, gateway=gateway, state_directory=directory)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.02)


def test_an_engine_that_ends_is_started_again_and_nothing_is_routed_meanwhile(supervise):
    first, second = Engine(), Engine()

    async def test(state, _):
        await until(lambda: state.up)
        state.ready = {VERSION.engine_name: VERSION}
        first.alive = False
        await until(lambda: not state.up)
        assert VERSION.engine_name in state.ready  # which version it was that failed meanwhile
        assert not state.has(VERSION)
        await until(lambda: state.up)
        assert not state.has(VERSION)
        assert first.stopped
        assert first.bounded  # its log, all the while

    supervise([first, second], test)
    assert second.stopped


def test_a_failed_restart_is_tried_again(supervise):
    first, broken, third = Engine(), Engine(healthy=False), Engine()

    async def test(state, _):
        await until(lambda: state.up)
        first.alive = False
        await until(lambda: broken.stopped)
        assert not state.up
        await until(lambda: state.up)

    supervise([first, broken, third], test)


@pytest.mark.parametrize(
    "trouble",
    [InfrastructureError("the port is taken"), OSError(28, "No space left on device")],
    ids=str,
)
def test_an_engine_that_cannot_even_be_started_again_is_tried_again(supervise, trouble):
    """The host goes on with its other engines meanwhile, and with its answers about why."""
    first = Engine()

    async def test(state, _):
        await until(lambda: state.up)
        first.alive = False
        await until(lambda: not state.up)
        await until(lambda: state.up)

    supervise([first, trouble, Engine()], test)


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (Engine(healthy=False), "ended while starting"),
        (UsageError("no such token"), "no such token"),
        (OSError(13, "denied"), "denied"),
    ],
)
def test_an_engine_that_never_came_up_ends_the_host(supervise, engine, reason):
    async def test(state, task):
        with pytest.raises((InfrastructureError, UsageError, OSError), match=reason):
            await task
        assert not state.up

    supervise([engine], test)


class Store:
    """An S3 server that refuses access, or says that there is no such object."""

    refuses = True

    async def answer(self, _):
        code, status = ("AccessDenied", 403) if self.refuses else ("NoSuchKey", 404)
        return web.Response(
            text=f"<Error><Code>{code}</Code></Error>",
            status=status,
            content_type="application/xml",
        )


async def engine_without_adapters(request):
    return web.json_response(
        {"data": [{"id": "smollm2-135m-instruct", "root": "x"}]}
        if request.path == "/v1/models"
        else {}
    )


@contextlib.asynccontextmanager
async def server(handler):
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(application) as running:
        yield str(running.make_url("")).rstrip("/")


def test_a_host_that_never_read_its_channel_does_not_say_that_it_is_healthy(monkeypatch, tmp_path):
    """Without the store and without a former life it does not know what it should have; an adapter
    without a channel is another thing."""
    store = Store()

    async def main():
        async with (
            server(store.answer) as s3,
            server(engine_without_adapters) as engine,
            aiohttp.ClientSession() as client,
        ):
            for name, value in (AWS | {"AWS_ENDPOINT_URL_S3": s3}).items():
                monkeypatch.setenv(name, value)
            config = small_host(tmp_path)
            serving = asyncio.create_task(host._serve(config, [engine]))
            gateway = f"http://127.0.0.1:{config.gateway.port}"

            async def get(path):
                with contextlib.suppress(aiohttp.ClientConnectorError):
                    async with client.get(gateway + path) as answer:
                        return answer.status, await answer.text()
                return 0, ""

            async def says(*lines):
                text = (await get("/metrics"))[1]
                return all(line in text for line in lines)

            stable = 'llm_reconcile_ready{adapter="support-demo",role="stable"}'
            unread = 'llm_channel_read_timestamp_seconds{adapter="support-demo"} 0.0'
            while not await says('llm_engine_up{engine="0"} 1.0', f"{stable} 0.0", unread):
                await asyncio.sleep(0.05)
            for _ in range(20):
                assert (await get("/health"))[0] == 503
                await asyncio.sleep(0.1)
            store.refuses = False
            while (await get("/health"))[0] != 200:
                await asyncio.sleep(0.05)
            assert await says(f"{stable} 1.0")
            assert not await says(unread)
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize(
    "trouble",
    [UsageError("a stop token"), OSError(13, "Permission denied"), ValueError("a defect")],
    ids=str,
)
def test_a_host_that_ends_by_itself_says_why(monkeypatch, tmp_path, trouble):
    """systemd starts again what ended with an error, and only that (Restart=on-failure)."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")

    def start(*_, **__):
        raise trouble

    monkeypatch.setattr(host, "start_engine", start)
    with pytest.raises(type(trouble)):
        asyncio.run(asyncio.wait_for(host._serve(small_host(tmp_path), []), 20))
