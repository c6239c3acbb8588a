"""Supervision: an engine that dies is started again; one that never came up ends the host."""

import asyncio
import dataclasses

import pytest

from adapterops.errors import InfrastructureError, UsageError
from adapterops.schemas import ROOT
from adapterops.serving import host
from adapterops.serving.config import load_serving_config
from adapterops.serving.state import Engine as EngineState
from processes import free_port


class Engine:
    """An engine that lives as long as it is told."""

    url = "http://127.0.0.1:9"

    def __init__(self, healthy=True):
        self.healthy, self.alive, self.stopped = healthy, True, False

    def starting(self):
        if not self.healthy:
            raise InfrastructureError("vLLM ended while starting")
        return False

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


async def until(condition):
    while not condition():
        await asyncio.sleep(0.02)


def test_an_engine_that_ends_is_started_again_and_nothing_is_routed_meanwhile(supervise):
    first, second = Engine(), Engine()

    async def test(state, _):
        await until(lambda: state.up)
        first.alive = False
        await until(lambda: not state.up)
        await until(lambda: state.up)
        assert first.stopped

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


@pytest.mark.parametrize("trouble", [InfrastructureError("the port is taken"), OSError(28, "No space left on device")], ids=str)
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
    [(Engine(healthy=False), "ended while starting"), (UsageError("no such token"), "no such token"), (OSError(13, "denied"), "denied")],
)
def test_an_engine_that_never_came_up_ends_the_host(supervise, engine, reason):
    async def test(state, task):
        with pytest.raises((InfrastructureError, UsageError, OSError), match=reason):
            await task
        assert not state.up

    supervise([engine], test)


@pytest.mark.parametrize("trouble", [UsageError("a stop token"), OSError(13, "Permission denied"), ValueError("a defect")], ids=str)
def test_a_host_that_ends_by_itself_says_why(monkeypatch, tmp_path, trouble):
    """systemd starts again what ended with an error, and only that (Restart=on-failure)."""
    config = load_serving_config(ROOT / "configs/serving.demo.yaml")
    gateway = dataclasses.replace(config.gateway, port=free_port(), drain_s=0.1)
    config = dataclasses.replace(config, gateway=gateway, state_directory=tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")

    def start(*_, **__):
        raise trouble

    monkeypatch.setattr(host, "start_engine", start)
    with pytest.raises(type(trouble)):
        asyncio.run(asyncio.wait_for(host._serve(config, []), 20))
