"""The main job as a newcomer runs it: every script a subprocess, every server real, the answer
through the gateway."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request

import openai
import pytest

from adapterops.schemas import ROOT
from adapterops.specs.adapter import load_adapter

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
]  # two cores without bf16 arithmetic train for seven minutes

ADAPTER = "support-demo"


def run(*arguments, timeout=1500):
    """A command as CI would call it; its output is shown when the test fails."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    print(f"$ {' '.join(map(str, arguments))}\n{result.stdout}{result.stderr}")
    return result


@pytest.fixture(scope="module")
def demo():
    """`make demo` from nothing trained; stopped at the end."""
    run("scripts/demo.py", "down")
    shutil.rmtree(ROOT / "runs" / ADAPTER, ignore_errors=True)
    (ROOT / "runs" / "responses.sqlite").unlink(
        missing_ok=True
    )  # answers of an earlier run would be taken for this one's
    started = time.monotonic()
    result = run("scripts/demo.py", "up")
    assert result.returncode == 0
    yield {"output": result.stdout, "seconds": time.monotonic() - started}
    assert run("scripts/demo.py", "down").returncode == 0


@pytest.fixture(scope="module")
def documents(demo):
    (directory,) = (ROOT / "runs" / ADAPTER).iterdir()
    return {
        "directory": directory,
        **{
            path.stem: json.loads(path.read_text())
            for path in [directory / "model/train_manifest.json", *directory.glob("*.json")]
        },
    }


def test_every_stage_says_what_it_did(demo):
    for stage in (
        "1/6 validate",
        "2/6 train",
        "3/6 evaluate",
        "4/6 gate",
        "5/6 publish",
        "6/6 deploy",
    ):
        assert stage in demo["output"]
    assert "make down" in demo["output"]


def test_a_rollback_of_a_second_version_takes_less_than_two_seconds(demo, documents):
    result = run("scripts/demo.py", "rollback")
    assert result.returncode == 0
    assert (
        result.stdout.count("evaluating base model: 254 answers, 254 of them known already") == 1
    )  # asked once for both versions
    seconds = re.findall(r"serving on 1 host (\d+\.\d+) s after the channel changed", result.stdout)
    assert len(seconds) == 1
    print(f"rollback in {seconds[0]} s")
    assert float(seconds[0]) < 2
    with urllib.request.urlopen("http://127.0.0.1:8080/health", timeout=5) as answer:
        served = json.load(answer)["adapters"][ADAPTER]
    assert (served["stable"], served["stable_ready"]) == (
        documents["train_manifest"]["adapter"]["digest"],
        True,
    )


def test_the_adapter_passes_its_gates_and_the_base_model_fails_them(documents):
    report = documents["gate_report"]
    assert report["verdict"] == "PASS"
    assert report["base"]["verdict"] == "FAIL"


def test_no_evaluation_row_was_trained_on(documents):
    assert documents["data_report"]["verdict"] == "PASS"
    trained = (ROOT / "data/training/support.jsonl").read_text().splitlines()
    prompts = {(row["instruction"], row.get("input")) for row in map(json.loads, trained)}
    for line in (ROOT / "data/eval/support.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert (row["instruction"], row.get("input")) not in prompts


def test_the_hot_loaded_adapter_answers_through_the_gateway(demo, documents):
    client = openai.OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="unused")
    samples = [
        json.loads(line)
        for line in (documents["directory"] / "eval_samples.jsonl").read_text().splitlines()
    ]
    sample = next(
        item
        for item in samples
        if item["candidate"]["format_ok"] and item["candidate"]["text"] == item["expected"]
    )
    answer = client.chat.completions.create(
        model=ADAPTER, messages=sample["prompt"], temperature=0, max_tokens=64
    )
    assert json.loads(answer.choices[0].message.content) == json.loads(sample["expected"])
    base = client.chat.completions.create(
        model="smollm2-135m-instruct", messages=sample["prompt"], temperature=0, max_tokens=64
    )
    assert base.choices[0].message.content != answer.choices[0].message.content


def test_streaming_gives_the_same_answer(demo):
    client = openai.OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="unused")
    request = {
        "model": ADAPTER,
        "messages": [{"role": "user", "content": "Hello there, are you able to help me today?"}],
        "temperature": 0,
        "max_tokens": 48,
    }
    whole = client.chat.completions.create(**request).choices[0].message.content
    parts = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(**request, stream=True)
        if chunk.choices
    ]
    assert len(parts) > 1
    assert "".join(parts) == whole


def test_a_second_run_trains_nothing(demo, documents):
    before = (documents["directory"] / "model/adapter_model.safetensors").stat().st_mtime_ns
    started = time.monotonic()
    result = run("scripts/demo.py", "up")
    assert result.returncode == 0
    assert "train: nothing to do" in result.stdout
    assert "evaluate: nothing to do" in result.stdout
    assert (documents["directory"] / "model/adapter_model.safetensors").stat().st_mtime_ns == before
    print(f"first run {demo['seconds']:.0f} s, second {time.monotonic() - started:.0f} s")


def test_the_report_holds_every_sample(documents):
    page = (documents["directory"] / "report.html").read_text()
    data = documents["eval_results"]["evaluation_data"]
    rows = data["rows"] + sum(file["asked"] for file in data["general"]["rows"])
    samples = (documents["directory"] / "eval_samples.jsonl").read_text().splitlines()
    assert len(samples) == rows
    assert all(json.loads(line)["id"] in page for line in samples)


def test_the_stages_can_be_run_one_by_one_as_ci_does(documents, tmp_path):
    """The fixed command lines, on the run's own documents, against the running engine."""
    directory = documents["directory"]
    assert run("scripts/validate_data.py", "--input", "data/training/support.jsonl").returncode == 0
    results = tmp_path / "eval_latest.json"
    arguments = [
        "--model",
        directory / "model",
        "--eval-data",
        "data/eval/support.jsonl",
        "--output",
        results,
    ]
    arguments += [
        "--server-url",
        "http://127.0.0.1:8101",
        "--max-tokens",
        "64",
        "--latency-requests",
        "24",
    ]
    arguments += load_adapter("support-demo").general.options()
    assert run("scripts/evaluate.py", *arguments).returncode == 0
    assert (
        run(
            "scripts/quality_gate.py",
            "--results",
            results,
            "--gates",
            "configs/quality_gate.demo.yaml",
        ).returncode
        == 0
    )
    # The production gates ask for 500 ms, which two CPU cores do not reach: the gate must say no,
    # with exit code 1.
    strict = run(
        "scripts/quality_gate.py", "--results", results, "--gates", "configs/quality_gate.yaml"
    )
    assert strict.returncode == 1
    assert "latency_p95_ms" in strict.stdout
    assert (
        run(
            "scripts/quality_gate.py",
            "--results",
            "nowhere.json",
            "--gates",
            "configs/quality_gate.yaml",
        ).returncode
        == 2
    )


def test_nothing_is_left_running_after_down(tmp_path):
    run("scripts/demo.py", "down")
    nothing = run("scripts/demo.py", "rollback")
    assert (nothing.returncode, "nothing is being served" in nothing.stderr) == (2, True)
    listing = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, check=True
    ).stdout
    mine = [
        line
        for line in listing.splitlines()
        if str(ROOT / "scripts" / "serve.py") in line or "moto.server" in line
    ]
    assert mine == []
    assert (ROOT / ".demo").is_dir()
