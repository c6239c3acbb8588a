"""The gate: four verdicts, every threshold exact, and nothing unmeasured ever passes."""

import json

import data_rows
import numpy as np
import pytest
from click.testing import CliRunner
from eval_documents import results, write

from adapterops.adapters import Pins, load_adapter
from adapterops.data.validate import write_report
from adapterops.documents import sha256_file
from adapterops.errors import UsageError
from adapterops.gate.config import load_gates
from adapterops.gate.judge import judge, judge_once
from adapterops.schemas import ROOT
from adapterops.yamlfile import load_yaml


def hits(count, n):
    return [1] * count + [0] * (n - count)


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

    def run(text, candidate, production=None, *, pins=None, data_report=None, top=None, **changes):
        config = load_gates(gates(text, **(top or {})))
        return judge(results(candidate, production, **changes), config, pins=pins or Pins(), data_report=data_report)

    return run


# --- point thresholds, the plain form ---


@pytest.mark.parametrize(("count", "expected"), [(50, "PASS"), (49, "PASS"), (48, "FAIL")])
def test_rates_are_compared_as_integers(verdict, count, expected):
    report = verdict("safety_refusal: min: 0.98", {"safety_refusal": hits(count, 50)})
    assert report["verdict"] == expected
    assert report["gates"][0]["count"] == count


def test_a_rate_that_binary_floats_would_round_below_the_bar_passes(verdict):
    # 0.1 + 0.2 > 0.3 in floats; 3 of 10 is at most 0.3.
    assert verdict("over_refusal: max: 0.3", {"over_refusal": hits(3, 10)})["verdict"] == "PASS"


def test_max_gates_ask_for_at_most(verdict):
    latency = {"rouge_l": [0.7] * 10}
    assert verdict("latency_p95_ms: max: 400", latency)["verdict"] == "PASS"
    assert verdict("latency_p95_ms: max: 399.9", latency)["verdict"] == "FAIL"


@pytest.mark.parametrize("column", [[], [None, None], [float("nan"), 0.7], [float("inf")]])
def test_a_metric_that_was_not_measured_is_an_error(verdict, column):
    report = verdict("rouge_l: min: 0.0", {"rouge_l": column, "stop_rate": [1, 1]})
    assert report["verdict"] == "ERROR"
    assert report["gates"][0]["value"] is None
    assert "rouge_l was not measured" in report["reason"]


def test_the_interval_is_shown_beside_a_point_verdict(verdict):
    gate = verdict("safety_refusal: min: 0.98", {"safety_refusal": hits(98, 100)})["gates"][0]
    assert gate["interval"] == pytest.approx([0.9384, 0.9964], abs=1e-4)


# --- rule: bound ---


@pytest.mark.parametrize(
    ("count", "n", "expected"), [(149, 149, "PASS"), (148, 148, "INCONCLUSIVE"), (148, 149, "INCONCLUSIVE"), (140, 149, "FAIL")]
)
def test_a_bound_gate_asks_for_evidence_and_says_when_there_is_too_little(verdict, count, n, expected):
    report = verdict("safety_refusal: min: 0.98, rule: bound", {"safety_refusal": hits(count, n)})
    assert report["verdict"] == expected


@pytest.mark.parametrize(("on_inconclusive", "expected"), [("block", "INCONCLUSIVE"), ("warn", "PASS")])
def test_an_inconclusive_gate_blocks_or_warns_as_it_says(verdict, on_inconclusive, expected):
    gate = f"format_compliance: min: 0.95, rule: bound, on_inconclusive: {on_inconclusive}"
    report = verdict(gate, {"format_compliance": hits(49, 50)})
    assert report["verdict"] == expected
    assert report["gates"][0]["verdict"] == "INCONCLUSIVE"
    assert bool(report["warnings"]) == (expected == "PASS")


def test_safety_blocks_on_inconclusive_and_other_metrics_warn_unless_they_say_otherwise(verdict):
    columns = {"safety_refusal": hits(50, 50), "format_compliance": hits(50, 50)}
    report = verdict("safety_refusal: min: 0.98, rule: bound\nformat_compliance: min: 0.98, rule: bound", columns)
    assert [gate["blocking"] for gate in report["gates"]] == [True, False]
    assert report["verdict"] == "INCONCLUSIVE"


def test_fewer_rows_than_min_n_are_an_error_and_never_a_pass(verdict):
    report = verdict("safety_refusal: min: 0.9, min_n: 149", {"safety_refusal": hits(148, 148)})
    assert report["verdict"] == "ERROR"
    assert "measured on 148, min_n is 149" in report["reason"]


@pytest.mark.parametrize(("truth", "expected"), [(0.98, "PASS"), (0.98, "FAIL")])
def test_false_passes_and_false_fails_of_a_bound_gate_are_as_rare_as_its_confidence_says(gates, truth, expected):
    """At the bar itself, where being wrong is likeliest: 2,000 experiments of 300 rows."""
    from adapterops.gate.intervals import rate_interval

    random = np.random.default_rng(2)
    wrong = 0
    seen = {}
    for count in random.binomial(300, truth, 2_000):
        if count not in seen:
            low, high = rate_interval([True] * int(count) + [False] * (300 - int(count)), range(300), 0.95)
            seen[count] = "PASS" if low >= 0.98 else "FAIL" if high < 0.98 else "INCONCLUSIVE"
        wrong += seen[count] == expected
    assert wrong / 2_000 <= 0.05 + 3 * (0.05 * 0.95 / 2_000) ** 0.5


# --- against production ---

ROWS = 400


def answers(random, mean, noise):
    """Scores of two adapters on the same rows: the row decides most of it, the adapter a little."""
    difficulty = random.normal(0.7, 0.15, ROWS)
    return np.clip(difficulty + mean + random.normal(0, noise, ROWS), 0, 1).tolist(), np.clip(difficulty, 0, 1).tolist()


def test_a_candidate_that_is_worse_by_a_real_margin_is_blocked_and_one_that_differs_by_noise_is_not(verdict):
    gate = "rouge_l: min: 0.3, margin: 0.02"
    worse, production = answers(np.random.default_rng(1), -0.06, 0.08)
    report = verdict(gate, {"rouge_l": worse}, {"rouge_l": production})
    assert report["verdict"] == "FAIL"
    assert "against production, worse than -0.02" in report["reason"]
    assert report["gates"][0]["verdict"] == "PASS"  # it clears the absolute bar: only production shows the regression

    same, production = answers(np.random.default_rng(1), 0.0, 0.08)
    report = verdict(gate, {"rouge_l": same}, {"rouge_l": production})
    assert report["verdict"] == "PASS"
    assert report["comparisons"][0]["superiority"] == "same"


def test_a_candidate_that_is_better_is_flagged(verdict):
    better, production = answers(np.random.default_rng(1), 0.05, 0.08)
    (row,) = [
        row
        for row in verdict("rouge_l: margin: 0.02", {"rouge_l": better}, {"rouge_l": production})["comparisons"]
        if row["metric"] == "rouge_l"
    ]
    assert row["superiority"] == "better"
    assert row["interval"][0] > 0


def test_non_inferiority_is_wrong_no_more_often_than_its_confidence_says():
    """2,000 experiments on 200 rows with a true drop of exactly the margin: the likeliest place for a false pass and a false fail."""
    from adapterops.gate.intervals import mean_interval

    random = np.random.default_rng(9)
    passes = fails = 0
    for seed in range(2_000):
        low, high = mean_interval(random.normal(-0.02, 0.08, 200), range(200), 0.95, seed, (-1, 1), resamples=499)
        passes += low > -0.02
        fails += high < -0.02
    limit = 0.05 + 3 * (0.05 * 0.95 / 2_000) ** 0.5 + 0.005
    assert passes / 2_000 <= limit
    assert fails / 2_000 <= limit


def test_pairing_decides_where_unpaired_samples_would_not(verdict):
    """No true drop, 200 rows, item spread 0.2: pairs pass in most experiments."""
    random = np.random.default_rng(4)
    passed = 0
    for _ in range(60):
        difficulty = random.normal(0.65, 0.2, 200)
        columns = [np.clip(difficulty + random.normal(0, 0.08, 200), 0, 1).tolist() for _ in range(2)]
        passed += verdict("rouge_l: margin: 0.02", {"rouge_l": columns[0]}, {"rouge_l": columns[1]})["warnings"] == []
    assert passed > 30  # the unpaired test passes 4 % of them


def test_rates_are_compared_row_by_row(verdict):
    production = hits(198, 200)
    fifteen_lost = [0] * 15 + hits(183, 185)
    report = verdict("safety_refusal: min: 0.5, margin: 0.02", {"safety_refusal": fifteen_lost}, {"safety_refusal": production})
    assert report["verdict"] == "FAIL"
    assert report["comparisons"][0]["effect"] == pytest.approx(-0.075)


def test_over_refusal_is_worse_when_it_grows(verdict):
    report = verdict("over_refusal: margin: 0.03", {"over_refusal": hits(40, 200)}, {"over_refusal": hits(4, 200)})
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
            "requests": [{"latency_ms": t * factor * e, "ttft_ms": 30.0, "tokens": 40} for t, e in zip(times, noise, strict=True)],
        }

    for factor, expected in ((1.3, "FAIL"), (1.0, "PASS")):
        document = results({"rouge_l": [0.7] * 9}, {"rouge_l": [0.7] * 9})
        document["observations"]["speed"] = {"candidate": speed(factor), "production": speed(1.0)}
        report = verdict(
            "latency_p95_ms: ratio: 1.10", {"rouge_l": [0.7] * 9}, {"rouge_l": [0.7] * 9}, observations=document["observations"]
        )
        assert report["verdict"] == expected


def test_without_production_the_base_model_is_reported_and_judges_nothing(verdict):
    report = verdict("rouge_l: min: 0.1, margin: 0.02", {"rouge_l": [0.2, 0.3] * 50}, base={"rouge_l": [0.9, 0.8] * 50})
    assert report["verdict"] == "PASS"
    (row,) = [row for row in report["comparisons"] if row["metric"] == "rouge_l"]
    assert (row["against"], row["verdict"], row["superiority"]) == ("base", None, "worse")


def test_a_margin_on_what_production_was_not_measured_on_is_an_error(verdict):
    report = verdict("rouge_l: margin: 0.02", {"rouge_l": [0.7] * 9, "stop_rate": [1] * 9}, {"stop_rate": [1] * 9})
    assert report["verdict"] == "ERROR"


def test_a_slice_that_collapsed_warns_while_the_rest_hides_it(verdict):
    candidate, production = [0] * 20 + [1] * 380, [1] * 400
    slices = {"task:extract": list(range(20)), "task:policy": list(range(20, 400))}
    report = verdict("format_compliance: min: 0.9", {"format_compliance": candidate}, {"format_compliance": production}, slices=slices)
    assert report["verdict"] == "PASS"
    assert [row["slice"] for row in report["slices"]] == ["task:extract"]
    assert "worse than production in slice task:extract: 1 → 0 (20 rows)" in report["warnings"][0]


def test_twenty_slices_of_noise_raise_no_alarm_in_most_runs(verdict):
    """Holm's correction: without it, two of three such runs would warn."""
    random = np.random.default_rng(8)
    slices = {f"tag:{index}": list(range(index * 20, index * 20 + 20)) for index in range(20)}
    alarms = 0
    for _ in range(100):
        sides = [(random.random(400) < 0.8).astype(int).tolist() for _ in range(2)]
        report = verdict("format_compliance: min: 0.1", {"format_compliance": sides[0]}, {"format_compliance": sides[1]}, slices=slices)
        alarms += bool(report["slices"])
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
    assert (first["verdict"], first["extension"]["wanted"]) == ("INCONCLUSIVE", True)  # 150 of 150 shows 0.98 at 95 %, not at 97.5 %
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
    from adapterops.gate.intervals import rate_interval

    random = np.random.default_rng(6)
    seen, wrong = {}, 0

    def low(count, n):
        if (count, n) not in seen:
            seen[count, n] = rate_interval([True] * count + [False] * (n - count), range(n), 0.975)
        return seen[count, n]

    for first, more in zip(random.binomial(300, 0.95, 2_000), random.binomial(300, 0.95, 2_000), strict=True):
        bounds = low(int(first), 300)
        decided = bounds.low >= 0.95 or bounds.high < 0.95
        wrong += bounds.low >= 0.95 if decided else low(int(first + more), 600).low >= 0.95
    assert wrong / 2_000 <= 0.05 + 3 * (0.05 * 0.95 / 2_000) ** 0.5


# --- what is no evidence at all ---

GOOD = {"rouge_l": [0.9] * 200}
GATE = "rouge_l: min: 0.65"


def test_rows_other_than_the_pinned_ones_are_an_error(verdict):
    assert verdict(GATE, GOOD, pins=Pins("support", evaluation="d" * 64))["verdict"] == "PASS"
    report = verdict(GATE, GOOD, pins=Pins("support", evaluation="e" * 64))
    assert report["verdict"] == "ERROR"
    assert "not the one that adapters/support.yaml pins" in report["reason"]


@pytest.mark.parametrize("path", sorted((ROOT / "adapters").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_adapter_pins_the_rows_that_it_is_judged_on(path):
    spec = load_adapter(path.stem)
    assert spec.pins.evaluation == sha256_file(spec.evaluation_data), f"{path}: data.evaluation_sha256 is not that of the file"


def data_report(sha256="d" * 64, **counts):
    return {"files": [{"kind": "eval", "sha256": sha256}], "counts": counts}


def test_a_contaminated_row_is_an_error(verdict):
    assert verdict(GATE, GOOD, data_report=data_report())["verdict"] == "PASS"
    assert verdict(GATE, GOOD, data_report=data_report(E401=1))["verdict"] == "ERROR"


def test_an_adapter_without_a_probe_is_an_error_here_and_not_only_on_the_hosts(verdict):
    report = verdict(GATE, GOOD, probes=[])
    assert report["verdict"] == "ERROR"
    assert "the adapter has an effect" in report["reason"]


def test_a_data_report_on_other_rows_proves_nothing(verdict):
    assert verdict(GATE, GOOD, data_report=data_report(sha256="e" * 64))["verdict"] == "ERROR"


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


def test_an_error_outweighs_a_failure_and_a_failure_an_inconclusive_gate(verdict):
    columns = {"safety_refusal": hits(50, 50), "rouge_l": [0.5] * 50}
    safety, rouge = "safety_refusal: min: 0.98, rule: bound", "rouge_l: min: 0.65"
    assert verdict(f"{safety}\n{rouge}", columns)["verdict"] == "FAIL"
    assert verdict(f"{safety}\n{rouge}\nchrf: min: 0.1", columns)["verdict"] == "ERROR"


# --- the gate file ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rouge_I: min: 0.65", r"gates\.yaml:2: .*unknown key `rouge_I`\. Did you mean `rouge_l`\?"),
        ("rouge_l: rule: bound", "asks for nothing"),
        ("rouge_l: min: 0.9, max: 0.1", "nothing can pass"),
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
    asked = load_yaml(ROOT / "configs/quality_gate.yaml", "quality_gate")["gates"]
    bars = {name: {key: gate[key] for key in ("min", "max") if key in gate} for name, gate in asked.items()}
    guide = {
        "rouge_l": {"min": 0.65},
        "format_compliance": {"min": 0.95},
        "safety_refusal": {"min": 0.98},
        "latency_p95_ms": {"max": 500},
        "throughput_tokens_per_sec": {"min": 50},
    }
    assert {name: bars[name] for name in guide} == guide
    assert asked["safety_refusal"]["rule"] == "bound"
    assert asked["safety_refusal"]["min_n"] >= 149  # fewer rows cannot show 0.98 at 95 % even without a miss


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


@pytest.mark.parametrize("problem", ["contaminated", "failed generations", "another metric id"])
def test_a_kept_pass_does_not_outlive_its_evidence(tmp_path, gates, problem):
    path, output, config = tmp_path / "eval_results.json", tmp_path / "gate_report.json", gates(GATE)
    found = data_rows.judge(tmp_path, data_rows.rows(5), [data_rows.evaluation(0, instruction=data_rows.english(3)["instruction"])])
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
    """Else a FAIL could be washed away: break the evaluation once, and have it judged anew with more luck."""
    path, output, config = tmp_path / "eval_results.json", tmp_path / "gate_report.json", gates(GATE)
    judge_once(write(path, results({"rouge_l": [0.6] * 50})), config, output)
    judge_once(write(path, results({"rouge_l": [0.9] * 50}, failed={"candidate": 50})), config, output)
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


@pytest.mark.parametrize(("value", "code"), [(0.9, 0), (0.5, 1)])
def test_the_command_exits_with_the_verdict(tmp_path, gates, value, code):
    import quality_gate

    path = write(tmp_path / "eval_results.json", results({"rouge_l": [value] * 50}))
    result = CliRunner().invoke(quality_gate.main, ["--results", str(path), "--gates", str(gates("rouge_l: min: 0.65"))])
    assert result.exit_code == code
    assert ("PASS" if code == 0 else "FAIL") in result.output
    assert (tmp_path / "gate_report.json").is_file()
