"""One metric against one threshold: by the value that was measured, or by its bound."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from adapterops.gate.compare import ADD, UNMEASURED
from adapterops.gate.evidence import Evidence, Sample
from adapterops.gate.further import lacking
from adapterops.shapes.gate_report import Gate as GateRow
from adapterops.shapes.gate_report import Verdict
from adapterops.specs.gate import Gate
from adapterops.specs.metric_catalogue import SideName
from adapterops.statistics.intervals import Interval
from adapterops.statistics.power import per_look

Relation = Literal["min", "max"]


def decide(evidence: Evidence, gate: Gate, *, registered: bool) -> list[GateRow]:
    """The rows of one gate; what the first rows leave open is judged with the extension rows too.

    Two looks share the error that one would have (Bonferroni), from the moment that an extension is
    registered.
    """
    confidence = per_look(gate.confidence, registered)
    first = against_thresholds(evidence, "candidate", gate, confidence)
    if not evidence.drawn or all(row["verdict"] != "INCONCLUSIVE" for row in first):
        return first
    second = against_thresholds(evidence, "candidate", gate, confidence, extended=True)
    return [
        again if row["verdict"] == "INCONCLUSIVE" else row
        for row, again in zip(first, second, strict=True)
    ]


def against_thresholds(
    evidence: Evidence, side: SideName, gate: Gate, confidence: float, *, extended: bool = False
) -> list[GateRow]:
    """One side against each threshold of a gate."""
    members = evidence.members(gate.slice, gate.metric)
    sample = evidence.sample(side, gate.metric, extended=extended, rows=members)
    asked: tuple[tuple[Relation, float | None], ...] = (
        ("min", gate.minimum),
        ("max", gate.maximum),
    )
    return [
        judge_sample(sample, gate, relation, threshold, confidence, extended=extended)
        for relation, threshold in asked
        if threshold is not None
    ]


def judge_sample(
    sample: Sample | None,
    gate: Gate,
    relation: Relation,
    threshold: float,
    confidence: float,
    *,
    extended: bool = False,
) -> GateRow:
    """Judge one metric against one threshold.

    A metric that is missing, not a number, or measured on fewer than `min_n` is an ERROR and never
    a pass.
    """
    row: GateRow = {
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
        "verdict": "ERROR",
        "reason": (
            f"{gate.name} was not measured: no row of the evaluation data asks for it, or its phase"
            f" did not run. {UNMEASURED}"
        ),
    }
    if sample is None:
        return row
    interval = sample.interval(confidence)
    row |= {
        "value": sample.value,
        "n": sample.n,
        "count": sample.count,
        "interval": [interval.low, interval.high],
    }
    sign = "≥" if relation == "min" else "≤"
    counted = f" ({sample.count} of {sample.n})" if sample.count is not None else ""
    shown = f"{gate.name} {_apart(sample.value, threshold)}{counted}, wanted {sign} {threshold:g}"
    if sample.n < gate.min_n:
        row["reason"] = f"{shown}: measured on {sample.n}, min_n is {gate.min_n}. {ADD}"
    elif gate.rule == "point":
        row["verdict"] = "PASS" if _meets(sample, relation, threshold) else "FAIL"
        row["reason"] = f"{shown}."
    else:
        row["verdict"], said = _by_bound(sample, relation, threshold, interval, confidence)
        row["reason"] = shown + said
    return row


def _meets(sample: Sample, relation: Relation, threshold: float) -> bool:
    """Whether the measured value meets a threshold, whatever binary floating point makes of both.

    Rates are compared as the integers they come from, so that 49 of 50 meets 0.98 exactly; other
    values as decimals of twelve digits, so that a mean of 0.7 meets 0.7.
    """
    count = sample.count
    exact = Fraction(f"{sample.value:.12g}") if count is None else Fraction(count, sample.n)
    bar = Fraction(str(threshold))
    return exact >= bar if relation == "min" else exact <= bar


def _by_bound(
    sample: Sample, relation: Relation, threshold: float, interval: Interval, confidence: float
) -> tuple[Verdict, str]:
    """The verdict by the bound that must meet the threshold, and why."""
    low, high = interval
    worst, best = (low, high) if relation == "min" else (high, low)
    if worst is not None and (worst >= threshold if relation == "min" else worst <= threshold):
        return "PASS", f"; its bound {_apart(worst, threshold)} is too."
    if best is not None and (best < threshold if relation == "min" else best > threshold):
        return "FAIL", f"; even its bound {_apart(best, threshold)} misses it."
    bound = "no bound exists" if worst is None else f"its bound is {_apart(worst, threshold)}"
    more = lacking(sample, interval, threshold, confidence)
    return "INCONCLUSIVE", f" by the {confidence:.4g} bound; {bound}: {more}"


def _apart(value: float, bar: float) -> str:
    """The value with four digits, or with as many as tell it from the bar."""
    rounded = (float(f"{value:.{digits}g}") for digits in range(4, 13))
    return f"{next((number for number in rounded if number != bar), bar):.12g}"
