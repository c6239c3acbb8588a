"""Intervals for rates, means, quantiles and paired differences.

Every function returns one-sided bounds on either side, each at `confidence`: the lower bound lies
above the truth in at most 1 - `confidence` of all experiments, and so does the upper bound below
it. Together they are an interval of 2 × `confidence` - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from adapterops.statistics.paired import paired_bounds

RESAMPLES = 9_999
_EQUAL = 1e-12  # differences of equal scores are apart by rounding alone
_CELLS = 2_000_000  # resampled values held at once

Floats = NDArray[Any]


class Interval(NamedTuple):
    """Both bounds; None where the sample is too small for one to exist."""

    low: float | None
    high: float | None


def rate_interval(outcomes: Sequence[bool], groups: Sequence[int], confidence: float) -> Interval:
    """Bounds of a rate, of positive width at 0/n and n/n too.

    Outcomes that share a group are not independent: the sample counts as n divided by the design
    effect (Korn & Graubard 1998).
    """
    n = effective_size([float(outcome) for outcome in outcomes], groups)
    return Interval(*binomial_bounds(n * sum(outcomes) / len(outcomes), n, confidence))


def binomial_bounds(hits: float, n: float, confidence: float) -> tuple[float, float]:
    """Bounds of a rate of `hits` in n trials (Clopper & Pearson 1934); 0 and 1 for n = 0."""
    low = float(stats.beta.ppf(1 - confidence, hits, n - hits + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(confidence, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


def effective_size(values: Sequence[float], groups: Sequence[int]) -> float:
    """Independent observations that the sample is worth: n / design effect, at most n.

    Values that are all equal show no design effect; then every group counts once.
    """
    x, index = np.asarray(values, float), np.unique(groups, return_inverse=True)[1]
    n, count = len(x), int(index.max()) + 1
    if count == n:
        return float(n)
    spread = float(np.var(x))
    if spread == 0 or count == 1:
        return float(count)
    sums = np.bincount(index, weights=x - x.mean())
    effect = count / (count - 1) * float(np.sum(sums**2)) / (n * spread)
    return n / max(effect, 1.0)


def mean_interval(
    values: Sequence[float],
    groups: Sequence[int],
    confidence: float,
    seed: int,
    limits: tuple[float, float],
    *,
    worse: Literal["low", "high"] | None = None,
    resamples: int = RESAMPLES,
) -> Interval:
    """Bounds of a mean by the BCa bootstrap (Efron 1987), of whole groups where rows share one.

    A bootstrap knows no value that it has not seen: where an adapter breaks few rows and those
    wholly, a sample without one of them promises too much (a loss of 1 in 3 of 100 rows, 60 rows:
    every sixth sample). A share q of such rows goes unseen in n with probability (1 - q)^n (Clopper
    & Pearson 1934 at 0 of n; the "rule of three", Hanley & Lippman-Hand 1983), so that the bound at
    the `worse` end leaves room for that share at the limit. It takes the farther of the two, not
    their sum: what varies visibly needs no such room.

    Args:
        values: one a row.
        groups: which rows were made from one source.
        confidence: of each bound.
        seed: of the resampling; taken from the content, so that a verdict does not hang on chance.
        limits: the least and the greatest value that a row can have; bounds stay within.
        worse: the end whose bound must not promise too much, for a PASS rests on it; None leaves
            both to the bootstrap.
        resamples: how often to resample.
    """
    x, index = np.asarray(values, float), np.unique(groups, return_inverse=True)[1]
    sums, sizes = np.bincount(index, weights=x), np.bincount(index).astype(float)
    if len(sums) == 1:
        return Interval(*(limit if math.isfinite(limit) else None for limit in limits))
    mean, unseen = float(x.mean()), 1 - (1 - confidence) ** (1 / len(sums))
    room = Interval(
        *(mean + unseen * (limit - mean) if math.isfinite(limit) else None for limit in limits)
    )
    if np.ptp(sums / sizes) < _EQUAL:  # nothing varies, which a bootstrap takes for certainty
        return room
    low, high = _bootstrap(
        (sums, sizes),
        lambda s, n, axis=-1: s.sum(axis) / n.sum(axis),
        confidence,
        seed,
        resamples,
        "BCa",
    )
    if worse == "low" and room.low is not None:
        low = min(low, room.low)
    if worse == "high" and room.high is not None:
        high = max(high, room.high)
    return Interval(max(low, limits[0]), min(high, limits[1]))


def quantile_interval(values: Sequence[float], quantile: float, confidence: float) -> Interval:
    """Bounds of a quantile by order statistics, which assume no distribution.

    David & Nagaraja 2003, section 7.1. Requests that follow each other are not independent: a slow
    spell makes many of them slow. So n requests count as `independent_exceedances` many. An upper
    bound of the 95th percentile exists from 59 of them at 95 % confidence.

    Args:
        values: in the order in which they were measured.
        quantile: which one.
        confidence: of each bound.
    """
    ranked, n = sorted(values), len(values)
    worth = max(math.floor(independent_exceedances(values, quantile)), 1)
    below, above = quantile_ranks(worth, quantile, confidence)
    below = below * n // worth
    above = n + 1 if above > worth else -(-above * n // worth)
    return Interval(
        ranked[below - 1] if below >= 1 else None, ranked[above - 1] if above <= n else None
    )


def independent_exceedances(values: Sequence[float], quantile: float) -> float:
    """How many independent values say as much of how many lie above a quantile.

    The correlation of neighbours is taken on normal scores, which no long tail disturbs, and as
    that of an autoregressive process. Whether values lie above a high quantile is less correlated
    than they are themselves: by the bivariate normal distribution, by Owen's T (Owen 1956).
    """
    n = len(values)
    x = np.asarray(values, float)
    if n < 3 or np.ptp(x) < _EQUAL:
        return float(n)
    scores = special.ndtri((stats.rankdata(x) - 0.5) / n)
    centred = scores - scores.mean()
    neighbours = float(np.sum(centred[1:] * centred[:-1]) / np.sum(centred**2))
    if neighbours <= 0:
        return float(n)
    apart = np.arange(1, n)
    correlation = np.minimum(neighbours, 0.99) ** apart
    share, height = 1 - quantile, float(special.ndtri(quantile))
    both = share - 2 * special.owens_t(height, np.sqrt((1 - correlation) / (1 + correlation)))
    together = (both - share**2) / (share * (1 - share))
    return n / (1 + 2 * float(np.sum((1 - apart / n) * together)))


def quantile_ranks(n: int, quantile: float, confidence: float) -> tuple[int, int]:
    """Ranks, from 1, of the values of n ≥ 1 that bound a quantile from below and from above.

    Rank 0, or n + 1, is none. B, the number of values below the quantile, is binomial.
    """
    # The greatest rank with P(B < rank) ≤ 1 - confidence, and the least with ≥ confidence.
    below = int(stats.binom.ppf(1 - confidence, n, quantile))
    above = int(stats.binom.ppf(confidence, n, quantile)) + 1
    return below, above


def paired_rate_interval(
    candidate: Sequence[bool], reference: Sequence[bool], groups: Sequence[int], confidence: float
) -> Interval:
    """Bounds of the difference of two rates on the same rows: exact, see `gate.paired`.

    Where rows share a group, the sample counts as n divided by the design effect, which is an
    estimate: then the bounds are exact no more.
    """
    differences = [float(a) - float(b) for a, b in zip(candidate, reference, strict=True)]
    n = effective_size(differences, groups)
    share = n / len(differences)
    gains, losses = (share * sum(d == sign for d in differences) for sign in (1.0, -1.0))
    return Interval(*paired_bounds(gains, losses, n, confidence))


def ratio_interval(
    candidate: Sequence[float],
    reference: Sequence[float],
    statistic: Callable[..., Floats],
    confidence: float,
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval:
    """Bounds of a ratio of statistics on the same requests: percentile bootstrap of pairs."""
    data = (np.asarray(candidate, float), np.asarray(reference, float))
    if len(data[0]) < 2 or (np.ptp(data[0]) < _EQUAL and np.ptp(data[1]) < _EQUAL):
        return Interval(None, None)

    def ratio(a: Floats, b: Floats, axis: int = -1) -> Floats:
        return statistic(a, axis=axis) / statistic(b, axis=axis)

    return Interval(*_bootstrap(data, ratio, confidence, seed, resamples, "percentile"))


def _bootstrap(
    data: tuple[Floats, ...],
    statistic: Callable[..., Floats],
    confidence: float,
    seed: int,
    resamples: int,
    method: str,
) -> tuple[float, float]:
    result = stats.bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=True,
        confidence_level=2 * confidence - 1,
        n_resamples=resamples,
        batch=max(1, _CELLS // len(data[0])),
        method=method,
        rng=np.random.default_rng(seed),
    )
    bounds = result.confidence_interval
    return float(bounds.low), float(bounds.high)
