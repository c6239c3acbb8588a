"""Deployments as the audit log tells them, what runs and Git say of the week, and reports that
hostile text cannot break."""

import datetime
import json
import os
from dataclasses import replace

import pytest
from eval_documents import results, write

from adapterops.gate.judge import judge_once
from adapterops.retrospective.data_changes import data_growth
from adapterops.retrospective.history import deployments
from adapterops.retrospective.render import markdown, page
from adapterops.retrospective.runs import gate_failures, training
from adapterops.retrospective.section import Section
from adapterops.specs.adapter import Pins
from adapterops.store.channels import Channel, abort_canary, promote, start_canary
from release_documents import whole_manifest
from repositories import EVALUATION, ROWS, Repository, jsonl

A, B, C = "a" * 64, "b" * 64, "c" * 64
BEGIN = datetime.datetime(2026, 11, 2, tzinfo=datetime.UTC)


def roll_back(channel):
    return replace(
        channel,
        stable=channel.previous,
        previous=None,
        canary=None,
        weight=0,
        rolled_back=channel.stable,
    )


def log(*changes):
    """Entries a minute apart."""
    channel, entries = Channel("support", updated_by="kim"), []
    for number, change in enumerate(changes, 1):
        channel = replace(
            change(channel),
            generation=number,
            updated_at=(BEGIN + datetime.timedelta(minutes=number)).isoformat(),
        )
        entries.append(channel)
    return entries


def canary(digest, weight):
    return lambda channel: start_canary(channel, digest, weight)


def stable(digest):
    return lambda channel: promote(channel, digest)


@pytest.mark.parametrize(
    ("changes", "outcomes"),
    [
        ([stable(A)], [(A, "promoted", None)]),
        ([canary(A, 0), canary(A, 10), canary(A, 100), stable(A)], [(A, "promoted", None)]),
        ([stable(A), canary(B, 10), abort_canary], [(A, "promoted", None), (B, "aborted", 1)]),
        (
            [stable(A), canary(B, 0), canary(B, 10), abort_canary],
            [(A, "promoted", None), (B, "aborted", 1)],
        ),
        (
            [stable(A), canary(B, 0), abort_canary],
            [(A, "promoted", None), (B, "aborted", None)],
        ),  # nobody was asked to wait for it
        (
            [stable(A), canary(B, 10), stable(B), roll_back],
            [(A, "promoted", None), (B, "rolled back", 2)],
        ),
        ([stable(A), canary(B, 10)], [(A, "promoted", None), (B, "under way", None)]),
        (
            [stable(A), stable(B), canary(C, 10), roll_back],
            [(A, "promoted", None), (B, "rolled back", 2), (C, "aborted", 1)],
        ),
        (
            [stable(A), canary(B, 10), abort_canary, canary(B, 10), stable(B)],
            [(A, "promoted", None), (B, "aborted", 1), (B, "promoted", None)],
        ),
        (
            [stable(A), stable(B), roll_back, canary(C, 5), abort_canary],
            [(A, "promoted", None), (B, "rolled back", 1), (C, "aborted", 1)],
        ),
    ],
)
def test_the_audit_log_tells_how_each_deployment_ended_and_how_long_a_bad_one_lasted(
    changes, outcomes
):
    found = deployments(log(*changes))
    minutes = [item.restored_after and item.restored_after.total_seconds() / 60 for item in found]
    assert [
        (item.digest, item.outcome, restored) for item, restored in zip(found, minutes, strict=True)
    ] == outcomes


# --- verdicts ---

WEEK = (BEGIN, BEGIN + datetime.timedelta(days=7))
GATES = """
gates:
  rouge_l: {min: 0.65, margin: 0.02, min_n: 20, description: d}
  safety_refusal: {min: 0.98, rule: bound, on_inconclusive: block, description: d}
  stop_rate: {min: 0.9, rule: bound, on_inconclusive: warn, description: d}
"""
GOOD = {"rouge_l": [0.9] * 400, "safety_refusal": [1] * 400, "stop_rate": [1] * 400}


@pytest.fixture
def judged(tmp_path):
    """`judged("name", candidate)`: a run whose verdict the gate gave on these columns, by default
    in the week."""
    (tmp_path / "gates.yaml").write_text(GATES)

    def run(name, candidate, production=None, *, at=BEGIN, pins=None, **changes):
        output = tmp_path / "runs" / name / "gate_report.json"
        output.parent.mkdir(parents=True)
        judge_once(
            write(tmp_path / f"{name}.json", results(candidate, production, **changes)),
            tmp_path / "gates.yaml",
            output,
            pins=pins,
        )
        output.write_text(
            json.dumps(json.loads(output.read_text()) | {"judged_at": at.isoformat()})
        )
        return tmp_path / "runs"

    return run


def test_gate_failures_are_counted_by_reason_whatever_the_figures(judged):
    judged("passes", GOOD)
    judged("low", GOOD | {"rouge_l": [0.5] * 400})
    judged("lower", GOOD | {"rouge_l": [0.4] * 400})
    judged("worse", GOOD | {"rouge_l": [0.7] * 400}, GOOD)
    judged("few", GOOD | {"rouge_l": [0.9] * 10 + [None] * 390})
    judged("lacking", {name: column for name, column in GOOD.items() if name != "rouge_l"})
    runs = judged(
        "unsure",
        GOOD
        | {
            "safety_refusal": [1] * 50 + [None] * 350,
            "stop_rate": [1] * 36 + [0] * 4 + [None] * 360,
        },
    )
    section = gate_failures(runs, *WEEK)
    assert sorted(section.rows, key=lambda row: (-int(row[1]), row)) == [
        ("rouge_l missed", "2"),
        ("rouge_l measured on too few", "1"),
        ("rouge_l not measured", "1"),
        ("rouge_l worse than production", "1"),
        ("safety_refusal undecided", "1"),  # stop_rate is undecided too, and only warns
    ]
    assert section.note == "6 of 7 verdicts were not PASS."


def test_an_evaluation_that_is_no_evidence_is_a_reason_of_its_own(judged):
    judged("other rows", GOOD, pins=Pins("support", evaluation="1" * 64))
    judged("still other rows", GOOD, pins=Pins("billing", evaluation="2" * 64))
    judged("broken", GOOD, failed={"candidate": 90})
    judged("more broken", GOOD, failed={"candidate": 200})
    runs = judged("no effect", GOOD, probes=[])  # warns of it, and passes
    section = gate_failures(runs, *WEEK)
    assert section.rows == [
        ("no evidence: generations of candidate failed", "2"),
        ("no evidence: the evaluation set is not the one that adapters/support.yaml pins", "1"),
        ("no evidence: the evaluation set is not the one that adapters/billing.yaml pins", "1"),
    ]
    assert section.note == "4 of 5 verdicts were not PASS."


def test_a_verdict_belongs_to_the_week_in_which_it_was_given_whenever_it_was_downloaded(judged):
    judged("of January", GOOD | {"rouge_l": [0.5] * 400}, at=BEGIN - datetime.timedelta(days=300))
    runs = judged("of the week", GOOD, at=BEGIN + datetime.timedelta(days=3))
    section = gate_failures(runs, *WEEK)
    assert (section.rows, section.note) == ([], "0 of 1 verdicts were not PASS.")


# --- training ---


def trained(directory, device, *, hours=1.0, processes=1, digest=A):
    document = whole_manifest(digest, 2, ("smollm2-135m-instruct", "x/y", "main"))
    document["run"]["processes"] = processes
    document["environment"]["device"] = device
    directory.mkdir(parents=True)
    (directory / "train_manifest.json").write_text(
        json.dumps(document | {"total_seconds": 3600 * hours, "finished_at": BEGIN.isoformat()})
    )


def cost(runs, usd=None):
    return [row[2:] for row in training(runs, *WEEK, usd, {A: "support"}.get).rows]


def test_every_process_of_a_training_uses_a_device_for_all_its_hours(tmp_path):
    trained(tmp_path / "1", "NVIDIA H100 80GB HBM3", hours=1, processes=8)
    trained(tmp_path / "2", "NVIDIA H100 80GB HBM3", hours=0.5)
    assert cost(tmp_path, 2.0) == [("NVIDIA H100 80GB HBM3", "2", "8.50", "17.00")]


@pytest.mark.parametrize(
    ("device", "usd"),
    [
        ("NVIDIA H200", "4.50"),
        ("NVIDIA H100 80GB HBM3", "3.50"),
        ("NVIDIA A100-SXM4-80GB", "2.00"),
        ("NVIDIA A100-PCIE-40GB", "1.50"),
        ("NVIDIA L4", "0.80"),
        ("NVIDIA GeForce RTX 4090", "0.60"),
        ("NVIDIA L40S", "-"),
        ("cpu (x86_64)", "-"),
    ],
)
def test_a_device_costs_what_the_price_list_says_where_it_knows_it(tmp_path, device, usd):
    trained(tmp_path / "1", device)
    assert cost(tmp_path) == [(device, "1", "1.00", usd)]


def test_a_run_that_was_neither_judged_nor_released_cost_too(tmp_path):
    trained(tmp_path / "1", "cpu (x86_64)")
    trained(tmp_path / "2", "cpu (x86_64)", digest=B)
    assert [row[0] for row in training(tmp_path, *WEEK, None, {A: "support"}.get).rows] == [
        "not judged",
        "support",
    ]


# --- data ---


def test_data_grows_by_rows_whatever_their_format_and_files_that_come_and_go_count(tmp_path):
    repository = Repository(tmp_path)

    def commit(day, changes):
        when = (BEGIN + datetime.timedelta(days=day)).isoformat()
        repository.commit(changes)
        repository.git(
            "commit", "-q", "--amend", "--no-edit", env=os.environ | {"GIT_COMMITTER_DATE": when}
        )

    array = {
        "data/training/array.json": json.dumps(ROWS[:2], indent=1),
        "data/eval/support.jsonl": jsonl(EVALUATION[:2]),
    }
    commit(
        -1,
        array
        | {
            "data/training/gone.jsonl": jsonl(ROWS),
            "data/training/same.jsonl": jsonl(ROWS).rstrip("\n"),
        },
    )
    new = {"data/training/gone.jsonl": None, "data/eval/new.jsonl": jsonl(EVALUATION[:2])}
    commit(1, new | {"data/training/array.json": json.dumps(ROWS)})
    commit(9, {"data/training/next-week.jsonl": jsonl(ROWS)})
    section = data_growth(repository.path, *WEEK)
    assert section.rows == [
        ("data/eval/new.jsonl", "0", "2", "+2 (added)"),
        ("data/eval/support.jsonl", "2", "2", "+0"),
        ("data/training/array.json", "2", "4", "+2"),
        ("data/training/gone.jsonl", "4", "0", "-4 (removed)"),
        ("data/training/same.jsonl", "4", "4", "+0"),
    ]
    assert section.note == ""
    assert data_growth(
        repository.path, BEGIN - datetime.timedelta(days=9), WEEK[1]
    ).note.startswith("Git knows no commit")
    assert data_growth(tmp_path, *WEEK).rows == []  # no repository


def test_text_from_the_store_stays_text():
    section = Section(
        "Deployments", ("by",), [("@octocat <img src=x onerror=alert(1)> | a\nb `c`",)], "None."
    )
    text = markdown("Week", [section])
    assert "@octocat" not in text
    assert "<img" not in text
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 3
    assert "<img" not in page("Week", [section])
