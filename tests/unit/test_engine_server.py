"""How vLLM is started, and what a failed start says. The real one runs in tests/integration."""

import json
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, models

from adapterops import git_tree
from adapterops.cpu_number_format import cpu_dtype
from adapterops.engine import server
from adapterops.engine.server import EngineProcess, engine_command, start_engine
from adapterops.environment import child_environment
from adapterops.errors import InfrastructureError, UsageError
from adapterops.schemas import ROOT, load_schema
from adapterops.specs.serving import load_serving_config
from processes import free_port


@pytest.fixture
def config():
    return load_serving_config(ROOT / "configs/serving.demo.yaml")


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model directory with a tokenizer of three tokens."""
    monkeypatch.setenv("QLORA_GITOPS_CACHE", str(tmp_path / "cache"))
    Tokenizer(models.WordLevel({"<|endoftext|>": 0, "word": 1, "<|im_end|>": 2}, "word")).save(
        str(tmp_path / "tokenizer.json")
    )
    return tmp_path


def option(command, name):
    return command[command.index(name) + 1]


def test_the_command_line_serves_adapters_on_loopback_with_the_pinned_template(config, model):
    command = engine_command(config, model, 1234)
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert option(command, "--host") == "127.0.0.1"
    assert option(command, "--served-model-name") == config.base_model.name
    assert option(command, "--chat-template") == str(ROOT / config.base_model.chat_template_path)
    assert (option(command, "--max-loras"), option(command, "--max-cpu-loras")) == ("3", "4")
    assert "--enable-lora" in command
    assert "--trust-remote-code" not in command


def test_the_engine_has_limits_of_its_own_behind_the_gateways(config, model):
    command = engine_command(config, model, 1234)
    assert option(command, "--max-num-queued-reqs") == str(
        config.gateway.max_in_flight + config.engine.max_num_seqs
    )
    assert json.loads(option(command, "--structured-outputs-config")) == {"backend": "xgrammar"}
    assert json.loads(option(command, "--limit-mm-per-prompt")) == {
        "image": 0,
        "video": 0,
        "audio": 0,
    }
    assert option(command, "--allowed-media-domains") == "none.invalid"
    most = load_schema("serving")["properties"]["gateway"]["properties"]["limits"]["properties"]
    assert (option(command, "--max-logprobs"), server.ENVIRONMENT["VLLM_MAX_N_SEQUENCES"]) == (
        str(most["logprobs"]["maximum"]),
        str(most["n"]["maximum"]),
    )


def test_auto_is_what_the_processor_computes_in(config, model):
    assert config.engine.dtype == "auto"
    assert option(engine_command(config, model, 1234), "--dtype") == cpu_dtype()


def test_production_computes_in_what_the_configuration_says(config, model):
    production = load_serving_config(ROOT / "configs/serving.yaml").engine
    assert (
        option(engine_command(replace(config, engine=production), model, 1234), "--dtype")
        == "bfloat16"
    )


def test_the_options_can_be_written_for_an_engine_that_somebody_else_starts(
    config, model, monkeypatch, tmp_path
):
    monkeypatch.setattr(server, "base_model_directory", lambda _: model)
    server.write_engine_config(config, tmp_path / "engine" / "engine.yaml")
    written = yaml.safe_load((tmp_path / "engine" / "engine.yaml").read_text())
    command = engine_command(config, model, config.engine.port)[3:]
    template = written.pop("chat-template")
    assert Path(template).read_text() == config.base_model.chat_template()
    position = command.index("--chat-template")
    assert command[:position] + command[position + 2 :] == [
        part
        for name, value in written.items()
        for part in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]


def test_generation_stops_at_every_stop_token_of_the_base_model_entry(config, model):
    directory = option(engine_command(config, model, 1234), "--generation-config")
    assert json.loads((Path(directory) / "generation_config.json").read_bytes()) == {
        "eos_token_id": [2, 0]
    }


def test_a_stop_token_that_the_model_lacks_is_refused(config, model):
    other = replace(config, base_model=replace(config.base_model, stop_tokens=("<|eot|>",)))
    with pytest.raises(UsageError, match=r"stop token `<\|eot\|>` is not in the vocabulary"):
        engine_command(other, model, 1234)


def test_a_changed_template_is_refused(config, model):
    other = replace(config, base_model=replace(config.base_model, chat_template_sha256="0" * 64))
    with pytest.raises(UsageError, match="pins 0000"):
        engine_command(other, model, 1234)


def test_a_taken_port_is_refused_before_anything_starts(config, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(InfrastructureError, match=r"port \d+ on 127.0.0.1 cannot be used"):
            start_engine(config, port=other.getsockname()[1], log=tmp_path / "engine.log")


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("OSError: [Errno 98] Address already in use", "The port is in use"),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
            "Not enough memory",
        ),
        (
            "ValueError: Available memory is less than desired CPU memory utilization",
            "Not enough memory",
        ),
        (
            "OSError: /x/y does not appear to have a file named config.json",
            "base model's files are missing",
        ),
        ("ModuleNotFoundError: No module named 'vllm'", "run `make setup`"),
        ("RuntimeError: No CUDA GPUs are available", "No usable GPU"),
    ],
)
def test_a_failed_start_says_the_likely_cause_and_quotes_this_start_of_the_log(
    config, tmp_path, line, advice
):
    log = tmp_path / "engine.log"
    log.write_text("ERROR of an earlier start: Errno 98\n")
    offset = log.stat().st_size
    with log.open("a") as file:
        file.write(f"INFO starting\n\x1b[31mERROR\x1b[0m {line}\nINFO bye\n")
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"], stdin=subprocess.PIPE)
    process.wait()
    with EngineProcess(process, "http://127.0.0.1:9", log, offset, config) as engine:
        assert not engine.alive
        with pytest.raises(InfrastructureError) as caught:
            engine.starting()
    assert advice in str(caught.value)
    assert line in str(caught.value)
    assert "earlier start" not in str(caught.value)


def test_an_engine_that_does_not_get_healthy_in_time_is_stopped(config, tmp_path):
    (tmp_path / "engine.log").write_text("INFO still loading\n")
    slow = replace(config, engine=replace(config.engine, start_timeout_s=0.1))
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    engine = EngineProcess(process, "http://127.0.0.1:9", tmp_path / "engine.log", 0, slow)
    with pytest.raises(InfrastructureError, match=r"not healthy within engine.start_timeout_s"):
        while engine.starting():
            pass
    assert not engine.alive


def test_the_environment_turns_off_what_phones_home_or_opens_administration(config, monkeypatch):
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setattr(server, "_cpu_build", lambda: True)
    environment = server._environment(config)
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in environment
    assert environment["VLLM_CPU_OMP_THREADS_BIND"].count("|") == 0


SECRETS = [
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN", "GITHUB_TOKEN", "GH_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
    "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_RUNTIME_TOKEN",
    "OPENAI_API_KEY", "VLLM_API_KEY", "GATEWAY_API_KEY", "REVERT_APP_KEY", "SIGNING_KEY",
    "NCCL_SOME_SECRET", "VLLM_HUB_TOKEN", "NEW_SERVICE_PASS",
]  # fmt: skip


def test_an_engine_sees_no_token_and_no_role(config, model, monkeypatch, tmp_path):
    """A real child of a real keeper; what nobody thought of is not handed on either."""
    for name in SECRETS:
        monkeypatch.setenv(name, "to be stolen")
    for name in ("CUDA_VISIBLE_DEVICES", "VLLM_LOGGING_LEVEL", "LC_ALL"):
        monkeypatch.setenv(name, "kept")
    dump = (
        f"import json, os; json.dump(dict(os.environ), open({str(tmp_path / 'seen.json')!r}, 'w'))"
    )
    monkeypatch.setattr(server, "engine_command", lambda *_: [sys.executable, "-c", dump])
    monkeypatch.setattr(server, "base_model_directory", lambda _: model)
    engine = start_engine(config, port=free_port(), log=tmp_path / "engine.log")
    while engine.alive:
        time.sleep(0.05)
    engine.stop()
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert [name for name, value in seen.items() if value == "to be stolen"] == []
    assert [seen[name] for name in ("CUDA_VISIBLE_DEVICES", "VLLM_LOGGING_LEVEL", "LC_ALL")] == [
        "kept"
    ] * 3
    assert seen["PATH"]


def test_a_secret_is_handed_on_by_name_alone(monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, "to be stolen")
    assert not set(SECRETS) & child_environment(
        prefixes=("VLLM_", "NCCL_", "HF_", "AWS_ROLE", "GITHUB_")
    ).keys() - {"AWS_ROLE_ARN"}
    assert child_environment(keep=["HF_TOKEN"])["HF_TOKEN"] == "to be stolen"


def test_git_sees_the_token_only_where_it_speaks_to_github(monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", "to be stolen")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "to be stolen")
    for verb in ("rev-parse", "ls-tree", "merge-tree", "revert", "cat-file"):
        assert "GIT_CONFIG_VALUE_0" not in git_tree._environment(verb)
    for verb in ("fetch", "push"):
        environment = git_tree._environment(verb)
        assert environment["GIT_CONFIG_VALUE_0"].startswith("AUTHORIZATION: basic ")
        assert "to be stolen" not in environment.values()


def test_the_log_of_an_engine_that_runs_on_and_on_is_of_bounded_size(config, tmp_path, monkeypatch):
    """Requests can leave tracebacks in it: on a full disk a host could keep neither channels nor
    releases."""
    monkeypatch.setattr(server, "_LOG_BYTES", 100_000)
    log = tmp_path / "engine.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            ["cat"], stdin=subprocess.PIPE, stdout=out
        )  # writes as an engine does
    engine = EngineProcess(process, "http://127.0.0.1:9", log, 0, config)

    def say(text):
        process.stdin.write(text)
        process.stdin.flush()
        time.sleep(0.2)
        engine.bound_log()

    say(b"ERROR of the start\n")
    assert "ERROR of the start" in engine.diagnosis()
    for _ in range(10):
        say(b"ValueError: refused\n" * 4000)
    say(b"ERROR of the end\n")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 400_000
    assert {path.name for path in tmp_path.iterdir()} == {"engine.log", "engine.previous.log"}
    assert engine.diagnosis().endswith("ERROR of the end")
    process.stdin.close()
    assert process.wait(10) == 0
