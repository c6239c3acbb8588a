"""A real vLLM and a real S3 server, started once a session by the first test that asks, and
adapters that change what it says."""

import dataclasses
import functools
import time

import pytest

from adapterops.engine.client import greedy_answer, load_adapter, unload_adapter
from adapterops.engine.server import start_engine
from adapterops.schemas import ROOT
from adapterops.specs.serving import load_serving_config
from adapterops.store.releases import adapter_digest
from processes import AWS, free_port, s3_server
from random_adapters import RandomAdapters
from release_documents import QUESTIONS


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """An S3 server process; boto3's environment points to it for the session. Yields that
    environment."""
    with (
        s3_server(tmp_path_factory.mktemp("s3") / "moto.log") as port,
        pytest.MonkeyPatch.context() as patch,
    ):
        settings = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}", **AWS}
        for name, value in settings.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "ADAPTER_BUCKET"):
            patch.delenv(name, raising=False)
        yield settings


@pytest.fixture(scope="session")
def serving_config():
    """The demo's configuration with the engine on a free port."""
    config = load_serving_config(ROOT / "configs/serving.demo.yaml")
    return dataclasses.replace(
        config, engine=dataclasses.replace(config.engine, port=free_port(), start_timeout_s=800)
    )


@pytest.fixture(scope="session")
def engine(serving_config, tmp_path_factory):
    """The URL of a vLLM that serves the demo's base model."""
    with start_engine(
        serving_config, log=tmp_path_factory.mktemp("engine") / "engine.log"
    ) as running:
        while running.starting():
            time.sleep(0.5)
        yield running.url


@pytest.fixture(scope="session")
def random_adapter(serving_config, tmp_path_factory):
    """`make(seed, scale)`: a LoRA adapter of rank 8 with random weights; scale 0 makes one without
    effect."""
    adapters = RandomAdapters(serving_config.base_model)

    def make(seed, scale=0.05):
        return adapters.make(tmp_path_factory.mktemp("adapter") / "model", seed, scale)

    return make


@pytest.fixture(scope="session")
def record_probes(engine, serving_config):
    """`record(directory)`: up to two greedy answers of an adapter, from the engine itself, that end
    by themselves.

    With `effect` they are not what the base model says.
    """

    @functools.cache
    def said(model, prompt):
        return greedy_answer(engine, model, [{"role": "user", "content": prompt}], 32)

    def record(directory, *, effect=True):
        name, probes = f"record-{adapter_digest(directory)[:12]}", []
        load_adapter(engine, name, directory)
        try:
            for prompt in QUESTIONS:
                answer = said(name, prompt)
                if answer.finish_reason == "stop" and (
                    not effect or answer.text != said(serving_config.base_model.name, prompt).text
                ):
                    probes.append(
                        {"messages": [{"role": "user", "content": prompt}], "output": answer.text}
                    )
                if len(probes) == 2:
                    break
        finally:
            unload_adapter(engine, name)
        return probes

    return record
