"""A serving host on real parts: releases from S3 into a real vLLM, answers through the gateway with
the `openai` client."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import boto3
import openai
import psutil
import pytest
import yaml
from rich.console import Console

from adapterops.basemodels.materialize import base_model_directory, load_tokenizer
from adapterops.data.reader import Row, load_rows
from adapterops.data.rows import training_messages
from adapterops.deploy.deploy import deploy
from adapterops.documents import sha256_file
from adapterops.engine.client import greedy_answer, served_models, unload_adapter
from adapterops.engine.generate import generate
from adapterops.engine.server import engine_command, write_engine_config
from adapterops.errors import InfrastructureError, RejectedError
from adapterops.schemas import ROOT
from adapterops.signing import Signer, make_key_pair
from adapterops.store.channels import change_channel, promote, read_channel
from adapterops.store.objects import open_store
from adapterops.store.releases import adapter_digest, publish
from adapterops.train.encode import encode_messages
from processes import environment, free_port
from release_documents import QUESTIONS, gate_report, train_manifest
from rollouts import QUICK, UNJUDGED

pytestmark = pytest.mark.integration

BUCKET = "serving-test"
ADAPTER = "support-demo"
ADAPTERS = [ADAPTER, "no-effect", "damaged", "foreign", "no-probes"]
CONSOLE = Console(width=200)
NEVER_SAID = [
    {
        "messages": [{"role": "user", "content": "Name a colour."}],
        "output": "Something it never says.",
    }
]


@pytest.fixture(scope="module")
def store(s3):
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    return open_store(BUCKET)


@pytest.fixture(scope="module")
def settings(serving_config, tmp_path_factory):
    """The demo's configuration file with other ports, bucket, adapters and state directory."""
    directory = tmp_path_factory.mktemp("host")
    values = yaml.safe_load((ROOT / "configs/serving.demo.yaml").read_text())
    values["adapters"], values["engine"]["max_cpu_loras"] = ADAPTERS, 4 * len(ADAPTERS)
    values["store"]["bucket"] = BUCKET
    make_key_pair(directory / "signing.pem", directory / "signing.pub.pem")
    values["store"]["signed_by"] = {"public_key": str(directory / "signing.pub.pem")}
    values["engine"]["port"] = serving_config.engine.port
    values["gateway"]["port"] = free_port()
    values["reconciler"]["interval_s"] = 0.5
    values["state_directory"] = str(directory / "state")
    path = directory / "serving.yaml"
    path.write_text(yaml.safe_dump(values))
    gateway = f"http://127.0.0.1:{values['gateway']['port']}"
    signer = Signer(directory / "signing.pem")
    return {
        "path": path,
        "gateway": gateway,
        "log": directory / "host.log",
        "state": directory / "state",
        "signer": signer,
    }


def health(gateway):
    """Status and document; (0, {}) while nothing listens."""
    try:
        with urllib.request.urlopen(f"{gateway}/health", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, {}


def wait_for(what, seconds=180):
    """The first truthy result of `what()`; fails when it takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := what():
            return result
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


def start_host(settings, *options, **changes):
    with settings["log"].open("ab") as log:
        return subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "scripts/serve.py"),
                "--config",
                str(settings["path"]),
                *options,
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(**changes),
            start_new_session=True,
        )


@contextlib.contextmanager
def running_host(settings, engine, **changes):
    process = start_host(settings, "--engine-url", engine, **changes)
    try:
        wait_for(lambda: process.poll() is not None or health(settings["gateway"])[0] == 200)
        assert process.poll() is None, settings["log"].read_text()
        yield process
    finally:
        process.terminate()
        assert process.wait(40) == 0, settings["log"].read_text()


@pytest.fixture(scope="module")
def host(settings, engine, store):
    """A host that is attached to the session's engine."""
    with running_host(settings, engine):
        yield settings["gateway"]


@pytest.fixture(scope="module")
def release(store, settings, serving_config, random_adapter, record_probes):
    """`release(seed)` publishes an adapter as the pipeline would; returns its digest and probes."""

    def make(seed, name=ADAPTER, scale=0.05, base_model=None, probes=None):
        for attempt in range(
            5
        ):  # not every random adapter gives other answers than the base model, and ends them
            directory = random_adapter(seed + 10 * attempt, scale)
            recorded = record_probes(directory, effect=scale > 0) if probes is None else probes
            if recorded or probes is not None:
                break
        else:
            raise AssertionError("no probes")
        digest = adapter_digest(directory)
        base = serving_config.base_model
        report = gate_report(name, digest, recorded)
        manifest = train_manifest(
            digest, 8, (base_model or base.name, base.source_id, base.revision)
        )
        source = {"commit": None, "pr": None, "actor": None}
        publish(store, name, directory, report, manifest, source=source, signer=settings["signer"])
        return digest, recorded

    return make


@pytest.fixture(scope="module")
def versions(release):
    """Two good versions."""
    return release(1), release(2)


def client(gateway):
    return openai.OpenAI(base_url=f"{gateway}/v1", api_key="unused", max_retries=0)


def say(gateway, model, messages, **options):
    answer = client(gateway).chat.completions.with_raw_response.create(
        model=model, messages=messages, temperature=0, max_tokens=64, **options
    )
    return answer.parse().choices[0].message.content, answer.headers.get("x-adapter-version")


def script(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_before_the_first_deployment_only_the_base_model_answers(host, engine, serving_config):
    assert [model.id for model in client(host).models.list()] == [serving_config.base_model.name]
    with pytest.raises(openai.InternalServerError) as caught:
        say(host, ADAPTER, [{"role": "user", "content": "Hello?"}])
    assert caught.value.status_code == 503
    messages = [{"role": "user", "content": "Name a colour."}]
    direct = greedy_answer(engine, serving_config.base_model.name, messages, 64)
    assert say(host, serving_config.base_model.name, messages) == (direct.text, None)


def test_generation_ends_at_the_stop_token(engine, serving_config):
    answer = greedy_answer(
        engine,
        serving_config.base_model.name,
        [{"role": "user", "content": "What is the capital of France?"}],
        256,
    )
    assert (answer.finish_reason, "<|im_end|>" in answer.text) == ("stop", False)


def test_asking_how_surely_an_answer_was_decided_does_not_change_it(engine, serving_config):
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    name = serving_config.base_model.name
    plain, asked = (
        generate(engine, name, prompts, max_tokens=24, concurrency=1, margins=margins)
        for margins in (False, True)
    )
    assert [answer.text for answer in asked] == [answer.text for answer in plain]
    assert all(
        answer.margin >= 0 for answer in asked
    )  # 0 where the two likeliest tokens are as likely, as happens in bf16
    assert len({round(answer.margin, 3) for answer in asked}) > 2  # bf16 has few values
    assert {answer.margin for answer in plain} == {None}


def test_the_server_reads_the_tokens_that_training_wrote(engine, serving_config):
    """Prompt and whole conversation of every eighth training row of both languages, rendered by
    vLLM and by the trainer."""
    base_model = serving_config.base_model
    tokenizer = load_tokenizer(base_model)
    rows = [
        row
        for name in ("support", "support-ko")
        for row in load_rows(ROOT / f"data/training/{name}.jsonl", "training")
    ][::8]
    # Rows with a system message and with several turns, whatever the files hold.
    turns = [
        {"role": role, "content": f"{role} 🙂 말"}
        for role in ("user", "assistant", "user", "assistant")
    ]
    brief = {
        "system": "Be brief.",
        "instruction": "Hi",
        "input": "  two  spaces\n",
        "output": " ok ",
    }
    rows += [Row(0, brief), Row(0, {"messages": turns})]

    def tokens(messages, **options):
        body = {
            "model": base_model.name,
            "messages": messages,
            "add_special_tokens": False,
            **options,
        }
        request = urllib.request.Request(
            f"{engine}/tokenize", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["tokens"]

    assert len(rows) > 80
    for row in rows:
        messages = training_messages(row.value)
        trained, labels = encode_messages(messages, tokenizer, base_model)
        whole = tokens(messages, add_generation_prompt=False)
        assert whole[: len(trained)] == trained
        assert (
            tokenizer.decode(whole[len(trained) :]).strip() == ""
        )  # what the template writes after the last turn is never generated
        prompt = tokens(messages[:-1], add_generation_prompt=True)
        assert trained[: len(prompt)] == prompt
        assert labels[len(prompt) :] == trained[len(prompt) :]


def test_a_deployment_makes_a_release_answer(host, engine, store, versions, serving_config):
    digest, probes = versions[0]
    result = script(
        "scripts/deploy_adapter.py",
        "--adapter",
        ADAPTER,
        "--version",
        digest[:16],
        "--gateway",
        host,
        "--bucket",
        BUCKET,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for probe in probes:
        assert say(host, ADAPTER, probe["messages"]) == (probe["output"], digest[:12])
        assert say(host, serving_config.base_model.name, probe["messages"])[0] != probe["output"]
    assert [model.id for model in client(host).models.list()] == [
        ADAPTER,
        serving_config.base_model.name,
    ]
    assert served_models(engine)[f"{ADAPTER}-{digest[:12]}"].endswith(
        f"/releases/{ADAPTER}/sha256-{digest}"
    )
    channel, _ = read_channel(store, ADAPTER)
    assert (channel.stable, channel.canary, channel.weight) == (digest, None, 0)


def test_a_stream_says_the_same(host, versions):
    _, probes = versions[0]
    probe = max(probes, key=lambda probe: len(probe["output"]))
    stream = client(host).chat.completions.create(
        model=ADAPTER, messages=probe["messages"], temperature=0, max_tokens=64, stream=True
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(parts) > 1
    assert "".join(parts) == probe["output"]


def test_a_generation_ends_with_its_client(host, engine, serving_config):
    """In the engine too, which would go on for the rest of the answer."""

    def running():
        with urllib.request.urlopen(f"{engine}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith("vllm:num_requests_running")
        )

    body = {
        "model": serving_config.base_model.name,
        "messages": [{"role": "user", "content": "Count."}],
        "min_tokens": 900,
        "max_tokens": 900,
    }
    for stream in (True, False):
        with contextlib.suppress(TimeoutError):
            raw = json.dumps({**body, "stream": stream}).encode()
            request = urllib.request.Request(
                f"{host}/v1/chat/completions", raw, {"content-type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=3) as answer:
                answer.read(1)
        wait_for(lambda: running() == 0, 20)


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"grammar": "root ::= root"}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"$ref": "#"}},
            }
        },
    ],
    ids=["grammar", "schema"],
)
def test_what_makes_the_engine_fail_does_not_reach_it(host, engine, serving_config, fields):
    """Sent to the engine itself it is a 500, which would count against a version."""
    body = {
        "model": serving_config.base_model.name,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 2,
        **fields,
    }

    def status(root):
        request = urllib.request.Request(
            f"{root}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=120)
        return caught.value.code

    assert (status(host), status(engine)) == (400, 500)


def test_a_second_deployment_replaces_the_first_and_a_rollback_brings_it_back(
    host, store, versions
):
    (first, first_probes), (second, second_probes) = versions
    deploy(
        store,
        ADAPTER,
        second,
        [host],
        replace(QUICK, steps=(50,), probes_per_s=8, max_duration_s=120),
        CONSOLE,
        timeout_s=180,
    )
    assert say(host, ADAPTER, second_probes[0]["messages"]) == (
        second_probes[0]["output"],
        second[:12],
    )
    started = time.monotonic()
    result = script(
        "scripts/deploy_adapter.py",
        "--adapter",
        ADAPTER,
        "--rollback",
        "--gateway",
        host,
        "--bucket",
        BUCKET,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert time.monotonic() - started < 60
    assert say(host, ADAPTER, first_probes[0]["messages"]) == (
        first_probes[0]["output"],
        first[:12],
    )


def test_deploying_what_is_stable_changes_nothing(host, store, versions):
    before, _ = read_channel(store, ADAPTER)
    deploy(store, ADAPTER, versions[0][0], [host], UNJUDGED, CONSOLE, timeout_s=30)
    assert read_channel(store, ADAPTER)[0] == before


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("no-effect", {"scale": 0.0}, "has no effect"),
        ("no-probes", {"probes": []}, "has no probes"),
        (
            "foreign",
            {"base_model": "llama-3.1-8b-instruct", "probes": NEVER_SAID},
            "trained on llama-3.1-8b-instruct",
        ),
    ],
)
def test_an_unfit_version_is_not_made_routable_and_the_deployment_aborts(
    host, engine, store, release, name, options, reason
):
    digest, _ = release(3, name, **options)
    with pytest.raises(RejectedError, match=reason):
        deploy(store, name, digest, [host], UNJUDGED, CONSOLE, timeout_s=180)
    channel, _ = read_channel(store, name)
    assert (channel.stable, channel.canary, channel.weight) == (None, None, 0)
    assert f"{name}-{digest[:12]}" not in served_models(engine)
    assert name not in [model.id for model in client(host).models.list()]
    assert say(host, ADAPTER, [{"role": "user", "content": "Hello?"}])[0]


def test_a_recorded_answer_that_differs_is_named(host, store, random_adapter, release):
    digest, _ = release(4, "no-effect", probes=NEVER_SAID)
    with pytest.raises(
        RejectedError,
        match=r"probe 1 is answered with .* at evaluation it was 'Something it never says",
    ):
        deploy(store, "no-effect", digest, [host], UNJUDGED, CONSOLE, timeout_s=180)


def test_bytes_that_are_not_those_of_the_manifest_are_refused(host, settings, store, release):
    digest, _ = release(5, "damaged", probes=NEVER_SAID)
    key = f"adapters/damaged/sha256-{digest}/adapter_model.safetensors"
    content = bytearray(store.get(key).content)
    content[-1] ^= 1
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=bytes(content))
    with pytest.raises(InfrastructureError, match="damaged or replaced"):
        deploy(store, "damaged", digest, [host], UNJUDGED, CONSOLE, timeout_s=5)
    assert not (settings["state"] / f"releases/damaged/sha256-{digest}").exists()
    assert read_channel(store, "damaged")[0].canary is None


def test_an_engine_that_forgot_its_adapters_gets_them_again(host, engine, versions):
    digest, probes = versions[0]
    unload_adapter(engine, f"{ADAPTER}-{digest[:12]}")
    with contextlib.suppress(openai.InternalServerError):  # 503 until then, never 404
        say(host, ADAPTER, probes[0]["messages"])
    wait_for(lambda: f"{ADAPTER}-{digest[:12]}" in served_models(engine))
    wait_for(lambda: health(host)[1]["adapters"][ADAPTER]["stable_ready"])
    assert say(host, ADAPTER, probes[0]["messages"]) == (probes[0]["output"], digest[:12])


def test_a_version_that_the_channel_names_before_it_can_be_loaded_leaves_the_former_one_answering(
    host, store, versions
):
    digest, probes = versions[0]
    change_channel(
        store,
        ADAPTER,
        lambda channel: promote(channel, "f" * 64),
        reason="a release that does not exist",
    )
    report = wait_for(
        lambda: (
            health(host)[1]["adapters"][ADAPTER]["errors"] and health(host)[1]["adapters"][ADAPTER]
        )
    )
    assert "not published" in report["errors"][0]
    assert not report["stable_ready"]
    assert say(host, ADAPTER, probes[0]["messages"]) == (probes[0]["output"], digest[:12])
    change_channel(
        store,
        ADAPTER,
        lambda channel: replace(channel, stable=digest, previous=None),
        reason="mended",
    )
    wait_for(lambda: health(host)[1]["adapters"][ADAPTER]["stable_ready"])


def test_a_restart_without_the_store_serves_what_was_seen_last(
    host, settings, engine, versions, tmp_path
):
    """A second host with the first one's state and a store that is unreachable; the engine has to
    load from its disk."""
    digest, probes = versions[0]
    values = yaml.safe_load(settings["path"].read_text())
    values["gateway"]["port"] = free_port()
    other = {
        "path": tmp_path / "serving.yaml",
        "gateway": f"http://127.0.0.1:{values['gateway']['port']}",
        "log": tmp_path / "log",
    }
    other["path"].write_text(yaml.safe_dump(values))
    with running_host(other, engine, AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{free_port()}"):
        report = wait_for(
            lambda: (
                (found := health(other["gateway"])[1]["adapters"][ADAPTER]).get("stable_ready")
                and found
            )
        )
        assert "serving what was seen last" in report["errors"][0]
        assert say(other["gateway"], ADAPTER, probes[0]["messages"]) == (
            probes[0]["output"],
            digest[:12],
        )


def test_a_local_copy_that_rotted_is_fetched_anew(settings, engine, store, host, versions):
    digest, probes = versions[1]
    weights = settings["state"] / f"releases/{ADAPTER}/sha256-{digest}/adapter_model.safetensors"
    before = sha256_file(weights)
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    unload_adapter(engine, f"{ADAPTER}-{digest[:12]}")
    deploy(store, ADAPTER, digest, [host], UNJUDGED, CONSOLE, timeout_s=180)
    assert sha256_file(weights) == before
    assert say(host, ADAPTER, probes[0]["messages"]) == (probes[0]["output"], digest[:12])


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/adapters",
        "/adapters/x",
        "/invocations",
        "/tokenize",
        "/ping",
        "/pause",
    ],
)
def test_the_administrative_paths_of_the_engine_are_not_behind_the_gateway(host, path, method):
    assert post_nothing(host + path, method) == 404


def test_the_engine_itself_would_have_answered_them(engine):
    """Or the test above would show nothing: some of these routes are vLLM's, some come with what it
    depends on."""
    opened = [
        path
        for path in ("/v1/load_lora_adapter", "/invocations", "/tokenize")
        if post_nothing(engine + path, "POST") != 404
    ]
    assert opened == ["/v1/load_lora_adapter", "/invocations", "/tokenize"]


def post_nothing(url, method):
    """The status of a request whose body can load nothing."""
    request = urllib.request.Request(
        url,
        b'{"lora_name": "", "lora_path": ""}',
        {"content-type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_vllm_reads_the_written_options_as_it_reads_its_command_line(serving_config, tmp_path):
    """What `vllm serve --config FILE` makes of `serve.py --engine-config FILE`: the containers of
    configs/kubernetes."""
    write_engine_config(serving_config, tmp_path / "engine.yaml")
    model = base_model_directory(serving_config.base_model)
    program = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
for arguments in json.loads(sys.argv[1]):
    read = vars(make_arg_parser(FlexibleArgumentParser()).parse_args(arguments))
    print("read:" + json.dumps(read, default=repr))
"""
    arguments = [
        ["--config", str(tmp_path / "engine.yaml")],
        engine_command(serving_config, model, serving_config.engine.port)[3:],
    ]
    result = script("-c", program, json.dumps(arguments))
    assert result.returncode == 0, result.stderr[-2000:]
    written, plain = (
        json.loads(line[5:]) for line in result.stdout.splitlines() if line.startswith("read:")
    )
    assert (
        Path(written.pop("chat_template")).read_text()
        == Path(plain.pop("chat_template")).read_text()
    )
    assert written.pop("config", None) in (None, str(tmp_path / "engine.yaml"))
    plain.pop("config", None)
    assert written == plain
    assert (written["enable_lora"], written["host"]) == (True, "127.0.0.1")


def test_a_host_that_is_killed_leaves_no_engine_behind(settings, tmp_path, s3):
    values = yaml.safe_load(settings["path"].read_text())
    values["gateway"]["port"], values["engine"]["port"] = free_port(), free_port()
    values["state_directory"] = str(tmp_path / "state")
    other = {"path": tmp_path / "serving.yaml", "log": tmp_path / "log"}
    other["path"].write_text(yaml.safe_dump(values))
    process = start_host(other)
    children = wait_for(
        lambda: len(found := psutil.Process(process.pid).children(recursive=True)) > 1 and found
    )
    gateway = f"http://127.0.0.1:{values['gateway']['port']}"
    assert health(gateway)[1]["status"] == "starting"
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(
        lambda: (
            not any(
                child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children
            )
        ),
        20,
    )


def test_a_taken_port_ends_the_host_with_a_sentence(host, settings, engine):
    result = script("scripts/serve.py", "--config", settings["path"], "--engine-url", engine)
    assert result.returncode == 2
    assert f"gateway port {host.rsplit(':', 1)[1]}" in result.stderr
    assert "Traceback" not in result.stderr
