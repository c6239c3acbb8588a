"""Exact bounds of the difference of two rates that were measured on the same rows.

Of n rows, `gains` are right by the candidate alone and `losses` by the other side alone. The
difference of the rates is gains / n - losses / n; how often both agree says nothing of it.

The bounds are Buehler's (1957): order all outcomes by the score limit of Tango (1998, Statistics in
Medicine 17:891), and take the least difference for which an outcome as high as this one has a
chance above 1 - confidence, whatever the share of rows that change. Lloyd & Moldovan (2007,
Statistics in Medicine 26:3369) show that no other limits with this order are tighter. So they keep
their level for every n and every share; the score limit alone does not. The chance is summed over
all outcomes and the share is searched on a grid, not estimated.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Numbers = NDArray[Any]

_STEP = 0.7  # of the grid of shares, in standard deviations of an observed share
_REACH = 6.0  # standard deviations of a count; what lies beyond has a chance below 1e-8
_KEPT = 0.995  # of the error: between two shares of the grid one may be likelier by 1 in 1,000
_CLOSE = 1e-9
_FINE = 1e-6  # of a bound


def paired_bounds(gains: float, losses: float, n: float, confidence: float) -> tuple[float, float]:
    """Both one-sided bounds of the difference, each at `confidence`.

    Args:
        gains: rows that only the candidate has right.
        losses: rows that only the other side has right.
        n: rows. What is not whole (a sample that is worth less than its rows) is rounded to the
            side that promises less.
        confidence: of each bound.
    """
    rows = max(math.floor(n + _CLOSE), 1)
    low = _lower(*_rounded(gains, losses, rows), rows, confidence)
    high = -_lower(*_rounded(losses, gains, rows), rows, confidence)
    return low, high


def least_gains(n: int, bar: float, confidence: float) -> Numbers:
    """For each number of losses (0 to n) the least gains whose lower bound lies above `bar`.

    n + 1 and more: none does. The bound is `paired_bounds`' own. As a test of "the difference is at
    most `bar`" this is the region that rejects; its chance there is at most 1 - confidence.
    """
    z, error = float(special.ndtri(confidence)), _KEPT * (1 - confidence)

    def too_likely(limit: float) -> bool:
        return _greatest_chance(_least_gains(n, limit, z), n, bar) > error

    low, high = -1.0, 1.0  # of the score limit: the order has one place from which on all pass
    if too_likely(high):
        return np.arange(n + 1) * 0 + n + 1
    while high - low > _FINE:
        middle = (low + high) / 2
        low, high = (middle, high) if too_likely(middle) else (low, middle)
    return _least_gains(n, high, z)


def chance(region: Numbers, n: int, gain: float, loss: float) -> float:
    """Chance of an outcome in a region that `least_gains` gives, at these true shares of rows."""
    return float(_chances(region, n, np.array([gain]), np.array([loss]))[0])


def _rounded(gains: float, losses: float, n: int) -> tuple[int, int]:
    down = math.floor(gains + _CLOSE)
    return down, min(math.ceil(losses - _CLOSE), n - down)


def _lower(gains: int, losses: int, n: int, confidence: float) -> float:
    z = float(special.ndtri(confidence))
    limit = _score_limit(gains, losses, n, z)
    region = _least_gains(n, limit - _CLOSE, z)
    error = float(special.ndtri(_KEPT * (1 - confidence)))
    region[losses] = min(region[losses], gains)  # itself, whatever rounding says

    def excess(difference: float) -> float:
        """In standard deviations, which is nearly a straight line."""
        return float(special.ndtri(max(_greatest_chance(region, n, difference), 1e-300))) - error

    width = max(0.2 * ((gains - losses) / n - limit), 1e-6)
    low, high = max(limit - width, -1.0), limit
    while excess(high) <= 0:
        high = min(high + width, 1.0)
    while excess(low) > 0:
        if low == -1.0:
            return -1.0
        width *= 2
        low = max(low - width, -1.0)
    return float(optimize.brentq(excess, low, high, xtol=_FINE)) - _FINE


def _score(gains: Numbers, losses: Numbers, n: int, difference: float) -> Numbers:
    """Tango's statistic, with the closed form of the constrained estimate."""
    a, c = 2 * n, -losses * difference * (1 - difference)
    b = -gains - losses + (2 * n - gains + losses) * difference
    share = (np.sqrt(np.maximum(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * share + difference * (1 - difference))
    distance = gains - losses - n * difference
    found = distance / np.sqrt(np.where(variance > 0, variance, 1.0))
    return np.where(variance > 0, found, np.where(distance > 0, np.inf, -np.inf))


def _score_limit(gains: int, losses: int, n: int, z: float) -> float:
    if losses == n:
        return -1.0
    start = (gains - losses) / n - 1e-12
    counts = np.array(float(gains)), np.array(float(losses))
    return float(optimize.brentq(lambda d: float(_score(*counts, n, d)) - z, -1 + 1e-12, start))


def _least_gains(n: int, limit: float, z: float) -> Numbers:
    """For each number of losses the least gains whose score limit is at least `limit`."""
    losses = np.arange(n + 1)
    low, high = np.zeros(n + 1, int), n - losses + 1
    for _ in range(n.bit_length() + 1):  # the statistic grows with the gains
        middle = (low + high) // 2
        enough = _score(middle.astype(float), losses.astype(float), n, limit) >= z
        low, high = (
            np.where(enough, low, np.minimum(middle + 1, high)),
            np.where(enough, middle, high),
        )
    return np.where(high > n - losses, n + 1, high)


def _greatest_chance(region: Numbers, n: int, difference: float) -> float:
    """Over all shares of rows that change, at this difference.

    With more gains or fewer losses a member stays in the region, so that smaller differences are
    no likelier (Lloyd & Moldovan 2007).
    """
    up, down = max(difference, 0.0), max(-difference, 0.0)
    most = (1 - abs(difference)) / 2
    # On the scale of arcsine roots the share varies equally everywhere, at both ends too.
    places = np.linspace(0, math.pi / 2, math.ceil(math.pi * math.sqrt(n) / _STEP) + 2)

    def chances(angles: Numbers) -> Numbers:
        share = most * np.sin(angles) ** 2
        return _chances(region, n, share + up, share + down)

    found = chances(places)
    best = int(found.argmax())
    near = np.linspace(places[max(best - 1, 0)], places[min(best + 1, len(places) - 1)], 17)
    return float(np.maximum(found[best], chances(near).max()))


def _chances(region: Numbers, n: int, gain: Numbers, loss: Numbers) -> Numbers:
    spread = np.sqrt(n * loss * (1 - loss))
    first = np.floor(np.maximum(n * loss - _REACH * spread - 8, 0)).astype(int)
    last = np.ceil(np.minimum(n * loss + _REACH * spread + 25, n)).astype(int)
    losses = first[:, None] + np.arange(int((last - first).max()) + 1)
    inside = losses <= n
    losses = np.minimum(losses, n)
    least = region[losses]
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.exp(
            special.gammaln(n + 1)
            - special.gammaln(losses + 1)
            - special.gammaln(n - losses + 1)
            + special.xlogy(losses, loss[:, None])
            + special.xlog1py(n - losses, -loss[:, None])
        )
        share = np.clip(np.where(loss < 1, gain / (1 - loss), 0.0), 0.0, 1.0)[:, None]
    # Chance of at least so many gains among the rows that are no losses.
    tail = special.betainc(
        np.maximum(least, 1),
        np.maximum(n - losses - least + 1, 1),
        np.broadcast_to(share, least.shape),
    )
    tail = np.where(least <= 0, 1.0, np.where(least > n - losses, 0.0, tail))
    return np.asarray((weight * tail * inside).sum(axis=1))
