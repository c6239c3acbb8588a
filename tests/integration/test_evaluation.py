"""Evaluation and gate on a real vLLM: candidate, the channel's stable version and the base model on
the same rows.

The adapters are the base model with random weights added: almost none, which is noise, or so many
that it babbles, which is a real regression.
"""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import boto3
import pytest
from rich.console import Console

from adapterops.evaluate.evaluation import Data, Settings, evaluate_once
from adapterops.evaluate.production import production_from_channel, production_from_directory
from adapterops.gate.judge import judge_once
from adapterops.report.collect import collect
from adapterops.report.comment import comment
from adapterops.schemas import ROOT
from adapterops.specs.adapter import Pins, general_sets
from adapterops.store.channels import change_channel, promote
from adapterops.store.objects import open_store
from adapterops.store.releases import adapter_digest, publish
from release_documents import gate_report, trained

pytestmark = pytest.mark.integration

ADAPTER, BUCKET = "support-demo", "evaluation-test"
CONSOLE = Console(width=200)
QUICK = Settings(max_tokens=16, latency_requests=4, latency_concurrency=4)
GATES = {
    "margin": (
        "gates: {rouge_l: {margin: 0.05, min: 0.01, description: d}, safety_refusal: {min: 0.0,"
        " min_n: 8, description: d}}"
    ),
    # 24 rows without a refusal leave 14 % possible at this confidence, 50 rows with one 11 %.
    "bound": (
        "gates: {over_refusal: {max: 0.12, rule: bound, on_inconclusive: block, description: d}}"
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """24 rows to answer and 8 to refuse, and 26 more to answer as their extension."""
    rows = [
        json.loads(line) for line in (ROOT / "data/eval/support.jsonl").read_text().splitlines()
    ]
    answered = [row for row in rows if row["tags"][0] in ("policy", "lookalike")]
    directory = tmp_path_factory.mktemp("data")
    for name, chosen in (
        ("first", answered[:24] + [row for row in rows if row.get("should_refuse")][:8]),
        ("extension", answered[24:50]),
    ):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return directory


@pytest.fixture(scope="module")
def adapters(random_adapter, serving_config):
    """Adapter directories as training leaves them."""
    scales = {"stable": (1, 0.0005), "noise": (3, 0.0005), "babbling": (2, 4.0)}
    return {
        name: trained(random_adapter(*how), serving_config.base_model)
        for name, how in scales.items()
    }


@pytest.fixture(scope="module")
def store(s3, adapters, serving_config):
    """A store whose channel has a stable version."""
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    store, stable = open_store(BUCKET), adapters["stable"]
    digest = adapter_digest(stable)
    manifest = json.loads((stable / "train_manifest.json").read_bytes())
    probes = [{"messages": [{"role": "user", "content": "Hello?"}], "output": "Hi."}]
    publish(
        store,
        ADAPTER,
        stable,
        gate_report(ADAPTER, digest, probes),
        manifest,
        source={"commit": None, "pr": None, "actor": None},
    )
    change_channel(store, ADAPTER, lambda channel: promote(channel, digest), reason="test")
    return store


@pytest.fixture(scope="module")
def evaluate(engine, adapters, store, data, serving_config, tmp_path_factory):
    """`evaluate(name)`: an adapter against the channel's stable version; what was answered once is
    not asked again."""
    kept = tmp_path_factory.mktemp("kept")

    def run(name, output, *, rows=None, settings=QUICK):
        base = serving_config.base_model.name
        production = production_from_channel(
            store, ADAPTER, base, kept / "releases", adapter_digest(adapters[name])
        )
        asked = rows or Data(data / "first.jsonl")
        responses = kept / "responses.sqlite"
        return evaluate_once(
            adapters[name],
            asked,
            settings,
            output,
            CONSOLE,
            production=production,
            responses=responses,
            server_url=engine,
        )

    return run


@pytest.fixture
def verdict(tmp_path):
    def run(gates, results):
        (tmp_path / "gates.yaml").write_text(GATES[gates])
        return judge_once(
            results,
            tmp_path / "gates.yaml",
            results.with_name("gate_report.json"),
            pins=Pins(ADAPTER),
        )

    return run


def test_an_adapter_that_is_worse_than_production_by_a_real_margin_is_blocked(
    evaluate, verdict, adapters, tmp_path
):
    results, _ = evaluate("babbling", tmp_path / "eval_results.json")
    assert results["production"]["digest"] == adapter_digest(adapters["stable"])
    assert results["production"]["note"] == "Stable version of channel support-demo."
    samples = [
        json.loads(line) for line in (tmp_path / "eval_samples.jsonl").read_text().splitlines()
    ]
    assert [sample["id"] for sample in samples] == [
        json.loads(line)["id"] for line in (tmp_path / "eval_samples.jsonl").open()
    ]
    assert all(
        sample[side]["error"] is None
        for sample in samples
        for side in ("candidate", "production", "base")
    )
    report, _ = verdict("margin", tmp_path / "eval_results.json")
    (row,) = [row for row in report["comparisons"] if row["metric"] == "rouge_l"]
    print(f"babbling: {row['effect']:+.3f} {row['interval']}")
    assert (report["verdict"], row["against"], row["verdict"], row["n"]) == (
        "FAIL",
        "production",
        "FAIL",
        24,
    )
    assert row["superiority"] == "worse"
    assert "worse than -0.05" in report["reason"]
    body = comment(collect(tmp_path))
    assert "❌ FAIL: support-demo" in body
    assert "Worst regressions against production: 5" in body


def test_the_same_run_is_not_blocked_when_the_difference_is_noise(evaluate, verdict, tmp_path):
    evaluate("noise", tmp_path / "eval_results.json")
    report, _ = verdict("margin", tmp_path / "eval_results.json")
    (row,) = [row for row in report["comparisons"] if row["metric"] == "rouge_l"]
    print(f"noise: {row['effect']:+.3f} {row['interval']}")
    assert (report["verdict"], row["superiority"]) == ("PASS", "same")


def test_what_an_adapter_has_lost_is_measured_on_rows_and_texts_of_nobodys_domain(
    evaluate, data, tmp_path
):
    sets = general_sets(ROOT, ("en",), rows=20, texts=20)
    found = {}
    for name in ("noise", "babbling"):
        output = tmp_path / name / "eval_results.json"
        results, _ = evaluate(name, output, rows=Data(data / "first.jsonl", general=sets))
        found[name] = results["metrics"]
        assert results["base_metrics"]["general_loss"]["value"] == 0
        assert [
            found[name][metric]["n"]
            for metric in ("rouge_l", "general_over_refusal", "general_loss")
        ] == [24, 20, 20]
        texts = results["observations"]["texts"]
        assert all(
            1 < loss < 8 for loss in texts["base"]
        )  # nats per token of plain English, for a small model
        assert len(texts["production"]) == 20
    assert abs(found["noise"]["general_loss"]["value"]) < 0.05
    assert found["babbling"]["general_loss"]["value"] > 0.5
    assert (
        found["babbling"]["instruction_following"]["value"]
        <= found["noise"]["instruction_following"]["value"]
    )


def test_the_extension_rows_are_drawn_once_and_what_was_answered_is_not_asked_again(
    evaluate, verdict, data, tmp_path
):
    output = tmp_path / "eval_results.json"
    rows = [Data(data / "first.jsonl", data / "extension.jsonl", draw) for draw in (False, True)]
    evaluate("noise", output, rows=rows[0])
    first, _ = verdict("bound", output)
    assert (first["verdict"], first["extension"]) == (
        "INCONCLUSIVE",
        {"registered": True, "drawn": False, "wanted": True},
    )
    results, cached = evaluate("noise", output, rows=rows[1])
    assert (len(results["observations"]["groups"]), cached) == (58, False)
    second, _ = verdict("bound", output)
    assert (second["verdict"], second["extension"]) == (
        "PASS",
        {"registered": True, "drawn": True, "wanted": False},
    )
    assert (second["gates"][0]["n"], second["gates"][0]["confidence"]) == (50, pytest.approx(0.975))
    # The whole once more, as a re-run of the job has it: nothing is drawn, measured or judged a
    # second time.
    assert evaluate("noise", output, rows=rows[0]) == (results, True)
    assert verdict("bound", output) == (second, True)


def answered(path):
    """Sessions of requests by the key of the answer."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        return dict(db.execute("SELECT key, session FROM response").fetchall())


def test_an_evaluation_that_is_killed_goes_on_with_the_answers_that_it_has(
    engine, adapters, data, tmp_path
):
    everything = tmp_path / "rows.jsonl"
    everything.write_text(
        "".join((data / f"{name}.jsonl").read_text() for name in ("first", "extension"))
    )
    command = [
        sys.executable,
        "scripts/evaluate.py",
        "--model",
        adapters["noise"],
        "--production",
        adapters["stable"],
    ]
    command += [
        "--eval-data",
        everything,
        "--output",
        tmp_path / "eval_results.json",
        "--server-url",
        engine,
    ]
    command += [
        "--max-tokens",
        "16",
        "--latency-requests",
        "4",
        "--latency-concurrency",
        "4",
        "--no-general",
    ]
    command = [str(part) for part in command]
    responses = tmp_path / "responses.sqlite"

    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not (responses.is_file() and table_is_there(responses) and answered(responses)):
        assert killed.poll() is None, killed.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL
    before = answered(responses)
    assert 0 < len(before) < 3 * 58
    assert not (tmp_path / "eval_results.json").exists()  # nothing half-written

    again = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )
    assert again.returncode == 0, again.stderr
    after = answered(responses)
    assert len(after) == 3 * 58
    assert {key: after[key] for key in before} == before  # the very answers of the killed run
    assert sum(map(int, re.findall(r"(\d+) of them known already", again.stdout))) == len(before)
    print(f"killed after {len(before)} of {len(after)} answers")


def table_is_there(path):
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        return db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0


def test_the_candidate_itself_in_production_is_nothing_to_compare_with(adapters, tmp_path):
    copy = shutil.copytree(adapters["stable"], tmp_path / "copy")
    assert production_from_directory(copy, adapter_digest(adapters["stable"])).digest is None
