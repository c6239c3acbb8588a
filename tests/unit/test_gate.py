"""The gate: four verdicts, every threshold exact, and nothing unmeasured ever passes."""

import functools
import json
import re
import subprocess
import sys

import data_rows
import numpy as np
import pytest
from click.testing import CliRunner
from eval_documents import results, with_general, write

from adapterops.candidates.keys import adapter_keys
from adapterops.data.validate import write_report
from adapterops.documents import sha256_file
from adapterops.engine.answers import Answer
from adapterops.errors import UsageError
from adapterops.evaluate import record
from adapterops.evaluate.phases import Side
from adapterops.gate.compare import compare, slice_regressions
from adapterops.gate.evidence import Evidence, Sample
from adapterops.gate.judge import judge, judge_once
from adapterops.gate.thresholds import judge_sample
from adapterops.schemas import ROOT
from adapterops.shapes.quality_gate import QualityGate
from adapterops.specs.adapter import Pins, load_adapter
from adapterops.specs.gate import load_gates
from adapterops.statistics.intervals import mean_interval
from adapterops.yamlfile import load_yaml
from repositories import with_adapters

EXPERIMENTS = 2_000
SLACK = 3 * (0.05 * 0.95 / EXPERIMENTS) ** 0.5  # three standard errors of a share of 0.05


def share(verdict, verdicts):
    return verdicts.count(verdict) / len(verdicts)


def hits(count, n):
    return [1] * count + [0] * (n - count)


def data_report(*sha256, **counts):
    """What validation says of these evaluation files, those of `results` by default."""
    return {
        "files": [{"kind": "eval", "sha256": one} for one in sha256 or ("d" * 64,)],
        "counts": counts,
        "findings": [],
    }


@pytest.fixture
def gates(tmp_path):
    def write_gates(text, **top):
        path = tmp_path / "gates.yaml"
        lines = [f"{key}: {value}" for key, value in top.items()] + ["gates:"]
        for line in text.strip().splitlines():
            metric, asked = line.split(": ", 1)
            lines.append(f"  {metric}: {{{asked}, description: d}}")
        path.write_text("\n".join(lines) + "\n")
        return path

    return write_gates


@pytest.fixture
def verdict(gates):
    """`verdict("metric: min: 0.9", candidate)`: the report on these columns."""

    def run(text, candidate, production=None, *, pins=None, found=None, top=None, **changes):
        config = load_gates(gates(text, **(top or {})))
        return judge(
            results(candidate, production, **changes),
            config,
            pins=pins or Pins(),
            data_report=found or data_report(),
        )

    return run


# --- point thresholds, the plain form ---


@pytest.mark.parametrize(("count", "expected"), [(50, "PASS"), (49, "PASS"), (48, "FAIL")])
def test_rates_are_compared_as_integers(verdict, count, expected):
    report = verdict("safety_refusal: min: 0.98", {"safety_refusal": hits(count, 50)})
    assert report["verdict"] == expected
    assert report["gates"][0]["count"] == count


def test_a_rate_that_binary_floats_would_round_below_the_bar_passes(verdict):
    # 0.1 + 0.2 > 0.3 in floats; 9 of 30 is at most 0.3.
    assert verdict("over_refusal: max: 0.3", {"over_refusal": hits(9, 30)})["verdict"] == "PASS"


@pytest.mark.parametrize(
    ("values", "expected", "shown"),
    [
        (
            [0.7] * 30,
            "PASS",
            "rouge_l 0.7, wanted ≥ 0.7.",
        ),  # 0.7 is a little less than that in floats
        ([0.6, 0.7, 0.8] * 10, "PASS", "rouge_l 0.7, wanted ≥ 0.7."),
        ([0.69999] * 30, "FAIL", "rouge_l 0.69999, wanted ≥ 0.7."),
        ([0.69999, 0.7] * 10, "FAIL", "rouge_l 0.699995, wanted ≥ 0.7."),
        ([0.6543219] * 30, "FAIL", "rouge_l 0.6543, wanted ≥ 0.7."),
    ],
)
def test_a_mean_is_compared_as_the_decimal_that_is_shown(verdict, values, expected, shown):
    report = verdict("rouge_l: min: 0.7", {"rouge_l": values})
    assert (report["verdict"], report["gates"][0]["reason"]) == (expected, shown)


def test_max_gates_ask_for_at_most(verdict):
    latency = {"rouge_l": [0.7] * 30}
    assert verdict("latency_p95_ms: max: 400", latency)["verdict"] == "PASS"
    assert verdict("latency_p95_ms: max: 399.9", latency)["verdict"] == "FAIL"


@pytest.mark.parametrize("column", [[], [None, None], [float("nan"), 0.7], [float("inf")]])
def test_a_metric_that_was_not_measured_is_an_error(verdict, column):
    report = verdict("rouge_l: min: 0.0", {"rouge_l": column, "stop_rate": [1, 1]})
    assert report["verdict"] == "ERROR"
    assert report["gates"][0]["value"] is None
    assert "rouge_l was not measured" in report["reason"]
    assert "Add evaluation rows that ask for it, or take its gate out." in report["reason"]


def test_the_interval_is_shown_beside_a_point_verdict(verdict):
    gate = verdict("safety_refusal: min: 0.98", {"safety_refusal": hits(98, 100)})["gates"][0]
    assert gate["interval"] == pytest.approx([0.9384, 0.9964], abs=1e-4)


# --- rule: bound ---


@pytest.mark.parametrize(
    ("count", "n", "expected"),
    [
        (149, 149, "PASS"),
        (148, 148, "INCONCLUSIVE"),
        (148, 149, "INCONCLUSIVE"),
        (140, 149, "FAIL"),
    ],
)
def test_a_bound_gate_asks_for_evidence_and_says_when_there_is_too_little(
    verdict, count, n, expected
):
    report = verdict("safety_refusal: min: 0.98, rule: bound", {"safety_refusal": hits(count, n)})
    assert report["verdict"] == expected


@pytest.mark.parametrize(
    ("on_inconclusive", "expected"), [("block", "INCONCLUSIVE"), ("warn", "PASS")]
)
def test_an_inconclusive_gate_blocks_or_warns_as_it_says(verdict, on_inconclusive, expected):
    gate = (
        f"format_compliance: min: 0.95, rule: bound, on_inconclusive: {on_inconclusive}\nstop_rate:"
        " min: 0.5"
    )
    report = verdict(gate, {"format_compliance": hits(49, 50), "stop_rate": hits(50, 50)})
    assert report["verdict"] == expected
    assert report["gates"][0]["verdict"] == "INCONCLUSIVE"
    assert bool(report["warnings"]) == (expected == "PASS")


def test_where_no_gate_gave_a_pass_the_whole_is_none(verdict):
    undecided = verdict(
        "format_compliance: min: 0.95, rule: bound", {"format_compliance": hits(49, 50)}
    )  # which only warns
    assert undecided["verdict"] == "INCONCLUSIVE"
    assert undecided["reason"].startswith(
        "No gate passed, 1 are undecided. Add evaluation rows, or give a metric a point threshold."
        " format_"
    )


@pytest.mark.parametrize(
    "gate",
    [
        "rouge_l: margin: 0.02",
        "latency_p95_ms: ratio: 1.1",
        "win_rate: min: 0.5",
        "win_rate: margin: 0.1",
    ],
)
def test_where_nothing_was_judged_nothing_passed(verdict, gate):
    report = verdict(gate, {"rouge_l": [0.7] * 50})
    assert report["verdict"] == "INCONCLUSIVE"
    assert (
        "there is none to compare with. Give at least one metric a min or max." in report["reason"]
    )


@pytest.mark.parametrize(("name", "asked"), [("quality_gate", 11), ("quality_gate.demo", 9)])
def test_a_first_release_passes_by_the_bars_of_the_shipped_gates(name, asked):
    own, languages = [None] * 300, ["en", "ko"] * 75
    columns = {
        metric: [value] * 300
        for metric, value in {
            "rouge_l": 0.8,
            "format_compliance": 1,
            "safety_refusal": 1,
            "over_refusal": 0,
        }.items()
    } | {"general_over_refusal": own + [0] * 150, "instruction_following": own + [1] * 150}
    texts = {
        "languages": ["en", "ko"] * 75,
        "production": None,
        "candidate": [3.0] * 150,
        "base": [3.0] * 150,
    }
    document = with_general(results(columns, base=columns), languages, texts)
    report = judge(
        document,
        load_gates(ROOT / f"configs/{name}.yaml"),
        pins=Pins(),
        data_report=data_report("d" * 64, "1" * 64, "2" * 64),
    )
    assert (report["verdict"], report["reason"]) == ("PASS", f"All {asked} gates passed.")


def test_safety_blocks_on_inconclusive_and_other_metrics_warn_unless_they_say_otherwise(verdict):
    columns = {"safety_refusal": hits(50, 50), "format_compliance": hits(50, 50)}
    report = verdict(
        "safety_refusal: min: 0.98, rule: bound\nformat_compliance: min: 0.98, rule: bound", columns
    )
    assert [gate["blocking"] for gate in report["gates"]] == [True, False]
    assert report["verdict"] == "INCONCLUSIVE"


@pytest.mark.parametrize("text", ["safety_refusal: min: 0.98", "safety_refusal: margin: 0.5"])
def test_one_of_one_is_no_pass(verdict, text):
    report = verdict(text, {"safety_refusal": [1]}, {"safety_refusal": [1]})
    assert report["verdict"] == "ERROR"
    assert "min_n is 20" in report["reason"]


@pytest.mark.parametrize(
    ("gate", "columns", "said"),
    [
        (
            "safety_refusal: min: 0.98, rule: bound",
            [hits(148, 148), None],
            "148 rows with `should_refuse: true` do not decide; about 1 more",
        ),
        (
            "format_compliance: margin: 0.02",
            [hits(65, 65), hits(65, 65)],
            "65 rows with `expected_format` do not decide; about ",
        ),
        (
            "rouge_l: margin: 0.02",
            [[0.7, 0.72] * 40, [0.72, 0.7] * 40],
            "80 rows without `should_refuse` do not decide; about ",
        ),
        (
            "rouge_l: margin: 0.02",
            [[0.2, 0.56] * 40, [0.5, 0.3] * 40],
            "do not decide, nor would 5,000 like them: it is too near the bar.",
        ),
    ],
)
def test_what_is_undecided_says_how_many_rows_would_decide_and_which(verdict, gate, columns, said):
    candidate, production = ({gate.split(":")[0]: column} if column else None for column in columns)
    report = verdict(f"{gate}, on_inconclusive: block", candidate, production)
    assert report["verdict"] == "INCONCLUSIVE"
    assert said in report["reason"]


def test_as_many_more_rows_as_it_says_do_decide(verdict):
    """Of equal answers: 65 rows of JSON, and what the reason asks for beside them."""
    gate, column = (
        "format_compliance: margin: 0.02, on_inconclusive: block",
        {"format_compliance": hits(65, 65)},
    )
    more = int(re.search(r"about (\d+) more", verdict(gate, column, column)["reason"])[1])
    column = {"format_compliance": hits(65 + more, 65 + more)}
    assert verdict(gate, column, column)["verdict"] == "PASS"


def test_fewer_rows_than_min_n_are_an_error_and_never_a_pass(verdict):
    report = verdict("safety_refusal: min: 0.9, min_n: 149", {"safety_refusal": hits(148, 148)})
    assert report["verdict"] == "ERROR"
    assert "measured on 148, min_n is 149" in report["reason"]


@pytest.mark.parametrize("wrong", ["PASS", "FAIL"])
def test_false_passes_and_false_fails_of_a_bound_gate_are_as_rare_as_its_confidence_says(
    gates, wrong
):
    """At the bar itself, where being wrong is likeliest: 2,000 experiments of 300 rows."""
    (gate,) = load_gates(gates("safety_refusal: min: 0.98, rule: bound")).gates

    @functools.cache
    def said(count):
        sample = Sample(
            "safety_refusal", tuple(hits(count, 300)), tuple(range(300)), tuple(range(300)), seed=1
        )
        return judge_sample(sample, gate, "min", 0.98, 0.95)["verdict"]

    verdicts = [
        said(int(count)) for count in np.random.default_rng(2).binomial(300, 0.98, EXPERIMENTS)
    ]
    assert share(wrong, verdicts) <= 0.05 + SLACK


# --- against production ---

ROWS = 400


def answers(random, mean, noise):
    """Scores of two adapters on the same rows: the row decides most of it, the adapter a little."""
    difficulty = random.normal(0.7, 0.15, ROWS)
    return (
        np.clip(difficulty + mean + random.normal(0, noise, ROWS), 0, 1).tolist(),
        np.clip(difficulty, 0, 1).tolist(),
    )


def test_a_candidate_that_is_worse_by_a_real_margin_is_blocked_and_one_that_differs_by_noise_is_not(
    verdict,
):
    gate = "rouge_l: min: 0.3, margin: 0.02"
    worse, production = answers(np.random.default_rng(1), -0.06, 0.08)
    report = verdict(gate, {"rouge_l": worse}, {"rouge_l": production})
    assert report["verdict"] == "FAIL"
    assert "against production, worse than -0.02" in report["reason"]
    assert (
        report["gates"][0]["verdict"] == "PASS"
    )  # it clears the absolute bar: only production shows the regression

    same, production = answers(np.random.default_rng(1), 0.0, 0.08)
    report = verdict(gate, {"rouge_l": same}, {"rouge_l": production})
    assert report["verdict"] == "PASS"
    assert report["comparisons"][0]["superiority"] == "same"


def test_a_candidate_that_is_better_is_flagged(verdict):
    better, production = answers(np.random.default_rng(1), 0.05, 0.08)
    (row,) = [
        row
        for row in verdict("rouge_l: margin: 0.02", {"rouge_l": better}, {"rouge_l": production})[
            "comparisons"
        ]
        if row["metric"] == "rouge_l"
    ]
    assert row["superiority"] == "better"
    assert row["interval"][0] > 0


@pytest.fixture
def compared(gates, monkeypatch):
    """`compared(gate, differences)`: the verdict against production for each row of differences; a
    production of 0.5 but for them."""
    monkeypatch.setattr(
        "adapterops.gate.compare.mean_interval", functools.partial(mean_interval, resamples=399)
    )
    monkeypatch.setattr(
        "adapterops.gate.evidence.mean_interval", functools.partial(mean_interval, resamples=399)
    )

    def verdicts(text, differences):
        (gate,) = load_gates(gates(text)).gates
        n, found = differences.shape[1], []
        document = results({gate.metric: [0.0] * n}, {gate.metric: [1.0] * n})
        for number, row in enumerate(differences):
            document["eval_key"] = f"{number:064x}"
            document["observations"]["candidate"] = {gate.metric: (1.0 + row).tolist()}
            found.append(
                compare(Evidence(document), gate.metric, "production", gate, gate.confidence)[
                    "verdict"
                ]
            )
        return found

    return verdicts


@pytest.mark.parametrize(("metric", "worse"), [("rouge_l", -1), ("repetition", 1)])
def test_non_inferiority_is_wrong_no_more_often_than_its_confidence_says(compared, metric, worse):
    """200 rows with a true change of exactly the margin: the likeliest place for a false pass and a
    false fail."""
    experiments = 600
    verdicts = compared(
        f"{metric}: margin: 0.02",
        np.random.default_rng(9).normal(worse * 0.02, 0.08, (experiments, 200)),
    )
    limit = 0.05 + 3 * (0.05 * 0.95 / experiments) ** 0.5
    assert share("PASS", verdicts) <= limit
    assert 0.01 < share("FAIL", verdicts) <= limit


@pytest.mark.parametrize(
    ("rows", "broken", "margin"),
    [(60, 0.03, 0.02), (100, 0.02, 0.02), (200, 0.02, 0.02), (60, 0.05, 0.05)],
)
def test_few_rows_that_break_wholly_pass_no_more_often_than_that(compared, rows, broken, margin):
    """As adapters break: some rows lose everything, the others keep to a hair. A sample without one
    of them looks harmless."""
    experiments, random = 400, np.random.default_rng(4)
    lost = (random.random((experiments, rows)) < broken).astype(float)
    verdicts = compared(f"rouge_l: margin: {margin}", random.normal(0, 0.02, lost.shape) - lost)
    assert share("PASS", verdicts) <= 0.05 + 3 * (0.05 * 0.95 / experiments) ** 0.5


def test_equal_answers_pass_the_margins_of_the_shipped_gates_where_their_rows_can_show_it(compared):
    """150 rows of the demo and its margin of 0.05; 0.02 takes 149 rows at least, however alike the
    answers are."""
    alike = np.random.default_rng(6).normal(0, 0.01, (20, 150))
    assert share("PASS", compared("rouge_l: margin: 0.05", alike)) == 1
    assert share("INCONCLUSIVE", compared("rouge_l: margin: 0.02", alike[:, :120])) == 1


def test_pairing_decides_where_unpaired_samples_would_not(compared):
    """No true drop, 200 rows, item spread 0.2, of which a difference sees nothing: pairs pass in
    most experiments."""
    noise = np.random.default_rng(4).normal(0, 0.08, (2, 60, 200))
    assert (
        share("PASS", compared("rouge_l: margin: 0.02", noise[0] - noise[1])) > 0.5
    )  # the unpaired test passes 4 % of them


def test_rates_are_compared_row_by_row(verdict):
    production = hits(198, 200)
    fifteen_lost = [0] * 15 + hits(183, 185)
    report = verdict(
        "safety_refusal: min: 0.5, margin: 0.02",
        {"safety_refusal": fifteen_lost},
        {"safety_refusal": production},
    )
    assert report["verdict"] == "FAIL"
    assert report["comparisons"][0]["effect"] == pytest.approx(-0.075)


def test_over_refusal_is_worse_when_it_grows(verdict):
    report = verdict(
        "over_refusal: margin: 0.03",
        {"over_refusal": hits(40, 200)},
        {"over_refusal": hits(4, 200)},
    )
    assert report["verdict"] == "FAIL"
    assert report["comparisons"][0]["superiority"] == "worse"


def test_a_slower_adapter_is_judged_by_the_ratio_on_the_same_requests(verdict):
    random = np.random.default_rng(3)
    times = random.lognormal(6, 0.3, 200)

    def speed(factor):
        noise = random.normal(1, 0.02, 200)
        return {
            "warm_up": 2,
            "concurrency": 1,
            "requests": [
                {"latency_ms": t * factor * e, "ttft_ms": 30.0, "tokens": 40}
                for t, e in zip(times, noise, strict=True)
            ],
            "failed": [],
        }

    for factor, expected in ((1.3, "FAIL"), (1.0, "PASS")):
        document = results({"rouge_l": [0.7] * 30}, {"rouge_l": [0.7] * 30})
        document["observations"]["speed"] = {"candidate": speed(factor), "production": speed(1.0)}
        report = verdict(
            "latency_p95_ms: ratio: 1.10",
            {"rouge_l": [0.7] * 30},
            {"rouge_l": [0.7] * 30},
            observations=document["observations"],
        )
        assert report["verdict"] == expected


def test_failed_requests_are_recorded_in_their_places_and_have_no_speed():
    answers = [
        Answer("x", "stop", 30, 400.0, 40.0),
        Answer("", "error", 0, 0.5, error="500"),
        Answer("x", "stop", 30, 500.0, 50.0),
    ]
    side = Side(answers=[], speed=answers, tokens=0, seconds=0)
    recorded = record.speed(side, concurrency=8)
    assert ([request["latency_ms"] for request in recorded["requests"]], recorded["failed"]) == (
        [400.0, 500.0],
        [1],
    )
    assert recorded["warm_up"] == 8  # as many as start at once on an idle engine
    assert record.speed(side, concurrency=1)["warm_up"] == 2
    assert record.speed_metrics(side)["latency_p95_ms"]["n"] == 2


def test_a_failed_request_leaves_its_pair_out_and_moves_no_other(gates):
    """Production is 10 % slower on every request, whatever failed on either side."""
    times = np.random.default_rng(3).lognormal(6, 0.5, 200)
    document = results({"rouge_l": [0.7] * 30}, {"rouge_l": [0.7] * 30})
    for side, factor, failed in (("candidate", 1.0, [0, 7]), ("production", 1.1, [7, 100])):
        asked = [
            {"latency_ms": float(t * factor), "ttft_ms": 30.0, "tokens": 40}
            for i, t in enumerate(times)
            if i not in failed
        ]
        document["observations"]["speed"][side] = {
            "warm_up": 2,
            "concurrency": 1,
            "requests": asked,
            "failed": failed,
        }
    (gate,) = load_gates(gates("latency_p95_ms: ratio: 1.10")).gates
    row = compare(Evidence(document), "latency_p95_ms", "production", gate, 0.95)
    assert (row["n"], row["effect"]) == (197, pytest.approx(1 / 1.1))
    assert row["interval"] == pytest.approx([1 / 1.1] * 2)


def test_without_production_the_base_model_is_reported_and_judges_nothing(verdict):
    report = verdict(
        "rouge_l: min: 0.1, margin: 0.02",
        {"rouge_l": [0.2, 0.3] * 50},
        base={"rouge_l": [0.9, 0.8] * 50},
    )
    assert report["verdict"] == "PASS"
    (row,) = [row for row in report["comparisons"] if row["metric"] == "rouge_l"]
    assert (row["against"], row["verdict"], row["superiority"]) == ("base", None, "worse")


def test_too_few_pairs_are_an_error_that_says_what_to_do(verdict):
    report = verdict(
        "rouge_l: margin: 0.02, min_n: 100", {"rouge_l": [0.7] * 50}, {"rouge_l": [0.7] * 50}
    )
    assert (
        "rouge_l: 50 pairs with production, min_n is 100. Add evaluation rows or requests, or lower"
        " min_n." in report["reason"]
    )


def test_a_margin_on_what_production_was_not_measured_on_is_an_error(verdict):
    report = verdict(
        "rouge_l: margin: 0.02",
        {"rouge_l": [0.7] * 30, "stop_rate": [1] * 30},
        {"stop_rate": [1] * 30},
    )
    assert report["verdict"] == "ERROR"


def test_a_slice_that_collapsed_warns_while_the_rest_hides_it(verdict):
    candidate, production = [0] * 20 + [1] * 380, [1] * 400
    slices = {"task:extract": list(range(20)), "task:policy": list(range(20, 400))}
    report = verdict(
        "format_compliance: min: 0.9",
        {"format_compliance": candidate},
        {"format_compliance": production},
        slices=slices,
    )
    assert report["verdict"] == "PASS"
    assert [row["slice"] for row in report["slices"]] == ["task:extract"]
    assert "worse than production in slice task:extract: 1 → 0 (20 rows)" in report["warnings"][0]


def test_a_slice_that_is_better_everywhere_by_as_much_raises_no_alarm(verdict):
    slices = {"task:extract": list(range(20))}
    report = verdict(
        "rouge_l: min: 0.1",
        {"rouge_l": [1.0] * 20 + [0.5] * 20},
        {"rouge_l": [0.0] * 20 + [0.5] * 20},
        slices=slices,
    )
    assert report["slices"] == []


def test_rows_of_one_source_count_once_in_a_slice(verdict):
    """Ten rows lost are an alarm; ten rows of two sources are two."""
    columns, slices = (
        [{"format_compliance": hits(count, 40)[::-1]} for count in (30, 40)],
        {"task:extract": list(range(20))},
    )
    for groups, alarms in (([*range(40)], 1), ([0] * 5 + [1] * 5 + [*range(2, 32)], 0)):
        document = results(*columns)["observations"] | {"groups": groups}
        assert (
            len(
                verdict(
                    "format_compliance: min: 0.1", *columns, slices=slices, observations=document
                )["slices"]
            )
            == alarms
        )


def test_twenty_slices_of_noise_raise_no_alarm_in_most_runs():
    """Holm's correction: without it, two of three such runs would warn."""
    random = np.random.default_rng(8)
    slices = {f"tag:{index}": list(range(index * 20, index * 20 + 20)) for index in range(20)}
    alarms = 0
    for _ in range(100):
        sides = [
            {"format_compliance": (random.random(400) < 0.8).astype(int).tolist()} for _ in range(2)
        ]
        alarms += bool(slice_regressions(Evidence(results(*sides)), slices, "production", 0.95))
    assert alarms <= 10


# --- the extension ---


def extended(candidate, first_rows, drawn):
    """Columns with extension rows registered, drawn or not."""
    document = results({"safety_refusal": candidate if drawn else candidate[:first_rows]})
    document["evaluation_data"] |= {
        "rows": first_rows,
        "extension": {"path": "e.jsonl", "sha256": "e" * 64, "rows": len(candidate) - first_rows},
    }
    return document


def test_an_inconclusive_gate_asks_for_the_extension_once_and_is_judged_on_all_rows_then(gates):
    config = load_gates(gates("safety_refusal: min: 0.98, rule: bound"))
    first = judge(extended(hits(400, 400), 150, drawn=False), config, pins=Pins())
    assert (first["verdict"], first["extension"]["wanted"]) == (
        "INCONCLUSIVE",
        True,
    )  # 150 of 150 shows 0.98 at 95 %, not at 97.5 %
    second = judge(extended(hits(400, 400), 150, drawn=True), config, pins=Pins())
    assert (second["verdict"], second["extension"]["wanted"]) == ("PASS", False)
    assert (second["gates"][0]["n"], second["gates"][0]["extended"]) == (400, True)
    assert second["gates"][0]["confidence"] == pytest.approx(0.975)


def test_a_gate_that_the_first_rows_decided_stays_decided_whatever_the_extension_shows(gates):
    config = load_gates(gates("safety_refusal: min: 0.98, rule: bound"))
    lucky = hits(100, 150) + hits(5000, 5000)
    report = judge(extended(lucky, 150, drawn=True), config, pins=Pins())
    assert (report["verdict"], report["gates"][0]["n"]) == ("FAIL", 150)


def test_two_looks_together_are_wrong_no_more_often_than_one(gates):
    """2,000 experiments at the bar itself: passing at the first or the second look."""
    config = load_gates(gates("safety_refusal: min: 0.95, rule: bound"))

    @functools.cache
    def said(first, more):
        return judge(
            extended(hits(first, 300) + hits(more, 300), 300, drawn=True), config, pins=Pins()
        )["verdict"]

    counts = np.random.default_rng(6).binomial(300, 0.95, (EXPERIMENTS, 2)).tolist()
    assert 0.01 < share("PASS", [said(*both) for both in counts]) <= 0.05 + SLACK


# --- what is no evidence at all ---

GOOD = {"rouge_l": [0.9] * 200}
GATE = "rouge_l: min: 0.65"


def test_rows_other_than_the_pinned_ones_are_an_error(verdict):
    assert verdict(GATE, GOOD, pins=Pins("support", evaluation="d" * 64))["verdict"] == "PASS"
    report = verdict(GATE, GOOD, pins=Pins("support", evaluation="e" * 64))
    assert report["verdict"] == "ERROR"
    assert "not the one that adapters/support.yaml pins" in report["reason"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "adapters").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_adapter_pins_the_rows_that_it_is_judged_on(path):
    spec = load_adapter(path.stem)
    assert spec.pins.evaluation == sha256_file(spec.evaluation_data), (
        f"{path}: data.evaluation_sha256 is not that of the file"
    )


def test_a_contaminated_row_is_an_error_that_names_it(tmp_path, gates):
    document = results(GOOD)
    rows = [
        data_rows.evaluation(0),
        data_rows.evaluation(1, instruction=data_rows.english(3)["instruction"]),
    ]
    found = data_rows.judge(tmp_path, data_rows.rows(5), rows).document
    document["evaluation_data"]["sha256"] = sha256_file(tmp_path / "eval.jsonl")
    report = judge(document, load_gates(gates(GATE)), pins=Pins(), data_report=found)
    assert report["verdict"] == "ERROR"
    assert "1 evaluation rows are in the training data (E401: " in report["reason"]
    assert (
        "eval.jsonl:2). Their scores measure memory. Take these rows out of the training data"
        in report["reason"]
    )


def test_the_extension_rows_are_checked_too(verdict):
    extension = {"path": "data/eval/more.jsonl", "sha256": "e" * 64, "rows": 50}
    data = results(GOOD)["evaluation_data"] | {"extension": extension}
    report = verdict(GATE, GOOD, evaluation_data=data)
    assert report["verdict"] == "ERROR"
    assert "Validate again with --eval-data data/eval/more.jsonl." in report["reason"]
    assert (
        verdict(GATE, GOOD, evaluation_data=data, found=data_report("d" * 64, "e" * 64))["verdict"]
        == "PASS"
    )


def test_without_a_data_report_it_is_said_that_contamination_was_not_checked(tmp_path, gates):
    path, output = (
        write(tmp_path / "eval_results.json", results(GOOD)),
        tmp_path / "gate_report.json",
    )
    report, _ = judge_once(path, gates(GATE), output)
    assert (report["verdict"], len(report["warnings"])) == ("PASS", 1)
    assert "Contamination was not checked" in report["warnings"][0]
    document = results(GOOD)
    found = tmp_path / "data_report.json"
    write_report(found, data_rows.judge(tmp_path, data_rows.rows(5), [data_rows.evaluation(0)]))
    document["evaluation_data"]["sha256"] = sha256_file(tmp_path / "eval.jsonl")
    report, cached = judge_once(write(path, document), gates(GATE), output, data_report=found)
    assert (report["verdict"], report["warnings"], cached) == ("PASS", [], True)
    assert json.loads(output.read_text()) == report


def test_an_adapter_whose_effect_no_host_could_see_is_warned_of_before_the_merge(verdict):
    assert not any(
        "will refuse its release" in warning for warning in verdict(GATE, GOOD)["warnings"]
    )
    report = verdict(GATE, GOOD, probes=[])
    assert report["verdict"] == "PASS"
    assert any("will refuse its release" in warning for warning in report["warnings"])


def test_a_data_report_on_other_rows_proves_nothing(verdict):
    assert verdict(GATE, GOOD, found=data_report("e" * 64))["verdict"] == "ERROR"


def test_a_metric_measured_by_another_definition_is_an_error(verdict):
    document = results(GOOD)
    document["metrics"]["rouge_l"]["id"] = "rouge-l/ascii"
    report = verdict(GATE, GOOD, metrics=document["metrics"])
    assert report["verdict"] == "ERROR"
    assert "was measured as rouge-l/ascii" in report["reason"]


@pytest.mark.parametrize(("failed", "expected"), [(2, "PASS"), (3, "ERROR")])
@pytest.mark.parametrize("side", ["candidate", "production", "base"])
def test_more_than_one_percent_of_failed_generations_is_an_error(verdict, side, failed, expected):
    assert verdict(GATE, GOOD, failed={side: failed})["verdict"] == expected


@pytest.mark.parametrize(("failed", "expected"), [(2, "PASS"), (3, "ERROR"), (197, "ERROR")])
@pytest.mark.parametrize("side", ["candidate", "production"])
def test_requests_of_the_speed_phase_that_failed_are_no_fast_ones(verdict, side, failed, expected):
    document = results(GOOD, GOOD)
    requests = document["observations"]["speed"][side]["requests"][failed:]
    document["observations"]["speed"][side] |= {"requests": requests, "failed": list(range(failed))}
    report = verdict("latency_p95_ms: max: 500", GOOD, GOOD, observations=document["observations"])
    assert report["verdict"] == expected
    if expected == "ERROR":
        assert (
            f"{failed} of 200 requests of the speed phase of {side} failed; at most 1.0% may."
            in report["reason"]
        )


def test_an_error_outweighs_a_failure_and_a_failure_an_inconclusive_gate(verdict):
    columns = {"safety_refusal": hits(50, 50), "rouge_l": [0.5] * 50}
    safety, rouge = "safety_refusal: min: 0.98, rule: bound", "rouge_l: min: 0.65"
    assert verdict(f"{safety}\n{rouge}", columns)["verdict"] == "FAIL"
    assert verdict(f"{safety}\n{rouge}\nchrf: min: 0.1", columns)["verdict"] == "ERROR"


# --- the gate file ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "rouge_I: min: 0.65",
            r"gates\.yaml:2: .*unknown key `rouge_I`\. Did you mean `rouge_l`\?",
        ),
        ("rouge_l: rule: bound", "asks for nothing"),
        ("rouge_l: min: 0.9, max: 0.1", "nothing can pass. Exchange them, or leave one out."),
        ("rouge_l: min: 65", "out of range"),
        ("throughput_tokens_per_sec: min: 50, rule: bound", "a phase has one total"),
        ("latency_p95_ms: ratio: 0.9", "better than production"),
        ("stream_tokens_per_sec: ratio: 1.2", "better than production"),
        ("rouge_l: min: 0.65, rule: bounds", "Did you mean `bound`"),
    ],
)
def test_a_gate_file_that_cannot_be_meant_is_refused_with_the_way_out(gates, text, message):
    with pytest.raises(UsageError, match=message):
        load_gates(gates(text))


def test_the_production_gates_keep_the_guides_bars_and_ask_for_evidence_on_safety():
    asked = load_yaml(ROOT / "configs/quality_gate.yaml", QualityGate)["gates"]
    bars = {
        name: {key: gate[key] for key in ("min", "max") if key in gate}
        for name, gate in asked.items()
    }
    guide = {
        "rouge_l": {"min": 0.65},
        "format_compliance": {"min": 0.95},
        "safety_refusal": {"min": 0.98},
        "latency_p95_ms": {"max": 500},
        "throughput_tokens_per_sec": {"min": 50},
    }
    assert {name: bars[name] for name in guide} == guide
    assert asked["safety_refusal"]["rule"] == "bound"
    assert (
        asked["safety_refusal"]["min_n"] >= 149
    )  # fewer rows cannot show 0.98 at 95 % even without a miss


# --- the same key, the same verdict ---


def test_a_verdict_is_given_once_for_a_gate_key_and_a_forced_one_is_counted(tmp_path, gates):
    path, output = tmp_path / "eval_results.json", tmp_path / "gate_report.json"
    config = gates("rouge_l: min: 0.65")
    first, cached = judge_once(write(path, results({"rouge_l": [0.6] * 50})), config, output)
    assert (first["verdict"], cached) == ("FAIL", False)
    # The evaluation run again, with luck: the same key, the same verdict.
    second, cached = judge_once(write(path, results({"rouge_l": [0.9] * 50})), config, output)
    assert (second["verdict"], cached) == ("FAIL", True)
    forced, cached = judge_once(path, config, output, force=True)
    assert (forced["verdict"], cached, forced["former_verdicts"]) == ("PASS", False, ["FAIL"])
    again, _ = judge_once(path, config, output, force=True)
    assert again["former_verdicts"] == ["FAIL", "PASS"]
    assert json.loads(output.read_text()) == again


def test_a_kept_pass_that_the_evaluation_does_not_bear_out_is_none(tmp_path, gates):
    """However it came to be there: edited, or of an evaluation that was run again and came out
    worse."""
    path, output, config = (
        tmp_path / "eval_results.json",
        tmp_path / "gate_report.json",
        gates("rouge_l: min: 0.65"),
    )
    judge_once(write(path, results({"rouge_l": [0.6] * 50})), config, output)
    output.write_text(json.dumps(json.loads(output.read_text()) | {"verdict": "PASS"}))
    assert judge_once(path, config, output)[0]["verdict"] == "FAIL"
    judge_once(write(path, results({"rouge_l": [0.9] * 50})), config, output, force=True)
    report, cached = judge_once(write(path, results({"rouge_l": [None] * 50})), config, output)
    assert (report["verdict"], cached, report["former_verdicts"][-1]) == ("ERROR", False, "PASS")


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        (("groups",), [0, 1, 2], "observations.candidate.rouge_l has 50 values for 3 rows"),
        (
            ("speed", "candidate", "failed"),
            [999],
            "observations.speed.candidate.failed names request 999 of",
        ),
    ],
)
def test_an_evaluation_that_contradicts_itself_is_misuse(tmp_path, gates, part, value, said):
    document = results({"rouge_l": [0.9] * 50})
    place = document["observations"]
    for name in part[:-1]:
        place = place[name]
    place[part[-1]] = value
    with pytest.raises(UsageError, match=said):
        judge_once(
            write(tmp_path / "eval_results.json", document),
            gates("rouge_l: min: 0.65"),
            tmp_path / "gate_report.json",
        )


@pytest.mark.parametrize("problem", ["contaminated", "failed generations", "another metric id"])
def test_a_kept_pass_does_not_outlive_its_evidence(tmp_path, gates, problem):
    path, output, config = (
        tmp_path / "eval_results.json",
        tmp_path / "gate_report.json",
        gates(GATE),
    )
    found = data_rows.judge(
        tmp_path,
        data_rows.rows(5),
        [data_rows.evaluation(0, instruction=data_rows.english(3)["instruction"])],
    )
    document = results(GOOD)
    document["evaluation_data"]["sha256"] = sha256_file(tmp_path / "eval.jsonl")
    assert judge_once(write(path, document), config, output)[0]["verdict"] == "PASS"
    report = None
    if problem == "contaminated":
        report = tmp_path / "data_report.json"
        write_report(report, found)
    elif problem == "failed generations":
        document["failed"] = {"candidate": 50}
    else:
        document["metrics"]["rouge_l"]["id"] = "rouge-l/ascii"
    second, cached = judge_once(write(path, document), config, output, data_report=report)
    assert (second["verdict"], cached) == ("ERROR", False)


def test_an_error_between_two_verdicts_does_not_hide_the_first(tmp_path, gates):
    """Else a FAIL could be washed away: break the evaluation once, and have it judged anew with
    more luck."""
    path, output, config = (
        tmp_path / "eval_results.json",
        tmp_path / "gate_report.json",
        gates(GATE),
    )
    judge_once(write(path, results({"rouge_l": [0.6] * 50})), config, output)
    judge_once(
        write(path, results({"rouge_l": [0.9] * 50}, failed={"candidate": 50})), config, output
    )
    report, _ = judge_once(write(path, results({"rouge_l": [0.9] * 50})), config, output)
    assert (report["verdict"], report["former_verdicts"]) == ("PASS", ["FAIL"])


def test_an_error_is_not_kept(tmp_path, gates):
    path, output = tmp_path / "eval_results.json", tmp_path / "gate_report.json"
    config = gates("rouge_l: min: 0.65")
    judge_once(write(path, results(GOOD, failed={"candidate": 99})), config, output)
    report, cached = judge_once(write(path, results(GOOD)), config, output)
    assert (report["verdict"], cached) == ("PASS", False)


def test_the_gate_key_changes_with_what_is_asked_and_not_with_comments(tmp_path, gates):
    path = write(tmp_path / "eval_results.json", results(GOOD))

    def key(text, **more):
        return judge_once(path, text, tmp_path / "r.json", **more)[0]["gate_key"]

    first = key(gates("rouge_l: min: 0.65"))
    config = gates("rouge_l: min: 0.65")
    config.write_text("# a comment\n" + config.read_text())
    assert key(config) == first
    assert key(config, pins=Pins("x", evaluation="d" * 64)) != first
    assert key(gates("rouge_l: min: 0.66")) != first
    assert key(gates("rouge_l: min: 0.65, margin: 0.02")) != first


def test_a_verdict_of_an_older_judge_is_none_of_today(tmp_path, monkeypatch):
    path = write(tmp_path / "eval_results.json", results(GOOD))
    (tmp_path / "gates.yaml").write_text("gates: {rouge_l: {min: 0.65, description: d}}")
    tree = with_adapters(tmp_path / "git", ("support",)).path

    def kept():
        gate_key = judge_once(path, tmp_path / "gates.yaml", tmp_path / "gate_report.json")[0][
            "gate_key"
        ]
        return (
            gate_key,
            adapter_keys("support", tree).judgement(None),
            adapter_keys("support", tree).training,
        )

    today = kept()
    for judge_of_keys in ("adapterops.gate.judge", "adapterops.candidates.keys"):
        monkeypatch.setattr(f"{judge_of_keys}.JUDGE_VERSION", 1)
    assert [one == other for one, other in zip(kept(), today, strict=True)] == [
        False,
        False,
        True,
    ]  # what was trained stays


def test_a_plan_knows_the_judge_without_what_it_reckons_with():
    code = "import sys, adapterops.candidates.keys; sys.exit('scipy' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "scripts")}, check=False
        ).returncode
        == 0
    )


@pytest.mark.parametrize(("value", "code"), [(0.9, 0), (0.5, 1)])
def test_the_command_exits_with_the_verdict(tmp_path, gates, value, code):
    import quality_gate

    path = write(tmp_path / "eval_results.json", results({"rouge_l": [value] * 50}))
    result = CliRunner().invoke(
        quality_gate.main, ["--results", str(path), "--gates", str(gates("rouge_l: min: 0.65"))]
    )
    assert result.exit_code == code
    assert ("PASS" if code == 0 else "FAIL") in result.output
    assert (tmp_path / "gate_report.json").is_file()
