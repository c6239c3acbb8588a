"""Serving configurations: what is shipped loads, and what cannot work is refused before anything
starts."""

import pytest

from adapterops.errors import UsageError
from adapterops.schemas import ROOT
from adapterops.specs.serving import load_serving_config


@pytest.fixture
def config(tmp_path):
    def write(*changes):
        text = (ROOT / "configs/serving.demo.yaml").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "serving.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("configs/serving*.yaml")), ids=lambda path: path.name
)
def test_shipped_configurations_load(path):
    loaded = load_serving_config(path)
    assert loaded.engine.host == "127.0.0.1"
    assert loaded.engine.max_loras >= 3
    assert loaded.engine.max_cpu_loras >= 4


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "host: 127.0.0.1\n  port: 8101",
            "host: 0.0.0.0\n  port: 8101",
            '"0.0.0.0" is not one of 127.0.0.1',
        ),
        ("max_lora_rank: 16", "max_lora_rank: 24", "24 is not one of 1, 8, 16, 32"),
        ("max_loras: 3", "max_loras: 1", "1 is out of range. Expected ≥ 3"),
        ("max_loras: 3", "max_loras: 5", "`engine.max_cpu_loras`: 4 is below max_loras 5"),
        (
            "[support-demo]",
            "[support-demo, other]",
            "`engine.max_cpu_loras`: 4 is below 8. A host holds up to 4 versions of each",
        ),
        ("port: 8101", "port: 8080", "8080 is an engine's port too"),
        (
            "max_model_len: 1024",
            "max_model_len: 16384",
            "16384 exceeds 8192, the context length of smollm2-135m-instruct",
        ),
        ("[support-demo]", "[../etc]", "lower-case letters, digits and dashes"),
        ("[support-demo]", "[smollm2-135m-instruct]", "Clients could not tell the two apart"),
        ("base_model: smollm2-135m-instruct", "base_model: smollm2", "is not on the allow-list"),
        ("interval_s:", "intervall_s:", "Did you mean `interval_s`?"),
    ],
)
def test_what_cannot_work_is_refused(config, old, new, reason):
    with pytest.raises(UsageError) as caught:
        load_serving_config(config((old, new)))
    assert reason in str(caught.value)


def test_contradictions_are_reported_together(config):
    with pytest.raises(UsageError) as caught:
        load_serving_config(config(("max_loras: 3", "max_loras: 5"), ("port: 8101", "port: 8080")))
    assert "max_cpu_loras" in str(caught.value)
    assert "gateway.port" in str(caught.value)


def test_a_scheduler_is_shown_one_engine(config):
    with pytest.raises(
        UsageError, match=r"`gateway\.engine_metrics`: true with engine\.replicas 2"
    ):
        load_serving_config(
            config(
                ("engine_metrics: false", "engine_metrics: true"), ("replicas: 1", "replicas: 2")
            )
        )
