"""How many rows an undecided gate lacks, should further ones answer as those at hand did."""

from __future__ import annotations

import math
from collections.abc import Callable

from adapterops.gate.evidence import Sample
from adapterops.specs.metric_catalogue import METRICS
from adapterops.statistics.intervals import Interval, binomial_bounds, quantile_ranks
from adapterops.statistics.paired import paired_bounds
from adapterops.statistics.power import asking_rows, grow, least_pairs


def lacking(sample: Sample, interval: Interval, threshold: float, confidence: float) -> str:
    """How many more rows or requests decide whether a metric meets a threshold, in words."""
    n, kind = sample.n, METRICS[sample.metric].kind
    if kind == "rate":
        share = sum(sample.values) / n
        return _words(
            sample,
            lambda size: not _within(threshold, binomial_bounds(share * size, size, confidence)),
        )
    if kind == "p95":
        met = sum(value <= threshold for value in sample.values) / n

        def decides(size: int) -> bool:
            below, above = quantile_ranks(size, 0.95, confidence)
            return met * size >= above or met * size < below

        return _words(sample, decides)
    return _words(
        sample, lambda size: not _within(threshold, _scaled(sample.value, interval, n / size))
    )


def lacking_pairs(
    candidate: Sample,
    reference: Sample,
    interval: Interval,
    margin: float,
    bar: float,
    confidence: float,
) -> str:
    """The same of a comparison.

    Args:
        candidate: its values.
        reference: the other side's, on the same rows.
        interval: of the effect.
        margin: as the gate file says it.
        bar: the effect that is just as much worse.
        confidence: of each bound.
    """
    n, kind = candidate.n, METRICS[candidate.metric].kind
    pairs = list(zip(candidate.values, reference.values, strict=True))
    if kind == "rate":
        gains, losses = sum(a > b for a, b in pairs) / n, sum(a < b for a, b in pairs) / n
        return _words(
            candidate,
            lambda size: (
                not _within(bar, paired_bounds(gains * size, losses * size, size, confidence))
            ),
        )
    if kind in ("mean", "loss"):
        effect = candidate.value - reference.value
        least = least_pairs(margin, confidence)
        return _words(
            candidate,
            lambda size: size >= least and not _within(bar, _scaled(effect, interval, n / size)),
        )
    if None in interval:
        return _words(candidate, lambda _: False)
    logs = Interval(*(math.log(bound) for bound in interval if bound))
    effect = math.log(candidate.value / reference.value)
    return _words(
        candidate, lambda size: not _within(math.log(bar), _scaled(effect, logs, n / size))
    )


def _scaled(value: float, interval: Interval, share: float) -> tuple[float | None, float | None]:
    """Bounds draw nearer with the root of the rows."""
    low, high = interval
    root = math.sqrt(share)
    return (
        None if low is None else value - (value - low) * root,
        None if high is None else value + (high - value) * root,
    )


def _within(bar: float, bounds: tuple[float | None, float | None]) -> bool:
    low, high = bounds
    return (low is None or low <= bar) and (high is None or high >= bar)


def _words(sample: Sample, decides: Callable[[int], bool]) -> str:
    rows, needed = asking_rows(sample.metric), grow(sample.n, decides)
    if needed is None:
        return (
            f"{sample.n} {rows} do not decide, nor would 5,000 like them: it is too near the bar."
        )
    return (
        f"{sample.n} {rows} do not decide; about {needed - sample.n} more would, if they are"
        " answered alike."
    )
