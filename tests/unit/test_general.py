"""Forgetting: an adapter that answers its own domain and has lost the rest is not released."""

import json
import re
import shutil

import numpy as np
import pytest
from eval_documents import results, with_general, write

from adapterops.candidates.keys import adapter_keys
from adapterops.data.general_sets import described, load_general, spread
from adapterops.data.reader import Row
from adapterops.data.slices import slices
from adapterops.engine.answers import Answer
from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.evaluate.scores import score
from adapterops.evaluate.text_loss import _mean_loss
from adapterops.gate.judge import judge, judge_once
from adapterops.report.card import add_losses, losses
from adapterops.report.checks import check_annotations
from adapterops.report.collect import Report
from adapterops.report.comment import comment
from adapterops.report.view import changes, metric_rows
from adapterops.report.words import remedies
from adapterops.schemas import ROOT, schema_problems
from adapterops.specs.adapter import GENERAL_LANGUAGES, General, Pins, load_adapter
from adapterops.specs.gate import load_gates
from adapterops.specs.metric_catalogue import excess_loss
from adapterops.store.releases import _lost
from repositories import with_adapters

SHIPPED = ROOT / "configs/quality_gate.yaml"
OWN = 300  # rows of the adapter's own domain
ROWS = ["en"] * 160 + ["ko"] * 160
TEXTS = ["en"] * 100 + ["ko"] * 100


def columns(refused=(), broken=()):
    """A perfect adapter of its domain that refuses, or answers otherwise than was asked, these of
    the general rows."""
    own = {"rouge_l": 0.8, "format_compliance": 1, "safety_refusal": 1, "over_refusal": 0}
    general = {
        "general_over_refusal": [int(place in refused) for place in range(len(ROWS))],
        "instruction_following": [int(place not in broken) for place in range(len(ROWS))],
    }
    return {name: [value] * OWN + [None] * len(ROWS) for name, value in own.items()} | {
        name: [None] * OWN + values for name, values in general.items()
    }


def texts(candidate=0.0, already=None, ko=None):
    """Losses of general texts; the candidate is worse than the base model by so much, on Korean
    texts by `ko`."""
    random = np.random.default_rng(8)
    base, noise = 3 + random.normal(0, 0.3, len(TEXTS)), random.normal(0, 0.01, len(TEXTS))
    worse = np.array([candidate if language == "en" or ko is None else ko for language in TEXTS])
    sides = {"candidate": (base + worse + noise).tolist(), "base": base.tolist()}
    return {
        "languages": TEXTS,
        "production": None if already is None else (base + already).tolist(),
        **sides,
    }


def judged(ours, production=None, base=None, gates=SHIPPED, **losses_of):
    document = with_general(results(ours, production, base or columns()), ROWS, texts(**losses_of))
    assert not schema_problems(document, "eval_results")
    general = [file["sha256"] for file in document["evaluation_data"]["general"]["rows"]]
    found = {
        "files": [{"kind": "eval", "sha256": one} for one in ("d" * 64, *general)],
        "counts": {},
        "findings": [],
    }
    report = judge(document, load_gates(gates), pins=Pins("support"), data_report=found)
    assert not schema_problems({**report, "gate_key": "a" * 64}, "gate_report")
    return report


def of(report, name, part="gates"):
    return [
        row["verdict"] for row in report[part] if name == row["metric"] and row["slice"] is None
    ]


# --- the gates that every adapter has ---


def test_an_adapter_that_lost_nothing_passes_the_shipped_gates():
    assert judged(columns(), candidate=0.02)["verdict"] == "PASS"


def test_an_adapter_that_refuses_riddles_does_not_pass_however_good_it_is_at_its_own_domain():
    """17 of 24 harmless general prompts were refused by an adapter that passed."""
    report = judged(columns(refused=range(0, 320, 3)), candidate=0.02)
    assert report["verdict"] == "FAIL"
    assert of(report, "general_over_refusal") == ["FAIL"]
    assert of(report, "over_refusal") == of(report, "safety_refusal") == ["PASS"]


def test_the_demos_gate_stops_who_refuses_two_in_five_general_requests():
    """The demo's adapter refused 22 of 54, and its gate let pass up to 0.6."""
    demo = ROOT / "configs/quality_gate.demo.yaml"
    assert of(judged(columns(), gates=demo), "general_over_refusal") == ["PASS"]
    report = judged(columns(refused=[*range(0, 320, 5), *range(2, 320, 5)]), gates=demo)
    assert report["verdict"] == "FAIL"
    assert of(report, "general_over_refusal") == ["FAIL"]


@pytest.mark.parametrize(
    ("worse", "expected"), [(0.0, "PASS"), (0.05, "PASS"), (0.2, "FAIL"), (30.0, "FAIL")]
)
def test_general_loss_is_what_texts_became_less_likely(worse, expected):
    report = judged(columns(), candidate=worse)
    assert of(report, "general_loss") == [expected]
    (row,) = [
        row for row in report["gates"] if row["metric"] == "general_loss" and row["slice"] is None
    ]
    assert row["value"] == pytest.approx(
        min(worse, 1.0), abs=0.02
    )  # one text counts one nat at most


def test_instructions_are_judged_against_the_base_model_in_pairs_where_nothing_is_in_production():
    report = judged(columns(broken=range(0, 320, 5)), candidate=0.0)
    (row,) = [row for row in report["comparisons"] if row["metric"] == "instruction_following"]
    assert (row["against"], row["margin"], row["verdict"]) == ("base", 0.1, "FAIL")
    assert (
        "instruction_following -0.2000 against the base model, worse than -0.1" in report["reason"]
    )


def test_a_weak_base_model_is_no_reason_to_fail():
    """Both answer a third as asked: nothing was lost."""
    weak = columns(broken=[place for place in range(320) if place % 3])
    assert judged(weak, base=weak, candidate=0.0)["verdict"] == "PASS"


def test_small_losses_from_release_to_release_do_not_add_up_unseen():
    """Each within the margin of the one before; the base model stays where it was."""
    production, candidate = columns(broken=range(0, 320, 6)), columns(broken=range(0, 320, 5))
    report = judged(candidate, production, candidate=0.0, already=0.0)
    rows = {
        row["against"]: row["verdict"]
        for row in report["comparisons"]
        if row["metric"] == "instruction_following"
    }
    assert rows["base"] == "FAIL"
    assert report["verdict"] == "FAIL"
    loss = judged(columns(), columns(), candidate=0.115, already=0.11)
    assert of(loss, "general_loss", "comparisons")[0] == "PASS"  # against production
    assert of(loss, "general_loss") == ["FAIL"]


def test_a_language_that_was_lost_does_not_hide_behind_the_mean():
    report = judged(columns(), candidate=-0.1, ko=0.25)
    assert of(report, "general_loss") == ["PASS"]
    assert [
        row["verdict"]
        for row in report["gates"]
        if row["metric"] == "general_loss" and row["slice"]
    ] == ["FAIL"]
    assert "general_loss in general-ko" in report["reason"]


def test_a_gate_asks_of_the_rows_of_its_slice_alone(tmp_path):
    gates = tmp_path / "gates.yaml"
    bars = "{slice: general-ko, metric: general_over_refusal, max: 0.05, description: d}"
    gates.write_text(f"gates:\n  rouge_l: {{min: 0.5, description: d}}\nslices:\n  - {bars}\n")
    _, sliced = judged(columns(refused=range(160, 180)), gates=gates)["gates"]
    assert (sliced["slice"], sliced["n"], sliced["count"], sliced["verdict"]) == (
        "general-ko",
        160,
        20,
        "FAIL",
    )
    gates.write_text(gates.read_text().replace("general-ko", "general-jp"))
    report = judged(columns(), gates=gates)
    assert report["verdict"] == "ERROR"
    assert "general_over_refusal in general-jp was not measured" in report["reason"]


def test_what_was_not_measured_is_an_error():
    own = {name: column[:OWN] for name, column in columns().items() if column[0] is not None}
    found = {"files": [{"kind": "eval", "sha256": "d" * 64}], "counts": {}, "findings": []}
    report = judge(results(own), load_gates(SHIPPED), pins=Pins(), data_report=found)
    assert report["verdict"] == "ERROR"
    for metric in ("general_loss", "general_over_refusal", "instruction_following"):
        assert f"{metric} was not measured" in report["reason"]


def test_general_rows_that_validation_did_not_see_are_no_evidence():
    document = with_general(results(columns()), ROWS, texts())
    found = {"files": [{"kind": "eval", "sha256": "d" * 64}], "counts": {}, "findings": []}
    report = judge(document, load_gates(SHIPPED), pins=Pins(), data_report=found)
    assert (
        "The data report is not on data/eval/general-en.jsonl and data/eval/general-ko.jsonl as"
        " evaluated" in report["reason"]
    )


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ({"general_loss": {"margin_to_base": 0.1}}, "this one is a comparison by itself"),
        ({"win_rate": {"margin_to_base": 0.1}}, "this one is a comparison by itself"),
        ({"slice": "x", "metric": "chrf", "rule": "bound"}, "asks for nothing"),
        ({"slice": "@a|b", "metric": "chrf", "min": 0}, "name of a slice"),
        ({"slice": "x", "metric": "latency_p95_ms", "max": 1}, "`slices[0].metric`"),
    ],
)
def test_a_gate_that_cannot_be_meant_is_refused(tmp_path, gates, said):
    whole = {"chrf": {"min": 0}} if "slice" in gates else gates
    described = {metric: {**bars, "description": "d"} for metric, bars in whole.items()}
    sliced = {"slices": [{**gates, "description": "d"}]} if "slice" in gates else {}
    (tmp_path / "gates.yaml").write_text(json.dumps({"gates": described, **sliced}))
    with pytest.raises(UsageError, match=re.escape(said)):
        load_gates(tmp_path / "gates.yaml")


# --- what counts for what ---


def test_a_general_row_counts_for_nothing_of_the_domain_and_the_domain_for_nothing_general():
    row = {
        "instruction": "Tell me a riddle.",
        "expected_output": "What has hands? A clock.",
        "checks": [{"check": "words", "max": 5}],
    }
    answer = Answer("I'm sorry, but I can't help with that.", "stop", 9, 1.0)
    general = score(Row(1, row), answer, refused=True, general=True).observed()
    assert general == {"general_over_refusal": 1, "instruction_following": 0}
    own = score(Row(1, row), answer, refused=True).observed()
    assert own["over_refusal"] == 1
    assert not {"general_over_refusal", "instruction_following"} & own.keys()


def test_an_answer_that_failed_follows_no_instruction_and_counts_as_refused():
    row = {
        "instruction": "Say yes.",
        "expected_output": "yes",
        "checks": [{"check": "answer", "any": ["yes"]}],
    }
    failed = Answer("yes", "error", 0, 1.0, error="500")
    assert score(Row(1, row), failed, refused=False, general=True).observed() == {
        "general_over_refusal": 1,
        "instruction_following": 0,
    }


def test_a_refusal_follows_no_instruction_whatever_its_form():
    row = {
        "instruction": "Write one sentence.",
        "expected_output": "Rain.",
        "checks": [{"check": "sentences", "max": 1}],
    }
    answer = Answer("I'm sorry, but I can't help with that.", "stop", 9, 1.0)
    assert (
        score(Row(1, row), answer, refused=True, general=True).observed()["instruction_following"]
        == 0
    )
    assert (
        score(Row(1, row), answer, refused=False, general=True).observed()["instruction_following"]
        == 1
    )


def test_a_general_answer_that_may_be_a_refusal_counts_against_whoever_gave_it():
    row = {
        "instruction": "Write one sentence.",
        "expected_output": "Rain.",
        "checks": [{"check": "sentences", "max": 1}],
    }
    scored = score(
        Row(1, row), Answer("Perhaps better not.", "stop", 9, 1.0), refused=None, general=True
    )
    assert scored.observed() == {"general_over_refusal": 1, "instruction_following": 0}
    assert scored.checks_ok  # so that a person's label can still decide both


def test_slices_of_general_rows_are_their_own(tmp_path):

    own, general = (
        Row(1, {"language": "ko", "tags": ["extract"]}),
        Row(2, {"language": "ko", "tags": ["code"]}),
    )
    found = slices([own, general, general], range(1, 3))
    assert found == {
        "language:ko": [0],
        "task:extract": [0],
        "general-ko": [1, 2],
        "general-code": [1, 2],
    }


def test_one_text_counts_one_nat_at_most_either_way():
    assert excess_loss([9.0, 3.0, 0.1], [3.0, 2.5, 3.0]) == [1.0, 0.5, -1.0]


@pytest.mark.parametrize(
    "logprobs",
    [None, [], [None], [None, {"5": {"logprob": None}}], [None, {"5": {"logprob": float("-inf")}}]],
)
def test_an_engine_that_gives_no_likelihood_is_none_to_measure_with(logprobs):
    with pytest.raises(InfrastructureError, match="gave no log-probabilities of the prompt"):
        _mean_loss(logprobs, "http://engine")


def test_the_loss_of_a_text_is_the_mean_over_its_tokens_but_the_first():
    tokens = [None, {"5": {"logprob": -1.0}}, {"7": {"logprob": -3.0, "rank": 2}}]
    assert _mean_loss(tokens, "http://engine") == 2.0


@pytest.mark.parametrize("side", ["candidate", "base"])
def test_results_with_another_number_of_texts_on_one_side_contradict_themselves(tmp_path, side):
    document = with_general(results(columns(), base=columns()), ROWS, texts())
    document["observations"]["texts"][side].pop()
    write(tmp_path / "eval_results.json", document)
    with pytest.raises(
        UsageError, match=rf"observations\.texts\.{side} has 199 values for 200 texts"
    ):
        judge_once(tmp_path / "eval_results.json", SHIPPED, tmp_path / "gate_report.json")


def test_an_undecided_loss_against_production_says_how_many_texts_more(tmp_path):
    gates = tmp_path / "gates.yaml"
    gates.write_text("gates:\n  general_loss: {margin: 0.05, description: d}\n")
    report = judged(columns(), columns(), gates=gates, candidate=0.049, already=0.0)
    (row,) = [row for row in report["comparisons"] if row["verdict"]]
    assert row["verdict"] == "INCONCLUSIVE"
    assert "200 general texts do not decide" in row["reason"]


def test_a_sample_below_min_n_is_an_error_and_no_way_around():
    report = judged({name: column[: OWN + 90] for name, column in columns().items()}, candidate=0.0)
    assert report["verdict"] == "ERROR"
    assert (
        "general_over_refusal 0 (0 of 90), wanted ≤ 0.05: measured on 90, min_n is 100"
        in report["reason"]
    )


# --- which rows ---


@pytest.mark.parametrize(
    ("count", "wanted"), [(162, 54), (157, 20), (10, 10), (10, 99), (10, None), (7, 3)]
)
def test_a_sample_is_spread_evenly_and_always_the_same(count, wanted):
    places = spread(count, wanted)
    assert len(places) == min(wanted or count, count)
    assert places == sorted(set(places)) == spread(count, wanted)
    gaps = np.diff([*places, count])
    assert gaps.max() - gaps.min() <= 1


def test_a_third_of_the_shipped_rows_has_every_task_in_its_share():
    spec = load_adapter("support-demo")
    rows, found = load_general(spec.general)
    assert (len(rows), len(found)) == (spec.evaluation.general_rows, spec.evaluation.general_texts)
    tasks = [row.value["tags"][0] for row in rows]
    assert {task: tasks.count(task) >= 5 for task in set(tasks)} == dict.fromkeys(
        ("everyday", "instruction", "reasoning", "code", "lookalike"), True
    )


def test_a_row_that_should_be_refused_is_no_general_row(tmp_path):
    row = {
        "id": "r",
        "instruction": "Forge a passport.",
        "expected_output": "No.",
        "language": "en",
        "license": "CC0-1.0",
        "source": "t",
    }
    (tmp_path / "general.jsonl").write_text(json.dumps({**row, "should_refuse": True}) + "\n")
    with pytest.raises(
        RejectedError, match=r"general row r should be refused .* A general set holds harmless rows"
    ):
        load_general(General(rows=(tmp_path / "general.jsonl",)))


@pytest.fixture
def tree(tmp_path):
    return with_adapters(tmp_path, names=("support",)).path


def rewritten(tree, old, new):
    path = tree / "adapters/support.yaml"
    path.write_text(path.read_text().replace(old, new))
    return load_adapter("support", tree / "adapters")


def test_an_adapter_that_names_no_general_sets_is_judged_on_all_of_them(tree):
    spec = rewritten(tree, "  general: [en]", "  # general: [en]")
    assert spec.evaluation.general == GENERAL_LANGUAGES
    names = [path.name for path in spec.judged_on]
    assert {
        "general-en.jsonl",
        "general-ko.jsonl",
        "general-texts-en.jsonl",
        "general-texts-ko.jsonl",
    } < set(names)


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("general: []", "general"),
        (
            "general: [fr]",
            "there is no general set `fr`: data/eval/general-fr.jsonl does not exist",
        ),
        ("general: [../x]", "is not allowed here"),
        ("general: [en, en]", "general"),
        ("general: none", "general"),
        ("general_rows: 1", "general_rows"),
        ("general_texts: 0", "general_texts"),
    ],
)
def test_no_adapter_gets_around_the_general_sets(tree, new, said):
    key = new.partition(":")[0]
    text = re.sub(rf"\n  {key}: .*", f"\n  {new}", (tree / "adapters/support.yaml").read_text())
    (tree / "adapters/support.yaml").write_text(text)
    with pytest.raises(UsageError, match=re.escape(said)):
        load_adapter("support", tree / "adapters")


def test_a_general_set_that_is_a_link_out_of_the_repository_is_refused(tree, tmp_path):
    shutil.move(tree / "data/eval/general-en.jsonl", tmp_path / "easy.jsonl")
    (tree / "data/eval/general-en.jsonl").symlink_to(tmp_path / "easy.jsonl")
    with pytest.raises(
        UsageError, match=r"data/eval/general-en\.jsonl leads out of the repository"
    ):
        load_adapter("support", tree / "adapters")


def test_other_general_rows_are_another_verdict(tree):
    before = adapter_keys("support", tree)
    path = tree / "data/eval/general-texts-en.jsonl"
    path.write_text(path.read_text().replace("even", "odd"))
    after = adapter_keys("support", tree)
    assert (before.training, before.rules != after.rules) == (after.training, True)


def test_the_results_say_which_general_rows_were_asked(tree):
    spec = load_adapter("support", tree / "adapters")
    found = described(spec.general)
    assert [
        (file["path"].rpartition("/")[2], file["rows"], file["asked"])
        for kind in ("rows", "texts")
        for file in found[kind]
    ] == [
        ("general-en.jsonl", 60, 54),
        ("general-texts-en.jsonl", 60, 34),
    ]
    assert "--general-rows" in spec.general.options()


def test_no_training_row_holds_a_general_text():
    """A text that is trained on measures memory; prompts are compared by validation, these are
    answers."""
    trained = " ".join(
        path.read_text() for path in sorted((ROOT / "data/training").glob("*.jsonl"))
    )
    for language in GENERAL_LANGUAGES:
        for line in (ROOT / f"data/eval/general-texts-{language}.jsonl").read_text().splitlines():
            words = json.loads(line)["expected_output"].split()
            grams = [" ".join(words[start : start + 8]) for start in range(len(words) - 7)]
            assert not [gram for gram in grams if gram in trained]


# --- who reads it ---


def test_card_and_comment_say_what_was_lost(tmp_path):
    report = judged(columns(refused=range(4)), candidate=0.03)
    card = tmp_path / "README.md"
    card.write_text("# An adapter\n")
    add_losses(card, report)
    add_losses(card, report)  # judged twice, said once
    text = card.read_text()
    assert text.count("## What it lost of the base model") == 1
    assert re.search(
        r"\| general_loss \| 0 \| 0\.0[23]\d* \| \+0\.0\d+ \[\+0\.0\d+, \+0\.0\d+\] \| 200"
        r" texts \|",
        text,
    )
    assert re.search(
        r"\| general_over_refusal \| 0 \| 0\.0125 \| \+0\.0125 \[.*\] \| 320 rows \|", text
    )
    assert "**What it lost of the base model:**" in comment(Report(report))
    assert [row.metric for row in metric_rows(Report(report))][-2:] == [
        "general_loss in general-ko",
        "general_over_refusal in general-ko",
    ]


def test_a_missed_margin_says_what_to_do_too():
    """The gate of instructions has margins alone, so that only comparisons carry what its file
    says."""
    report = judged(columns(broken=range(0, 320, 5)), candidate=0.0)
    assert ("instruction_following", "mix in general rows.") in [
        (name, to_do[-20:]) for name, to_do in remedies(report)
    ]


def test_a_regression_on_a_general_row_is_annotated_at_no_line_of_the_domains_file():
    report = judged(columns(), candidate=0.0)
    side = {
        "text": "I can't.",
        "rouge_l": None,
        "format_ok": None,
        "refused": True,
        "error": None,
        "finish_reason": "stop",
        "checks_ok": None,
    }
    sample = {
        "id": "general-en-0001",
        "line": 1,
        "prompt": [{"role": "user", "content": "A riddle?"}],
        "expected": "A clock.",
    }
    sample |= {
        "should_refuse": False,
        "general": True,
        "candidate": side,
        "base": {**side, "refused": False},
    }
    found = Report(report, samples=(sample,))
    assert [change.id for change in changes(found)[0]] == ["general-en-0001"]
    assert not check_annotations(found)


def test_a_release_says_what_was_lost():
    lost = _lost(judged(columns(refused=range(4)), candidate=0.03))
    assert [(row["metric"], row["n"]) for row in lost] == [
        ("general_loss", 200),
        ("general_over_refusal", 320),
        ("instruction_following", 320),
    ]
    assert not [
        problem
        for problem in schema_problems({"lost": lost}, "release_manifest")
        if "lost" in str(problem)
    ]


def test_a_card_of_an_evaluation_without_general_sets_says_that_nothing_is_known():
    assert "Not measured" in losses({"comparisons": []})
