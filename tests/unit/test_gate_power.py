"""What a gate can decide is known before anything is trained, and is what the judge then does."""

import math
import re

import numpy as np
import pytest
from click.testing import CliRunner
from eval_documents import results, with_general, write
from scipy import stats

from adapterops.gate.compare import compare
from adapterops.gate.evidence import Evidence
from adapterops.gate.explain import explain, outlooks_of, problems_beforehand, rows_of, whole
from adapterops.gate.thresholds import judge_sample
from adapterops.schemas import ROOT
from adapterops.specs.adapter import load_adapter
from adapterops.specs.gate import load_gates
from adapterops.statistics.power import WANTED, measured_rows, outlooks
from repositories import with_adapters

ADAPTERS = sorted(path.stem for path in (ROOT / "adapters").glob("*.yaml"))


@pytest.fixture
def gate(tmp_path):
    """`gate("metric: margin: 0.02")`: the only gate of such a file."""

    def load(text):
        metric, asked = text.split(": ", 1)
        path = tmp_path / "gates.yaml"
        path.write_text(f"gates:\n  {metric}: {{{asked}, description: d}}\n")
        return load_gates(path).gates[0]

    return load


# --- the shipped gates on the shipped rows ---


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_shipped_gate_is_decidable_passes_an_equal_adapter_and_stops_a_worse_one(name):
    spec = load_adapter(name)
    found = outlooks_of(
        load_gates(spec.evaluation.gate), rows_of(spec), registered=bool(spec.extension_data)
    )
    for one in found:
        assert one.decidable, one
        assert one.equal is None or one.equal >= WANTED, one
        assert one.worse is None or one.worse >= WANTED, one
        # The demo's 38 rows with checks warn; every other margin blocks while it is undecided.
        assert (
            one.worse is None
            or one.blocks
            or (name, one.metric) == ("support-demo", "instruction_following")
        ), one
    assert math.prod(one.passes for one in found) >= WANTED
    assert problems_beforehand(spec, rows_of(spec)) == []


# --- chances against counting, and against the judge ---


def test_a_point_threshold_passes_at_its_bar_in_more_than_half_of_all_cases(gate):
    (outlook,) = outlooks(gate("latency_p95_ms: max: 500"), 200, 0.95)
    assert outlook.bar == pytest.approx(stats.binom.cdf(10, 200, 0.05))
    assert outlook.bar == pytest.approx(0.583, abs=1e-3)
    (outlook,) = outlooks(gate("format_compliance: min: 0.95"), 65, 0.95)
    assert outlook.bar == pytest.approx(stats.binom.sf(61, 65, 0.95))


@pytest.mark.parametrize(("expected", "chance"), [(0.98, 0.047), (0.995, 0.664), (1.0, 1.0)])
def test_a_bound_passes_as_the_binomial_distribution_says(gate, expected, chance):
    """Of 239 harmful requests one miss may be counted."""
    (outlook,) = outlooks(
        gate(f"safety_refusal: min: 0.98, rule: bound, expected: {expected}"), 239, 0.95
    )
    assert outlook.equal == pytest.approx(stats.binom.sf(237, 239, expected))
    assert outlook.equal == pytest.approx(chance, abs=1e-3)
    assert outlook.bar <= 0.05


def test_a_margin_that_the_rows_cannot_show_is_said_to_be_undecidable_with_what_it_takes(gate):
    (outlook,) = outlooks(gate("format_compliance: margin: 0.02"), 65, 0.95)
    assert not outlook.decidable
    assert outlook.needed > 149
    (enough,) = outlooks(gate("format_compliance: margin: 0.02"), outlook.needed, 0.95)
    assert enough.enough


def verdicts(gate, differences):
    """On a production that has what is lost, and lacks what is gained."""
    found, n = [], differences.shape[1]
    document = results({gate.metric: [0.0] * n}, {gate.metric: [0.0] * n})
    for number, row in enumerate(differences):
        document["eval_key"] = f"{number:064x}"
        document["observations"]["production"] = {gate.metric: (row <= 0).astype(float).tolist()}
        document["observations"]["candidate"] = {gate.metric: ((row <= 0) + row).tolist()}
        found.append(
            compare(Evidence(document), gate.metric, "production", gate, gate.confidence)["verdict"]
        )
    return found


@pytest.mark.parametrize(
    ("metric", "margin", "noise"), [("rouge_l", 0.03, 0.15), ("format_compliance", 0.06, 0.04)]
)
def test_the_judge_passes_an_equal_candidate_as_often_as_was_reckoned(gate, metric, margin, noise):
    asked = gate(f"{metric}: margin: {margin}, noise: {noise}")
    (outlook,) = outlooks(asked, 150, 0.95)
    random, experiments = np.random.default_rng(3), 60
    if metric == "rouge_l":
        differences = random.normal(0, noise, (experiments, 150))
    else:
        kind = random.random((experiments, 150))
        differences = np.where(kind < noise / 2, 1.0, np.where(kind < noise, -1.0, 0.0))
    passed = np.mean([one == "PASS" for one in verdicts(asked, differences)])
    assert passed == pytest.approx(outlook.equal, abs=3 * math.sqrt(0.25 / experiments))


def test_rows_are_counted_as_they_are_scored():
    rows = [
        {"expected_output": "a"},
        {"expected_output": "{}", "expected_format": "json"},
        {"expected_output": "no", "should_refuse": True},
    ]
    counts = measured_rows(rows, 24)
    assert {
        name: counts[name]
        for name in ("rouge_l", "over_refusal", "format_compliance", "safety_refusal", "stop_rate")
    } == {
        "rouge_l": 2,
        "over_refusal": 2,
        "format_compliance": 1,
        "safety_refusal": 1,
        "stop_rate": 3,
    }
    assert counts["latency_p95_ms"] == 24


def test_general_rows_are_counted_by_slice_too():
    counts = rows_of(load_adapter("support-ko"))
    whole = {
        name: counts[name]
        for name in ("general_over_refusal", "instruction_following", "general_loss")
    }
    parts = [
        {name: counts[f"{name} in general-{language}"] for name in whole}
        for language in ("en", "ko")
    ]
    assert whole == {name: sum(part[name] for part in parts) for name in whole}
    assert min(parts[1].values()) > 100
    assert counts["over_refusal in general-ko"] == 0  # no row of the domain is in it


@pytest.mark.parametrize("asked", ["max: 0.1, rule: bound", "margin: 0.05"])
def test_a_bar_of_losses_is_decided_by_few_texts_only_where_it_is_far(gate, asked):
    (few,) = outlooks(gate(f"general_loss: {asked}, expected: 0.02, noise: 0.1"), 20, 0.95)
    assert not few.decidable
    (enough,) = outlooks(
        gate(f"general_loss: {asked}, expected: 0.02, noise: 0.1"), few.needed, 0.95
    )
    assert enough.enough
    assert enough.bar <= 0.05


@pytest.mark.parametrize("true", [0.04, 0.07, 0.1])
def test_the_judge_passes_a_loss_as_often_as_was_reckoned(gate, true):
    asked = gate(f"general_loss: max: 0.1, rule: bound, expected: {true}, noise: 0.12")
    (outlook,) = outlooks(asked, 150, 0.95)
    random, passed, experiments = np.random.default_rng(5), 0, 60
    for number in range(experiments):
        document = results({"rouge_l": [0.5]})
        texts = {"languages": ["en"] * 150, "base": [3.0] * 150, "production": None}
        texts["candidate"] = (3.0 + random.normal(true, 0.12, 150)).tolist()
        document = with_general(document | {"eval_key": f"{number:064x}"}, texts=texts)
        sample = Evidence(document).sample("candidate", "general_loss")
        passed += judge_sample(sample, asked, "max", 0.1, 0.95)["verdict"] == "PASS"
    assert passed / experiments == pytest.approx(
        outlook.equal, abs=3 * math.sqrt(0.25 / experiments)
    )


# --- before anything is trained ---


def spec_of(tmp_path, changes=()):
    repository = with_adapters(tmp_path, ("support",))
    for path, old, new in changes:
        text = (repository.path / path).read_text()
        assert old in text
        repository.write(path, text.replace(old, new))
    return load_adapter("support", repository.path / "adapters")


PIN = f"  evaluation_sha256: {'e' * 64}\n"
DEMO = "configs/quality_gate.demo.yaml"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            (
                "adapters/support.yaml",
                "  evaluation:",
                f"  evaluation_sha256: {'e' * 64}\n  evaluation:",
            ),
            "data.evaluation_sha256 pins eeeeeeeeeeee, but ",
        ),
        (
            ("data/eval/support.jsonl", ', "expected_format": "json"', ""),
            "format_compliance: no row measures it. Add rows with",
        ),
        (
            (DEMO, "max: 20000", "min_n: 25\n    max: 20000"),
            "latency_p95_ms.min_n is 25, and there are 24 requests",
        ),
        (
            (DEMO, "min: 0.80", "min: 0.98\n    rule: bound"),
            "min 0.98 (bound) cannot be decided on 20 rows with `should_refuse: true`",
        ),
        (
            (
                DEMO,
                "gates:\n",
                (
                    "slices:\n  - {slice: general-ko, metric: general_loss, max: 0.1, description:"
                    " d}\ngates:\n"
                ),
            ),
            "slices: general_loss in general-ko: no row measures it. Add general texts",
        ),
        (
            ("adapters/support.yaml", "general_rows: 54", "general_rows: 40"),
            "general_over_refusal.min_n is 50, and there are 40 general",
        ),
        (
            (DEMO, "max: 0.15", "max: 0.05\n    rule: bound\n    on_inconclusive: block"),
            "general_loss: max 0.05 (bound) cannot be decided on 34 general texts",
        ),
        (
            (DEMO, "margin: 0.08", "margin: 0.01"),
            "margin 0.01 cannot be decided on 40 rows without `should_refuse`",
        ),
    ],
)
def test_what_no_evaluation_could_pass_is_said_before_training(tmp_path, change, said):
    spec = spec_of(tmp_path, [change])
    problems = problems_beforehand(spec, rows_of(spec))
    assert len([problem for problem in problems if said in problem]) == 1, problems


def test_what_the_rows_can_decide_is_no_problem(tmp_path):
    spec = spec_of(tmp_path)
    assert problems_beforehand(spec, rows_of(spec)) == []


def test_the_explanation_names_every_gate_and_the_whole(tmp_path):
    spec = spec_of(tmp_path)
    config = load_gates(spec.evaluation.gate)
    lines = explain(config, rows_of(spec), registered=False)
    assert all(any(line.startswith(gate.metric) for line in lines) for gate in config.gates)
    assert re.match(r"Whole gate: an equal candidate passes 0\.\d\d\.", lines[-1])
    assert whole([]) == "Whole gate: an equal candidate passes 1.00."


def test_the_command_explains_without_judging(tmp_path):
    import quality_gate

    result = CliRunner().invoke(
        quality_gate.main, ["--explain", "--adapter", "support-demo", "--gates", str(ROOT / DEMO)]
    )
    assert result.exit_code == 0
    assert "format_compliance margin" in result.output
    assert "one exactly at the bar passes 0." in result.output


def test_the_command_takes_the_noise_from_an_evaluation(tmp_path):
    import quality_gate

    gates = tmp_path / "gates.yaml"
    gates.write_text("gates: {format_compliance: {margin: 0.1, description: d}}")
    calm, noisy = [1] * 100, [1, 0] * 50
    said = []
    for other in (calm, noisy):
        path = write(
            tmp_path / "eval_results.json",
            results({"format_compliance": other}, {"format_compliance": calm}),
        )
        said.append(
            CliRunner()
            .invoke(quality_gate.main, ["--explain", "--results", str(path), "--gates", str(gates)])
            .output
        )
    assert ["`: an equal candidate passes 1.00" in text for text in said] == [True, False]


@pytest.mark.parametrize("options", [["--explain"], []])
def test_the_command_says_what_it_needs(options):
    import quality_gate

    result = CliRunner().invoke(quality_gate.main, [*options, "--gates", str(ROOT / DEMO)])
    assert result.exit_code == 2
    assert "--results" in result.output
    assert "Traceback" not in result.output
