"""A plan says what the gates can decide, and refuses what no evaluation could pass, before a GPU is
asked."""

import json

import pytest

from adapterops.candidates.kept import Candidate
from adapterops.plan import planning
from adapterops.plan.plan_text import plan_markdown
from adapterops.schemas import schema_problems
from repositories import EVALUATION, jsonl, with_adapters

PIN = f"  evaluation_sha256: {'e' * 64}\n"
DEMO = "configs/quality_gate.demo.yaml"


@pytest.fixture
def repository(tmp_path):
    return with_adapters(tmp_path, ("support",))


@pytest.fixture
def plan(repository, monkeypatch):
    def make(path, old, new, *, released=False):
        known = Candidate(
            "d" * 64 if released else None,
            "b" * 64,
            {"verdict": "PASS"} if released else None,
            released,
            "",
        )
        monkeypatch.setattr(planning, "find_candidate", lambda *_: known)
        text = (repository.path / path).read_text()
        assert old in text
        head = repository.branch("pull", {path: text.replace(old, new)})
        document = planning.build_plan(
            repository.git("rev-parse", "main"), head, repository.path, object()
        )
        assert schema_problems(document, "plan") == []
        return document

    return make


@pytest.mark.parametrize(
    ("path", "old", "new", "said"),
    [
        (
            "adapters/support.yaml",
            "  evaluation:",
            f"  evaluation_sha256: {'e' * 64}\n  evaluation:",
            "data.evaluation_sha256 pins eeeeeeeeeeee",
        ),
        (
            "adapters/support.yaml",
            "latency_requests: 24",
            "latency_requests: 19",
            "latency_p95_ms.min_n is 20, and there are 19 requests",
        ),
        (
            "data/eval/support.jsonl",
            ', "expected_format": "json"',
            "",
            "gates.format_compliance: no row measures it",
        ),
        (
            DEMO,
            "min: 0.80",
            "min: 0.98\n    rule: bound",
            "cannot be decided on 20 rows with `should_refuse: true`",
        ),
    ],
)
def test_what_no_evaluation_could_pass_gets_no_gpu(plan, path, old, new, said):
    document = plan(path, old, new)
    assert (document["verdict"], document["train"]) == ("REFUSED", [])
    (problem,) = document["problems"]
    assert said in problem
    assert problem.startswith("support: ")
    assert "/tmp" not in problem  # paths are those of the repository


def test_the_plan_says_what_each_gate_can_decide(plan):
    document = plan(DEMO, "max: 0.25", "max: 0.24")
    (row,) = document["adapters"]
    assert (document["verdict"], row["action"]) == ("PROCEED", "train")
    assert any(
        line.startswith("safety_refusal margin 0.18, 20 rows with `should_refuse: true`: ")
        for line in row["power"]
    )
    assert row["power"][-1].startswith("Whole gate: an equal candidate passes ")
    shown = plan_markdown(document)
    assert "What the gates of support can decide on its rows" in shown
    assert "Whole gate: an equal candidate passes" in shown


def test_going_back_to_a_release_needs_no_power(plan):
    """It passed when it was released, on whatever rows."""
    document = plan("configs/qlora/smollm2-135m.yaml", "seed: 42", "seed: 43", released=True)
    (row,) = document["adapters"]
    assert (document["verdict"], row["action"], row["power"]) == ("PROCEED", "reuse", [])


def test_rows_that_break_their_schema_are_left_to_the_validation(repository, monkeypatch):
    monkeypatch.setattr(
        planning, "find_candidate", lambda *_: Candidate(None, "b" * 64, None, False, "")
    )
    head = repository.branch(
        "pull",
        {"data/eval/support.jsonl": jsonl(EVALUATION) + json.dumps({"instruction": 1}) + "\n"},
    )
    document = planning.build_plan(
        repository.git("rev-parse", "main"), head, repository.path, object()
    )
    assert (document["verdict"], document["adapters"][0]["power"]) == ("PROCEED", [])
