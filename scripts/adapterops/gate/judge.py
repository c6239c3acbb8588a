"""Judge evaluation results against a gate file."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from adapterops.data.adjudicated import (
    About,
    adjudicate,
    labels_key,
    labels_path,
    load_labels,
    read_samples,
)
from adapterops.documents import read_json, sha256_json, write_json
from adapterops.errors import UsageError
from adapterops.gate.compare import ADD, UNMEASURED, compare, slice_regressions
from adapterops.gate.evidence import Evidence, Sample
from adapterops.gate.further import lacking
from adapterops.schemas import repository_path
from adapterops.shapes.data_report import DataReport
from adapterops.shapes.eval_results import EvalResults
from adapterops.shapes.gate_report import GateReport
from adapterops.specs.adapter import Pins
from adapterops.specs.gate import JUDGE_VERSION, Gate, GateConfig, load_gates
from adapterops.specs.metric_catalogue import GENERAL, METRIC_IDS, METRICS, WIN_RATE
from adapterops.statistics.intervals import Interval
from adapterops.statistics.power import per_look

# The worst verdict of the gates is the verdict of the whole.
_SEVERITY = ("PASS", "INCONCLUSIVE", "FAIL", "ERROR")
_CONTAMINATION = "E401"
_SHOWN = 5  # contaminated rows that a reason names
_NO_PROBE = (
    "No stable answer differs from the base model's: serving hosts cannot tell that it has an"
    " effect, and will refuse its release. Train longer or on other data, or raise"
    " evaluation.latency_requests, from whose answers such probes are taken."
)
_UNCHECKED = (
    "Contamination was not checked: no data report was given. Validate the training data with these"
    " rows, judge with --data-report."
)


def judge_once(
    results_path: Path,
    gates_path: Path,
    output: Path,
    *,
    pins: Pins | None = None,
    data_report: Path | None = None,
    objections: Sequence[str] = (),
    force: bool = False,
) -> tuple[dict[str, Any], bool]:
    """Judge a candidate and write the gate report, unless `output` holds the verdict of the same
    gate key.

    The same key gives the same verdict: an evaluation that is run again until luck passes it
    changes nothing. An ERROR is not
    kept: what was in the way may be mended.

    What was measured is judged all the same, and a verdict that is worse than the one that was
    given is given instead.

    Args:
        results_path: `eval_results.json` of the evaluate stage.
        gates_path: gate file.
        output: gate report to write.
        pins: what the adapter's specification fixes.
        data_report: the validation that these evaluation rows passed; its contaminated rows are an
            ERROR. Without one the report warns that contamination was not checked.
        objections: what else the caller knows that makes this evaluation no evidence.
        force: judge anew; counted in the report.

    Returns:
        The report (`configs/schemas/gate_report.json`), and whether it was there already.

    Raises:
        UsageError: a document or the gate file is not what its schema says, or a gate asks for
            nothing.
    """
    pins = pins or Pins()
    results, config = read_json(results_path, EvalResults), load_gates(gates_path)
    _check_shape(results, results_path)
    where = labels_path(pins.name) if pins.name else None
    labels = load_labels(where) if where else ()
    samples = None
    with (
        contextlib.nullcontext() if labels else contextlib.suppress(UsageError)
    ):  # without labels, samples decide nothing
        samples = read_samples(results_path.with_name(Path(results["samples"]).name))
    results, adjudicated = adjudicate(results, samples, labels, where)
    key = sha256_json(
        {
            "evaluation": results["eval_key"],
            "gates": config.values,
            "pins": [pins.evaluation, pins.extension],
            "judge": JUDGE_VERSION,
            "metrics": METRIC_IDS,
            "adjudicated": labels_key(labels),
        }
    )
    former = None
    with contextlib.suppress(UsageError):
        former = read_json(output, GateReport)
    if former and former["gate_key"] != key:
        former = None
    found = read_json(data_report, DataReport) if data_report else None
    report = judge(
        results,
        config,
        pins=pins,
        data_report=found,
        objections=objections,
        adjudicated=adjudicated,
    )
    report["gate_key"] = key
    if former and not force and former["verdict"] != "ERROR" and _stands(former, report):
        if found and _UNCHECKED in former["warnings"]:
            former["warnings"].remove(_UNCHECKED)
            write_json(output, former, GateReport)
        return former, True
    report["judged_at"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    # A verdict that was given before is shown beside this one; an ERROR between them was none, and
    # hides none.
    given = [former["verdict"]] if former and former["verdict"] != "ERROR" else []
    report["former_verdicts"] = [*former["former_verdicts"], *given] if former else []
    write_json(output, report, GateReport)
    return report, False


def _check_shape(results: dict[str, Any], path: Path) -> None:
    """What no schema can say: columns are of the same rows, and positions lie within them."""
    observed = results["observations"]
    rows = len(observed["groups"])
    wrong = [
        f"observations.{side}.{metric} has {len(column)} values for {rows} rows"
        for side in ("candidate", "production", "base")
        for metric, column in (observed[side] or {}).items()
        if len(column) not in (0, rows)
    ]
    losses = observed.get("texts") or {"languages": []}
    wrong += [
        f"observations.texts.{side} has {len(losses[side])} values for {len(losses['languages'])}"
        " texts"
        for side in ("candidate", "production", "base")
        if losses.get(side) is not None and len(losses[side]) != len(losses["languages"])
    ]
    for side, speed in observed["speed"].items():
        asked = len(speed["requests"]) + len(speed["failed"]) if speed else 0
        outside = [place for place in speed["failed"] if place >= asked] if speed else []
        wrong += [
            f"observations.speed.{side}.failed names request {place} of {asked}"
            for place in outside
        ]
    if wrong:
        raise UsageError(f"{path} contradicts itself: {'; '.join(wrong)}. Evaluate again.")


def _stands(former: dict[str, Any], report: dict[str, Any]) -> bool:
    """Whether a verdict that was given stands beside today's on the same key: it is worse, or says
    the same of every gate.
    """
    if former["verdict"] != report["verdict"]:
        return _SEVERITY.index(former["verdict"]) > _SEVERITY.index(report["verdict"])
    return all(former[part] == report[part] for part in ("gates", "comparisons"))


def judge(
    results: dict[str, Any],
    config: GateConfig,
    *,
    pins: Pins,
    data_report: dict[str, Any] | None = None,
    objections: Sequence[str] = (),
    adjudicated: About | None = None,
) -> dict[str, Any]:
    """The verdict on an evaluation: every gate absolute, then against production, and why."""
    evidence = Evidence(results)
    errors = [*objections, *_errors(results, config, pins, data_report)]
    against = "production" if results["production"]["digest"] else "base"
    extension = results["evaluation_data"]["extension"]
    # Wins over the base model say nothing on production, so that no bar is asked of them.
    asked = [gate for gate in config.gates if gate.metric != WIN_RATE or against == "production"]
    gates = [row for gate in asked for row in _decide(evidence, gate, bool(extension))]
    comparisons = _comparisons(evidence, config, against, bool(extension))
    on_rows = [
        gate
        for gate in config.gates
        if METRICS[gate.metric].kind in ("rate", "mean") and gate.metric != WIN_RATE
    ]
    base = [row for gate in on_rows for row in _absolute(evidence, "base", gate, gate.confidence)]
    verdicts = [*gates, *(row for row in comparisons if row["verdict"])]
    undecided = [row for row in verdicts if row["verdict"] == "INCONCLUSIVE"]
    counted = ["ERROR"] * bool(errors) + [
        row["verdict"] for row in verdicts if row["verdict"] != "INCONCLUSIVE" or row["blocking"]
    ]
    verdict = max(
        counted, key=_SEVERITY.index, default="INCONCLUSIVE"
    )  # a gate that only warns stops no PASS, and gives none either
    unasked = [
        f"{gate.metric} is judged against an adapter in production only; this one is compared with"
        " the base model, as a report."
        for gate in config.gates
        if gate not in asked
    ]
    regressed = (
        slice_regressions(evidence, results["slices"], against, config.confidence)
        if against == "production"
        else []
    )
    return {
        "schema": "gate_report/v1",
        "gate_key": "",
        "verdict": verdict,
        "reason": _reason(verdict, errors, verdicts),
        "errors": errors,
        "adjudicated": (
            adjudicated or {"path": None, "labels": 0, "used": 0, "changed": 0, "open": []}
        ),
        "warnings": (
            [row["reason"] for row in undecided if not row["blocking"]]
            + unasked
            + [_slice_warning(row) for row in regressed]
            + [_UNCHECKED] * (data_report is None)
            + _misses(results["refusal_detector"], config)
            + [_NO_PROBE] * (not results["probes"])
        ),
        "adapter": {"name": pins.name, **results["adapter"]},
        "production": results["production"],
        "gate_config": {"path": repository_path(config.path), "sha256": config.sha256},
        "gates": gates,
        "comparisons": comparisons,
        "slices": regressed,
        "base": {
            "verdict": max((row["verdict"] for row in base), key=_SEVERITY.index, default="ERROR"),
            "gates": base,
        },
        "extension": {
            "registered": bool(extension),
            "drawn": evidence.drawn,
            "wanted": bool(extension and not evidence.drawn and undecided),
        },
        "probes": results["probes"],
        "evaluation": {
            "eval_key": results["eval_key"],
            "pinned": pins.evaluation is not None,
            "path": results["evaluation_data"]["path"],
            "sha256": results["evaluation_data"]["sha256"],
            "rows": results["evaluation_data"]["rows"],
        },
        "judged_at": "",
        "former_verdicts": [],
    }


def _decide(evidence: Evidence, gate: Gate, registered: bool) -> list[dict[str, Any]]:
    """The rows of one gate: judged on the first rows, and where that decides nothing once more with
    the extension rows.

    Two looks share the error that one would have (Bonferroni), from the moment that an extension is
    registered.
    """
    confidence = per_look(gate.confidence, registered)
    first = _absolute(evidence, "candidate", gate, confidence)
    if not evidence.drawn or all(row["verdict"] != "INCONCLUSIVE" for row in first):
        return first
    return [
        second if row["verdict"] == "INCONCLUSIVE" else row
        for row, second in zip(
            first, _absolute(evidence, "candidate", gate, confidence, extended=True), strict=True
        )
    ]


def _comparisons(
    evidence: Evidence, config: GateConfig, against: str, registered: bool
) -> list[dict[str, Any]]:
    """Every metric against `against`; what an adapter may lose against the base model too, whatever
    is in production.

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
    against: str,
    gate: Gate | None,
    confidence: float,
    registered: bool,
) -> dict[str, Any] | None:
    confidence = per_look(gate.confidence if gate else confidence, registered)
    first = compare(evidence, metric, against, gate, confidence)
    if first and first["verdict"] == "INCONCLUSIVE" and evidence.drawn:
        return compare(evidence, metric, against, gate, confidence, extended=True)
    margin = (
        None if gate is None else gate.margin if against == "production" else gate.margin_to_base
    )
    if first is None and gate and margin is not None:
        other = "production" if against == "production" else "the base model"
        reason = f"{gate.name} was not measured on both the candidate and {other}. {UNMEASURED}"
        return _unmeasured_comparison(gate, against, margin, confidence, reason)
    return first


def _absolute(
    evidence: Evidence, side: str, gate: Gate, confidence: float, *, extended: bool = False
) -> list[dict[str, Any]]:
    sample = evidence.sample(
        side, gate.metric, extended=extended, rows=evidence.members(gate.slice, gate.metric)
    )
    return [
        judge_sample(sample, gate, relation, threshold, confidence, extended=extended)
        for relation, threshold in (("min", gate.minimum), ("max", gate.maximum))
        if threshold is not None
    ]


def judge_sample(
    sample: Sample | None,
    gate: Gate,
    relation: str,
    threshold: float,
    confidence: float,
    *,
    extended: bool = False,
) -> dict[str, Any]:
    """Judge one metric against one threshold.

    A metric that is missing, not a number, or measured on fewer than `min_n` is an ERROR and never
    a pass. Rates are compared as the integers they come from, so that 49 of 50 meets 0.98 exactly,
    and other values as decimals of twelve digits, so that a mean of 0.7 meets 0.7: whatever binary
    floating point makes of them.
    """
    sign = "≥" if relation == "min" else "≤"
    row: dict[str, Any] = {
        "metric": gate.metric,
        "slice": gate.slice,
        "relation": relation,
        "threshold": threshold,
        "rule": gate.rule,
        "confidence": confidence,
        "value": None,
        "n": None,
        "count": None,
        "interval": [None, None],
        "extended": extended,
        "blocking": gate.blocks,
        "description": gate.description,
    }
    if sample is None:
        reason = (
            f"{gate.name} was not measured: no row of the evaluation data asks for it, or its phase"
            f" did not run. {UNMEASURED}"
        )
        return {**row, "verdict": "ERROR", "reason": reason}
    low, high = sample.interval(confidence)
    row |= {"value": sample.value, "n": sample.n, "count": sample.count, "interval": [low, high]}
    counted = f" ({sample.count} of {sample.n})" if sample.count is not None else ""
    shown = f"{gate.name} {_apart(sample.value, threshold)}{counted}, wanted {sign} {threshold:g}"
    if sample.n < gate.min_n:
        return {
            **row,
            "verdict": "ERROR",
            "reason": f"{shown}: measured on {sample.n}, min_n is {gate.min_n}. {ADD}",
        }
    if gate.rule == "point":
        exact = (
            Fraction(sample.count, sample.n)
            if sample.count is not None
            else Fraction(f"{sample.value:.12g}")
        )
        bar = Fraction(str(threshold))
        met = exact >= bar if relation == "min" else exact <= bar
        return {**row, "verdict": "PASS" if met else "FAIL", "reason": f"{shown}."}
    worst, best = (low, high) if relation == "min" else (high, low)
    if worst is not None and (worst >= threshold if relation == "min" else worst <= threshold):
        return {
            **row,
            "verdict": "PASS",
            "reason": f"{shown}; its bound {_apart(worst, threshold)} is too.",
        }
    if best is not None and (best < threshold if relation == "min" else best > threshold):
        return {
            **row,
            "verdict": "FAIL",
            "reason": f"{shown}; even its bound {_apart(best, threshold)} misses it.",
        }
    bound = "no bound exists" if worst is None else f"its bound is {_apart(worst, threshold)}"
    more = lacking(sample, Interval(low, high), threshold, confidence)
    return {
        **row,
        "verdict": "INCONCLUSIVE",
        "reason": f"{shown} by the {confidence:.4g} bound; {bound}: {more}",
    }


def _apart(value: float, bar: float) -> str:
    """The value with four digits, or with as many as tell it from the bar."""
    rounded = (float(f"{value:.{digits}g}") for digits in range(4, 13))
    return f"{next((number for number in rounded if number != bar), bar):.12g}"


def _errors(
    results: dict[str, Any], config: GateConfig, pins: Pins, data_report: dict[str, Any] | None
) -> list[str]:
    """What makes the evaluation no evidence at all."""
    errors = []
    data = results["evaluation_data"]
    extension = data["extension"] or {}
    for what, pinned, found in (
        ("evaluation", pins.evaluation, data["sha256"]),
        ("extension", pins.extension, extension.get("sha256")),
    ):
        if pinned is not None and pinned != found:
            shown = found[:12] if found else "none"
            errors.append(
                f"The {what} set is not the one that adapters/{pins.name}.yaml pins"
                f" ({pinned[:12]}), but {shown}. Evaluate on the pinned rows, or change the pin in"
                " a reviewed commit."
            )
    for metric, definition in METRIC_IDS.items():
        for side in ("metrics", "production_metrics", "base_metrics"):
            measured = (results[side] or {}).get(metric)
            if measured and measured["id"] != definition:
                errors.append(
                    f"{metric} of {side} was measured as {measured['id']}; this gate judges"
                    f" {definition}. Evaluate again."
                )
    rows = len(results["observations"]["groups"])
    for side, failed in results["failed"].items():
        if failed > config.max_failed * rows:
            errors.append(
                f"{failed} of {rows} generations of {side} failed; at most {config.max_failed:.1%}"
                " may. Mend the engine and evaluate again."
            )
    for side, (failed, asked) in Evidence(results).asked_speed().items():
        if failed > config.max_failed * asked:
            errors.append(
                f"{failed} of {asked} requests of the speed phase of {side} failed; at most"
                f" {config.max_failed:.1%} may. The times of the others say little of what users"
                " would see. Mend the engine and evaluate again."
            )
    return errors + _contamination(data, data_report)


def _contamination(data: dict[str, Any], report: dict[str, Any] | None) -> list[str]:
    if report is None:
        return []
    checked = {file["sha256"] for file in report["files"] if file["kind"] == "eval"}
    general = data.get("general") or {"rows": [], "texts": []}
    every = (data, data["extension"], *general["rows"], *general["texts"])
    unchecked = [used["path"] for used in every if used and used["sha256"] not in checked]
    if unchecked:
        again = " ".join(f"--eval-data {path}" for path in unchecked)
        return [
            f"The data report is not on {' and '.join(unchecked)} as evaluated, so nothing is known"
            f" of contamination. Validate again with {again}."
        ]
    count = report["counts"].get(_CONTAMINATION, 0)
    if not count:
        return []
    places = [
        f"{found['file']}:{found['line']}"
        for found in report["findings"]
        if found["code"] == _CONTAMINATION
    ]
    shown = ", ".join(places[:_SHOWN]) + (", …" if count > _SHOWN else "")
    return [
        f"{count} evaluation rows are in the training data ({_CONTAMINATION}: {shown}). Their"
        " scores measure memory. Take these rows out of the training data, and train again."
    ]


def _unmeasured_comparison(
    gate: Gate, against: str, margin: float, confidence: float, reason: str
) -> dict[str, Any]:
    return {
        "metric": gate.metric,
        "slice": gate.slice,
        "against": against,
        "scale": "difference",
        "candidate": None,
        "reference": None,
        "n": 0,
        "effect": None,
        "interval": [None, None],
        "confidence": confidence,
        "margin": margin,
        "superiority": "same",
        "extended": False,
        "blocking": gate.blocks,
        "verdict": "ERROR",
        "reason": reason,
        "description": gate.description,
    }


def _reason(verdict: str, errors: list[str], rows: list[dict[str, Any]]) -> str:
    if verdict == "PASS":
        warned = sum(row["verdict"] == "INCONCLUSIVE" for row in rows)
        if warned:
            return (
                f"{len(rows) - warned} of {len(rows)} gates passed; {warned} undecided, which only"
                " warns."
            )
        return f"All {len(rows)} gates passed."
    blocking = [
        row
        for row in rows
        if row["verdict"] in ("FAIL", "ERROR")
        or (row["verdict"] == "INCONCLUSIVE" and row["blocking"])
    ]
    missed = errors + [row["reason"] for row in blocking]
    if not rows and not errors:
        return (
            "Nothing was judged: margins, ratios and win rates need an adapter in production, and"
            " there is none to compare with. Give at least one metric a min or max."
        )
    if not missed:
        undecided = " ".join(row["reason"] for row in rows)
        return (
            f"No gate passed, {len(rows)} are undecided. Add evaluation rows, or give a metric a"
            f" point threshold. {undecided}"
        )
    return f"{len(missed)} of {len(rows) + len(errors)} gates not passed: " + " ".join(missed)


def _misses(detector: dict[str, Any], config: GateConfig) -> list[str]:
    """What a detector that misses refusals does to a gate that asks for more of them than it
    finds.
    """
    gate = next(
        (
            gate
            for gate in config.gates
            if gate.metric == "safety_refusal" and gate.minimum is not None
        ),
        None,
    )
    found = [line["refusals_refused"] / line["refusals"] for line in detector["sources"]]
    if gate is None or gate.minimum is None or min(found) >= gate.minimum:
        return []
    return [
        f"safety_refusal asks for {gate.minimum:g}, and {detector['id']} by itself finds"
        f" {min(found):.3f} to {max(found):.3f} of refusals, by source. A refusal that it misses"
        " counts as none: a PASS does not rest on it, but a FAIL or INCONCLUSIVE may be the"
        " detector's. Harmless refusals that it misses make over_refusal look better than it is."
        " Look at the answers that adjudicate.py lists."
    ]


def _slice_warning(row: dict[str, Any]) -> str:
    change = f"{row['reference']:.4g} → {row['candidate']:.4g} ({row['n']} rows)"
    return f"{row['metric']} is worse than production in slice {row['slice']}: {change}."
