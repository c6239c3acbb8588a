"""Judge evaluation results against a gate file."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Sequence
from pathlib import Path

from adapterops.data.adjudicated import adjudicate, labels_key, labels_path, load_labels
from adapterops.documents import read_json, sha256_json, write_json
from adapterops.errors import UsageError
from adapterops.evaluate.samples import read_samples
from adapterops.gate.compare import UNMEASURED, compare, comparison_of, slice_regressions
from adapterops.gate.evidence import Evidence
from adapterops.gate.thresholds import against_thresholds, decide
from adapterops.gate.validity import (
    NO_PROBE,
    UNCHECKED,
    detector_misses,
    errors_of,
    refuse_contradictions,
    slice_warning,
)
from adapterops.gate.verdicts import SEVERITY, is_missed, worst
from adapterops.schemas import repository_path
from adapterops.shapes.data_report import DataReport
from adapterops.shapes.eval_results import EvalResults
from adapterops.shapes.gate_report import (
    Adjudicated,
    Base,
    Comparison,
    GateReport,
    Verdict,
)
from adapterops.shapes.gate_report import Gate as GateRow
from adapterops.specs.adapter import Pins, Rollout
from adapterops.specs.gate import JUDGE_VERSION, Gate, GateConfig, load_gates
from adapterops.specs.metric_catalogue import (
    GENERAL,
    METRIC_IDS,
    METRICS,
    WIN_RATE,
    Reference,
    reference_name,
)
from adapterops.statistics.power import per_look


def judge_once(
    results_path: Path,
    gates_path: Path,
    output: Path,
    *,
    pins: Pins | None = None,
    rollout: Rollout | None = None,
    data_report: Path | None = None,
    objections: Sequence[str] = (),
    force: bool = False,
) -> tuple[GateReport, bool]:
    """Judge a candidate and write the report, unless `output` holds the verdict of the same key.

    The same key gives the same verdict: an evaluation that is run again until luck passes it
    changes nothing. An ERROR is not kept: what was in the way may be mended.

    What was measured is judged all the same, and a verdict that is worse than the one that was
    given is given instead.

    Args:
        results_path: `eval_results.json` of the evaluate stage.
        gates_path: gate file.
        output: gate report to write.
        pins: what the adapter's specification fixes.
        rollout: how the specification has a release get its traffic; recorded, not judged.
        data_report: the validation that these evaluation rows passed; its contaminated rows are an
            ERROR. Without one the report warns that contamination was not checked.
        objections: what else the caller knows that makes this evaluation no evidence.
        force: judge anew; counted in the report.

    Returns:
        The report, and whether it was there already.

    Raises:
        UsageError: a document or the gate file is not what its schema says, or a gate asks for
            nothing.
    """
    pins = pins or Pins()
    results, config = read_json(results_path, EvalResults), load_gates(gates_path)
    refuse_contradictions(results, results_path)
    results, about, labels = _with_labels(results, results_path, pins.name)
    found = read_json(data_report, DataReport) if data_report else None
    report = judge(
        results, config, pins=pins, data_report=found, objections=objections, adjudicated=about
    )
    report["gate_key"] = _gate_key(results, config, pins, labels)
    if rollout:
        report["rollout"] = {"strategy": rollout.strategy, "steps": list(rollout.steps)}
    former = _former(output, report["gate_key"])
    if former and not force and _stands(former, report):
        if _brought_up_to_date(former, report, checked=found is not None):
            write_json(output, former, GateReport)
        return former, True
    report["judged_at"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    report["former_verdicts"] = _given_before(former) if former else []
    write_json(output, report, GateReport)
    return report, False


def _given_before(former: GateReport) -> list[Verdict]:
    """Verdicts that are shown beside today's; an ERROR was none, and hides none before it."""
    given = [former["verdict"]] if former["verdict"] != "ERROR" else []
    return [*former["former_verdicts"], *given]


def _with_labels(
    results: EvalResults, path: Path, adapter: str | None
) -> tuple[EvalResults, Adjudicated, str | None]:
    """The results as people labelled them, what that changed, and the key of the labels."""
    where = labels_path(adapter) if adapter else None
    labels = load_labels(where) if where else ()
    samples = None
    # Without labels, samples decide nothing.
    with contextlib.nullcontext() if labels else contextlib.suppress(UsageError):
        samples = read_samples(path.with_name(Path(results["samples"]).name))
    results, about = adjudicate(results, samples, labels, where)
    return results, about, labels_key(labels)


def _gate_key(results: EvalResults, config: GateConfig, pins: Pins, labels: str | None) -> str:
    return sha256_json(
        {
            "evaluation": results["eval_key"],
            "gates": config.values,
            "pins": [pins.evaluation, pins.extension],
            "judge": JUDGE_VERSION,
            "metrics": METRIC_IDS,
            "adjudicated": labels,
        }
    )


def _former(output: Path, key: str) -> GateReport | None:
    """The report that was given on the same key, if there is one."""
    with contextlib.suppress(UsageError):
        former = read_json(output, GateReport)
        if former["gate_key"] == key:
            return former
    return None


def _stands(former: GateReport, report: GateReport) -> bool:
    """Whether a verdict stands beside today's on the same key: it is worse, or says the same."""
    if former["verdict"] == "ERROR":
        return False
    if former["verdict"] != report["verdict"]:
        return SEVERITY.index(former["verdict"]) > SEVERITY.index(report["verdict"])
    return former["gates"] == report["gates"] and former["comparisons"] == report["comparisons"]


def _brought_up_to_date(former: GateReport, report: GateReport, *, checked: bool) -> bool:
    """Take into a verdict that stands what does not decide it; True if that changed it."""
    changed = False
    if checked and UNCHECKED in former["warnings"]:
        former["warnings"].remove(UNCHECKED)
        changed = True
    if "rollout" in report and former.get("rollout") != report["rollout"]:
        former["rollout"] = report["rollout"]
        changed = True
    return changed


def judge(
    results: EvalResults,
    config: GateConfig,
    *,
    pins: Pins,
    data_report: DataReport | None = None,
    objections: Sequence[str] = (),
    adjudicated: Adjudicated | None = None,
) -> GateReport:
    """The verdict on an evaluation: every gate absolute, then against production, and why."""
    evidence = Evidence(results)
    errors = [*objections, *errors_of(results, config, pins, data_report)]
    against: Reference = "production" if results["production"]["digest"] else "base"
    extension = bool(results["evaluation_data"]["extension"])
    asked = [gate for gate in config.gates if _is_asked(gate, against)]
    gates = [row for gate in asked for row in decide(evidence, gate, registered=extension)]
    comparisons = _comparisons(evidence, config, against, extension)
    judged: list[GateRow | Comparison] = [*gates, *(row for row in comparisons if row["verdict"])]
    verdict = _verdict(errors, judged)
    looked_at = results["slices"] if against == "production" else {}
    regressed = slice_regressions(evidence, looked_at, against, config.confidence)
    undecided = [row for row in judged if row["verdict"] == "INCONCLUSIVE"]
    data = results["evaluation_data"]
    return {
        "schema": "gate_report/v1",
        "gate_key": "",
        "verdict": verdict,
        "reason": _reason(verdict, errors, judged),
        "errors": errors,
        "adjudicated": adjudicated or _NO_LABELS,
        "warnings": [
            *(row["reason"] for row in undecided if not row["blocking"]),
            *(_unasked(gate) for gate in config.gates if gate not in asked),
            *(slice_warning(row) for row in regressed),
            *([UNCHECKED] if data_report is None else []),
            *_of_what_was_measured(results, config),
        ],
        "adapter": {"name": pins.name, **results["adapter"]},
        "production": results["production"],
        "gate_config": {"path": repository_path(config.path), "sha256": config.sha256},
        "gates": gates,
        "comparisons": comparisons,
        "slices": regressed,
        "base": _of_the_base_model(evidence, config),
        "extension": {
            "registered": extension,
            "drawn": evidence.drawn,
            "wanted": bool(extension and not evidence.drawn and undecided),
        },
        "probes": results["probes"],
        "evaluation": {
            "eval_key": results["eval_key"],
            "pinned": pins.evaluation is not None,
            "path": data["path"],
            "sha256": data["sha256"],
            "rows": data["rows"],
        },
        "judged_at": "",
        "former_verdicts": [],
    }


_NO_LABELS: Adjudicated = {"path": None, "labels": 0, "used": 0, "changed": 0, "open": []}


def _is_asked(gate: Gate, against: Reference) -> bool:
    """Wins over the base model say nothing on production, so that no bar is asked of them."""
    return gate.metric != WIN_RATE or against == "production"


def _unasked(gate: Gate) -> str:
    return (
        f"{gate.metric} is judged against an adapter in production only; this one is compared with"
        " the base model, as a report."
    )


def _of_what_was_measured(results: EvalResults, config: GateConfig) -> list[str]:
    misses = detector_misses(results["refusal_detector"], config)
    return misses if results["probes"] else [*misses, NO_PROBE]


def _verdict(errors: list[str], judged: Sequence[GateRow | Comparison]) -> Verdict:
    """The worst of all; what only warns stops no PASS while undecided, and gives none either."""
    if errors:
        return "ERROR"
    return worst(
        (
            row["verdict"]
            for row in judged
            if row["verdict"] and (row["verdict"] != "INCONCLUSIVE" or row["blocking"])
        ),
        "INCONCLUSIVE",
    )


def _of_the_base_model(evidence: Evidence, config: GateConfig) -> Base:
    """The base model by itself, against the thresholds over rows."""
    rows = [
        row
        for gate in config.gates
        if METRICS[gate.metric].kind in ("rate", "mean") and gate.metric != WIN_RATE
        for row in against_thresholds(evidence, "base", gate, gate.confidence)
    ]
    return {"verdict": worst((row["verdict"] for row in rows), "ERROR"), "gates": rows}


def _comparisons(
    evidence: Evidence, config: GateConfig, against: Reference, registered: bool
) -> list[Comparison]:
    """Every metric against `against`, and against the base model what an adapter may lose.

    Against production alone each release could lose the margin anew.
    """
    whole = {gate.metric: gate for gate in config.gates if gate.slice is None}
    sliced = [gate for gate in config.gates if gate.slice and (gate.margin or gate.margin_to_base)]
    wanted = [(metric, whole.get(metric), against) for metric in METRICS]
    wanted += [(gate.metric, gate, against) for gate in sliced]
    if against == "production":
        wanted += [
            (metric, whole.get(metric), "base")
            for metric in METRICS
            if metric in GENERAL or _is_bound_to_base(whole.get(metric))
        ]
        wanted += [(gate.metric, gate, "base") for gate in sliced if _is_bound_to_base(gate)]
    found = [
        _decide_comparison(evidence, metric, other, gate, config.confidence, registered)
        for metric, gate, other in wanted
    ]
    return [row for row in found if row]


def _is_bound_to_base(gate: Gate | None) -> bool:
    return gate is not None and gate.margin_to_base is not None


def _decide_comparison(
    evidence: Evidence,
    metric: str,
    against: Reference,
    gate: Gate | None,
    confidence: float,
    registered: bool,
) -> Comparison | None:
    """On the first rows, and where these leave it open with the extension rows too."""
    confidence = per_look(gate.confidence if gate else confidence, registered)
    first = compare(evidence, metric, against, gate, confidence)
    if first and first["verdict"] == "INCONCLUSIVE" and evidence.drawn:
        return compare(evidence, metric, against, gate, confidence, extended=True)
    if first is None and gate and gate.margin_against(against) is not None:
        row = comparison_of(metric, against, gate, confidence)
        both = f"both the candidate and {reference_name(against)}"
        row["verdict"] = "ERROR"
        row["reason"] = f"{gate.name} was not measured on {both}. {UNMEASURED}"
        return row
    return first


def _reason(verdict: Verdict, errors: list[str], rows: Sequence[GateRow | Comparison]) -> str:
    if verdict == "PASS":
        warned = sum(row["verdict"] == "INCONCLUSIVE" for row in rows)
        if not warned:
            return f"All {len(rows)} gates passed."
        passed = f"{len(rows) - warned} of {len(rows)} gates passed"
        return f"{passed}; {warned} undecided, which only warns."
    if not rows and not errors:
        return (
            "Nothing was judged: margins, ratios and win rates need an adapter in production, and"
            " there is none to compare with. Give at least one metric a min or max."
        )
    missed = errors + [row["reason"] for row in rows if is_missed(row)]
    if missed:
        return f"{len(missed)} of {len(rows) + len(errors)} gates not passed: " + " ".join(missed)
    undecided = " ".join(row["reason"] for row in rows)
    return (
        f"No gate passed, {len(rows)} are undecided. Add evaluation rows, or give a metric a point"
        f" threshold. {undecided}"
    )
