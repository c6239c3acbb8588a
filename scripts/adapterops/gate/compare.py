"""The candidate against production or the base model, on the very same rows and requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

from adapterops.gate.evidence import Evidence, Sample, nearest_rank_p95
from adapterops.gate.further import lacking_pairs
from adapterops.shapes.gate_report import Comparison, SliceRegression, Verdict
from adapterops.specs.gate import Gate
from adapterops.specs.metric_catalogue import (
    COMPARED_AS_RATIO,
    METRICS,
    WIN_RATE,
    Reference,
    reference_name,
)
from adapterops.statistics.intervals import (
    Floats,
    Interval,
    mean_interval,
    paired_rate_interval,
    ratio_interval,
)

_SLICE_METRICS = (
    "rouge_l",
    "format_compliance",
    "safety_refusal",
    "over_refusal",
    "general_over_refusal",
    "instruction_following",
)
_LEAST_SLICE = 10  # pairs

ADD = "Add evaluation rows or requests, or lower min_n."
# What to do about a metric that has no value.
UNMEASURED = "Add evaluation rows that ask for it, or take its gate out."


def compare(
    evidence: Evidence,
    metric: str,
    against: Reference,
    gate: Gate | None,
    confidence: float,
    *,
    extended: bool = False,
) -> Comparison | None:
    """Compare one metric in pairs; None where one of the two sides has no observation.

    Args:
        evidence: what was observed.
        metric: of `METRICS`.
        against: what the candidate is compared with.
        gate: holds the margins, and the slice; None, or one without a margin, reports and judges
            nothing.
        confidence: of each bound.
        extended: with the extension rows.
    """
    part = gate.slice if gate else None
    pair = _pair(evidence, metric, against, extended, evidence.members(part, metric))
    if pair is None:
        return None
    candidate, reference = pair
    ratio = METRICS[metric].kind in COMPARED_AS_RATIO
    effect = candidate.value / reference.value if ratio else candidate.value - reference.value
    interval = _effect_interval(candidate, reference, confidence)
    row = comparison_of(metric, against, gate, confidence)
    row |= {
        "scale": "ratio" if ratio else "difference",
        "candidate": candidate.value,
        "reference": reference.value,
        "n": candidate.n,
        "effect": effect,
        "interval": list(interval),
        "superiority": _superiority(metric, interval, neutral=1.0 if ratio else 0.0),
        "extended": extended,
    }
    if gate and row["margin"] is not None:
        row["verdict"], row["reason"] = _non_inferior(row, gate, row["margin"], interval)
        if row["verdict"] == "INCONCLUSIVE":
            bar = _bar(row, row["margin"])
            row["reason"] += lacking_pairs(
                candidate, reference, interval, row["margin"], bar, confidence
            )
    return row


def comparison_of(
    metric: str, against: Reference, gate: Gate | None, confidence: float
) -> Comparison:
    """A comparison of which nothing is known yet."""
    margin = gate.margin_against(against) if gate else None
    return {
        "metric": metric,
        "slice": gate.slice if gate else None,
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
        "blocking": bool(gate and margin is not None and gate.blocks),
        "verdict": None,
        "reason": "",
        "description": gate.description if gate else "",
    }


def _non_inferior(
    row: Comparison, gate: Gate, margin: float, interval: Interval
) -> tuple[Verdict, str]:
    """Is the candidate at most `margin` worse than what it is compared with?"""
    ratio, better = row["scale"] == "ratio", METRICS[row["metric"]].better
    bar, other = _bar(row, margin), reference_name(row["against"])
    limit = f"{bar:g} ×" if ratio else f"{bar:+g}"
    if row["n"] < gate.min_n:
        pairs = f"{row['n']} pairs with {other}"
        return "ERROR", f"{gate.name}: {pairs}, min_n is {gate.min_n}. {ADD}"
    effect = f"{row['effect']:.2f} ×" if ratio else f"{row['effect']:+.4f}"
    shown = f"{gate.name} {effect} against {other}"
    low, high = interval
    worst, best, sign = (low, high, 1) if better == "higher" else (high, low, -1)
    if worst is not None and sign * worst > sign * bar:
        return "PASS", f"{shown}, not worse than {limit}."
    if best is not None and sign * best < sign * bar:
        return "FAIL", f"{shown}, worse than {limit}."
    between = f"{_bound(low)} to {_bound(high)}"
    return "INCONCLUSIVE", f"{shown}; the interval {between} holds the margin {limit}: "


def _bar(row: Comparison, margin: float) -> float:
    """The effect that is just as much worse as the margin allows."""
    signed = row["scale"] == "ratio" or METRICS[row["metric"]].better == "lower"
    return margin if signed else -margin


@dataclasses.dataclass(frozen=True)
class _Looked:
    """One metric in one slice: the chance of so great a loss, if nothing were lost."""

    p: float
    slice: str
    metric: str
    candidate: Sample
    reference: Sample


def slice_regressions(
    evidence: Evidence, slices: dict[str, list[int]], against: Reference, confidence: float
) -> list[SliceRegression]:
    """Slices in which the candidate is worse than `against`; they warn only.

    Holm's correction (1979) is over all that were looked at.
    """
    looked = [
        found
        for name, members in slices.items()
        for metric in _SLICE_METRICS
        if (found := _look(evidence, name, set(members), metric, against))
    ]
    looked.sort(key=lambda one: (one.p, one.slice, one.metric))
    regressions: list[SliceRegression] = []
    for position, one in enumerate(looked):
        corrected = one.p * (len(looked) - position)
        if corrected > 1 - confidence:  # the first that is not rejected ends the search
            break
        regressions.append(
            {
                "slice": one.slice,
                "metric": one.metric,
                "against": against,
                "candidate": one.candidate.value,
                "reference": one.reference.value,
                "n": one.candidate.n,
                "p": corrected,
            }
        )
    return regressions


def _look(
    evidence: Evidence, name: str, members: set[int], metric: str, against: Reference
) -> _Looked | None:
    """None where too few rows have both sides, or all are equal."""
    pair = _pair(evidence, metric, against, evidence.drawn, members)
    if pair is None or pair[0].n < _LEAST_SLICE:
        return None
    candidate, reference = pair
    sign = 1 if METRICS[metric].better == "higher" else -1
    worse = np.subtract(reference.values, candidate.values) * sign
    if not worse.any():
        return None
    p = _p_value(worse, candidate.groups, METRICS[metric].kind)
    return _Looked(p, name, metric, candidate, reference)


def _p_value(worse: Floats, groups: Sequence[int], kind: str) -> float:
    """One-sided: exact McNemar for rates, a paired t test for means.

    Rows of one group count as one, by their mean.
    """
    index = np.unique(groups, return_inverse=True)[1]
    worse = np.bincount(index, weights=worse) / np.bincount(index)
    if kind == "rate":
        losses, gains = int((worse > 0).sum()), int((worse < 0).sum())
        if not losses:
            return 1.0
        return float(stats.binomtest(losses, losses + gains, alternative="greater").pvalue)
    if np.ptp(worse) < 1e-12:
        return float(0.5 ** len(worse)) if worse[0] > 0 else 1.0  # all alike: the sign test
    return float(stats.ttest_1samp(worse, 0.0, alternative="greater").pvalue)


def _pair(
    evidence: Evidence,
    metric: str,
    against: Reference,
    extended: bool,
    rows: set[int] | None = None,
) -> tuple[Sample, Sample] | None:
    """Both sides on the rows that both have.

    A win rate has both in one value; it is compared with one half, that of equals.
    """
    ours = evidence.sample("candidate", metric, extended=extended, rows=rows)
    if ours is not None and metric == WIN_RATE:
        return ours, dataclasses.replace(ours, values=(0.5,) * ours.n)
    theirs = evidence.sample(against, metric, extended=extended, rows=rows)
    if ours is None or theirs is None:
        return None
    common = set(ours.rows) & set(theirs.rows)
    return (ours.of_rows(common), theirs.of_rows(common)) if common else None


def _effect_interval(candidate: Sample, reference: Sample, confidence: float) -> Interval:
    metric = METRICS[candidate.metric]
    match metric.kind:
        case "rate":
            outcomes = [[value == 1 for value in side.values] for side in (candidate, reference)]
            return paired_rate_interval(outcomes[0], outcomes[1], candidate.groups, confidence)
        case "mean" | "loss":
            differences = np.subtract(candidate.values, reference.values).tolist()
            most = 0.5 if candidate.metric == WIN_RATE else metric.limits[1] - metric.limits[0]
            if metric.kind == "loss" and not any(reference.values):
                most = metric.limits[1]  # the base model's own excess is none: one side varies
            return mean_interval(
                differences,
                candidate.groups,
                confidence,
                candidate.seed,
                (-most, most),
                worse=metric.worse,
            )
        case "total":
            return Interval(None, None)
        case kind:
            statistic = nearest_rank_p95 if kind == "p95" else np.mean
            return ratio_interval(
                candidate.values, reference.values, statistic, confidence, candidate.seed
            )


def _superiority(
    metric: str, interval: Interval, neutral: float
) -> Literal["better", "same", "worse"]:
    low, high = interval
    if low is not None and low > neutral:
        return "better" if METRICS[metric].better == "higher" else "worse"
    if high is not None and high < neutral:
        return "worse" if METRICS[metric].better == "higher" else "better"
    return "same"


def _bound(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.4g}"
