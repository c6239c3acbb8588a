"""The candidate against production, or against the base model, on the very same rows and
requests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from adapterops.gate.evidence import Evidence, Sample, nearest_rank_p95
from adapterops.gate.further import lacking_pairs
from adapterops.specs.gate import Gate
from adapterops.specs.metric_catalogue import METRICS, WIN_RATE
from adapterops.statistics.intervals import (
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
# what to do about a metric that has no value
UNMEASURED = "Add evaluation rows that ask for it, or take its gate out."


def compare(
    evidence: Evidence,
    metric: str,
    against: str,
    gate: Gate | None,
    confidence: float,
    *,
    extended: bool = False,
) -> dict[str, Any] | None:
    """Compare one metric in pairs; None where one of the two sides has no observation.

    Args:
        evidence: what was observed.
        metric: of `METRICS`.
        against: `production` or `base`.
        gate: holds the margins, and the slice; None, or one without a margin, reports and judges
            nothing.
        confidence: of each bound.
        extended: with the extension rows.

    Returns:
        A row of `comparisons` of the gate report.
    """
    part = gate.slice if gate else None
    pair = _pair(evidence, metric, against, extended, evidence.members(part, metric))
    if pair is None:
        return None
    candidate, reference = pair
    ratio = METRICS[metric].kind in ("p95", "stream", "total")
    effect = candidate.value / reference.value if ratio else candidate.value - reference.value
    interval = _effect_interval(candidate, reference, confidence)
    margin = (
        None if gate is None else gate.margin if against == "production" else gate.margin_to_base
    )
    row = {
        "metric": metric,
        "slice": part,
        "against": against,
        "scale": "ratio" if ratio else "difference",
        "candidate": candidate.value,
        "reference": reference.value,
        "n": candidate.n,
        "effect": effect,
        "interval": list(interval),
        "confidence": confidence,
        "margin": margin,
        "superiority": _superiority(metric, interval, neutral=1.0 if ratio else 0.0),
        "extended": extended,
        "blocking": bool(gate and margin is not None and gate.blocks),
        "verdict": None,
        "reason": "",
        "description": gate.description if gate else "",
    }
    if gate and margin is not None:
        judged = _judge(row, gate, margin, interval, ratio)
        if judged["verdict"] == "INCONCLUSIVE":
            judged["reason"] += lacking_pairs(
                candidate, reference, interval, margin, _bar(row, margin), confidence
            )
        row |= judged
    return row


def _judge(
    row: dict[str, Any], gate: Gate, margin: float, interval: Interval, ratio: bool
) -> dict[str, Any]:
    """Non-inferiority: is the candidate at most `margin` worse than production?"""
    metric = METRICS[row["metric"]]
    shown = f"{row['effect']:.2f} ×" if ratio else f"{row['effect']:+.4f}"
    bar = _bar(row, margin)
    limit = f"{bar:g} ×" if ratio else f"{bar:+g}"
    name, other = gate.name, "production" if row["against"] == "production" else "the base model"
    if row["n"] < gate.min_n:
        return {
            "verdict": "ERROR",
            "reason": f"{name}: {row['n']} pairs with {other}, min_n is {gate.min_n}. {ADD}",
        }
    low, high = interval
    worst, best = (low, high) if metric.better == "higher" else (high, low)
    sign = 1 if metric.better == "higher" else -1
    if worst is not None and sign * worst > sign * bar:
        return {
            "verdict": "PASS",
            "reason": f"{name} {shown} against {other}, not worse than {limit}.",
        }
    if best is not None and sign * best < sign * bar:
        return {"verdict": "FAIL", "reason": f"{name} {shown} against {other}, worse than {limit}."}
    between = f"{_bound(low)} to {_bound(high)}"
    return {
        "verdict": "INCONCLUSIVE",
        "reason": (
            f"{name} {shown} against {other}; the interval {between} holds the margin {limit}: "
        ),
    }


def _bar(row: dict[str, Any], margin: float) -> float:
    """The effect that is just as much worse as the margin allows."""
    return (
        margin if row["scale"] == "ratio" or METRICS[row["metric"]].better == "lower" else -margin
    )


def slice_regressions(
    evidence: Evidence, slices: dict[str, list[int]], against: str, confidence: float
) -> list[dict[str, Any]]:
    """Slices in which the candidate is worse than `against`, with Holm's correction over all that
    were looked at; they warn only.
    """
    looked = []
    for name, members in slices.items():
        for metric in _SLICE_METRICS:
            pair = _pair(evidence, metric, against, evidence.drawn, set(members))
            if pair is None or pair[0].n < _LEAST_SLICE:
                continue
            worse = np.subtract(pair[1].values, pair[0].values) * (
                1 if METRICS[metric].better == "higher" else -1
            )
            if not worse.any():
                continue
            looked.append(
                (_p_value(worse, pair[0].groups, METRICS[metric].kind), name, metric, pair)
            )
    found, total = [], len(looked)
    for position, (p, name, metric, (candidate, reference)) in enumerate(
        sorted(looked, key=lambda item: item[:3])
    ):
        if (
            p * (total - position) > 1 - confidence
        ):  # Holm (1979): the first that is not rejected ends the search
            break
        values = {"candidate": candidate.value, "reference": reference.value, "n": candidate.n}
        found.append(
            {
                "slice": name,
                "metric": metric,
                "against": against,
                **values,
                "p": p * (total - position),
            }
        )
    return found


def _p_value(worse: Any, groups: Sequence[int], kind: str) -> float:
    """One-sided: exact McNemar for rates, a paired t test for means; rows of one group count as
    one, by their mean.
    """
    index = np.unique(groups, return_inverse=True)[1]
    worse = np.bincount(index, weights=worse) / np.bincount(index)
    if kind == "rate":
        losses, gains = int((worse > 0).sum()), int((worse < 0).sum())
        return (
            float(stats.binomtest(losses, losses + gains, alternative="greater").pvalue)
            if losses
            else 1.0
        )
    if np.ptp(worse) < 1e-12:
        return float(0.5 ** len(worse)) if worse[0] > 0 else 1.0  # all alike: the sign test
    return float(stats.ttest_1samp(worse, 0.0, alternative="greater").pvalue)


def _pair(
    evidence: Evidence, metric: str, against: str, extended: bool, rows: set[int] | None = None
) -> tuple[Sample, Sample] | None:
    """Both sides on the rows that both have. A win rate has both in one value; it is compared with
    one half, that of equals.
    """
    sides = [
        evidence.sample(side, metric, extended=extended, rows=rows)
        for side in ("candidate", against)
    ]
    if metric == WIN_RATE and sides[0] is not None:
        return sides[0], dataclasses.replace(sides[0], values=(0.5,) * sides[0].n)
    if sides[0] is None or sides[1] is None:
        return None
    common = set(sides[0].rows) & set(sides[1].rows)
    if not common:
        return None
    candidate, reference = (
        Sample(metric, *map(tuple, zip(*kept, strict=True)), seed=side.seed)  # type: ignore[misc, arg-type]
        for side in sides
        if side is not None
        for kept in [
            [
                item
                for item in zip(side.values, side.groups, side.rows, strict=True)
                if item[2] in common
            ]
        ]
    )
    return candidate, reference


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
                most = metric.limits[
                    1
                ]  # the base model's own excess is none: one side alone varies
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


def _superiority(metric: str, interval: Interval, neutral: float) -> str:
    low, high = interval
    if low is not None and low > neutral:
        return "better" if METRICS[metric].better == "higher" else "worse"
    if high is not None and high < neutral:
        return "worse" if METRICS[metric].better == "higher" else "better"
    return "same"


def _bound(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.4g}"
