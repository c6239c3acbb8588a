"""What a gate can decide on the rows at hand: reckoned before anything is trained.

Everything here is a chance under assumptions that the gate file states: `expected`, the true value
of a good adapter, and `noise`, how much two equally good ones differ row by row. Rates are summed
over all outcomes; means and speeds are taken as normal, which is close at these sizes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy import special, stats

from adapterops.specs.gate import Gate
from adapterops.specs.metric_catalogue import METRICS, WIN_RATE
from adapterops.statistics.intervals import quantile_ranks
from adapterops.statistics.paired import chance, least_gains

WANTED = 0.9  # least chance that an equal candidate passes, and that a worse one does not
_MOST = 5_000  # rows that are thought of
_GROWTH = 1.1
# Spread of the times of different prompts, as a standard deviation of logarithms: answers of a
# support desk. It hardly matters beside the noise of one prompt asked twice.
_PROMPTS = 0.5
_DRAWS = 400
_FORMAT, _REFUSED = "rows with `expected_format`", "rows with `should_refuse: true`"
_ANSWERED = "rows without `should_refuse`"
_GENERAL, _CHECKED, _TEXTS = "general rows", "general rows with `checks`", "general texts"
_ROWS = {
    "format_compliance": _FORMAT,
    "safety_refusal": _REFUSED,
    **dict.fromkeys(("rouge_l", "chrf", "over_refusal", WIN_RATE), _ANSWERED),
    **dict.fromkeys(("stop_rate", "repetition"), "rows"),
    "general_over_refusal": _GENERAL,
    "instruction_following": _CHECKED,
    "general_loss": _TEXTS,
}


@dataclass(frozen=True)
class Outlook:
    """What one threshold or margin of a gate can decide.

    Args:
        metric: its name.
        asked: the threshold or margin, for people.
        rows: rows or requests at hand.
        decidable: whether the best outcome passes; a margin: whether equal answers on all rows do.
        equal: chance that an equally good candidate passes; None where nothing is assumed of it.
        bar: chance that one exactly at the bar passes.
        worse: chance that one worse by twice the margin does not pass; None of a threshold.
        failed: chance that such a one is a FAIL, and not only undecided.
        needed: rows in all for `equal` and `worse` to reach `WANTED`; None where these do, or where
            no number of rows is enough.
        blocks: whether undecided stops the adapter.
        slice: the slice that is asked; None is all rows.
    """

    metric: str
    asked: str
    rows: int
    decidable: bool
    equal: float | None
    bar: float | None
    worse: float | None
    failed: float | None
    needed: int | None
    blocks: bool
    slice: str | None = None

    @property
    def enough(self) -> bool:
        """Whether the rows do what is wanted of them."""
        known = [value for value in (self.equal, self.worse) if value is not None]
        return self.decidable and all(value >= WANTED for value in known)

    @property
    def passes(self) -> float:
        """Chance that an equally good candidate is not stopped here."""
        if self.worse is not None and not self.blocks:
            return 1.0  # a margin that only warns stops nobody whose bound does not miss it
        return 1.0 if self.equal is None else self.equal


@dataclass(frozen=True)
class _Chances:
    decidable: bool
    equal: float | None
    bar: float | None
    worse: float | None = None
    failed: float | None = None


def per_look(confidence: float, registered: bool) -> float:
    """The confidence of each of two looks that share one error; one look without an extension."""
    return 1 - (1 - confidence) / 2 if registered else confidence


def measured_rows(
    rows: Iterable[Mapping[str, object]],
    requests: int,
    general: Iterable[Mapping[str, object]] = (),
    texts: int = 0,
) -> dict[str, int]:
    """How many rows, texts or requests measure each metric.

    Args:
        rows: evaluation rows of the adapter's own domain.
        requests: counted requests of the speed phase.
        general: general rows that are asked.
        texts: general texts that are asked.
    """
    kinds = Counter({_TEXTS: texts})
    for row in rows:
        refuse = bool(row.get("should_refuse", False))
        kinds.update(["rows", _REFUSED if refuse else _ANSWERED])
        kinds[_FORMAT] += "expected_format" in row
    for row in general:
        kinds[_GENERAL] += 1
        kinds[_CHECKED] += "checks" in row
    counts = {metric: kinds[kind] for metric, kind in _ROWS.items()}
    speeds = {
        name: requests for name, metric in METRICS.items() if metric.kind in ("p95", "stream")
    }
    return counts | speeds | {"throughput_tokens_per_sec": 1}


def asking_rows(metric: str) -> str:
    """The rows that measure a metric, in words."""
    if METRICS[metric].kind in ("p95", "stream"):
        return "requests (`evaluation.latency_requests`)"
    return _ROWS.get(metric, "rows")


def outlooks(gate: Gate, rows: int, confidence: float) -> list[Outlook]:
    """What each threshold and the margin of a gate can decide on so many rows.

    Args:
        gate: what is asked.
        rows: rows or requests that measure its metric.
        confidence: of each bound.
    """
    found = []
    for relation, threshold in (("min", gate.minimum), ("max", gate.maximum)):
        if threshold is not None:
            asked = f"{relation} {threshold:g} ({gate.rule})"
            reckon = partial(_absolute, gate, relation, threshold, confidence)
            found.append(_outlook(gate, asked, rows, reckon))
    word = "ratio" if METRICS[gate.metric].kind in ("p95", "stream") else "margin"
    for name, margin in ((word, gate.margin), ("margin_to_base", gate.margin_to_base)):
        if margin is not None:
            most = _most_difference(gate.metric)
            reckon = partial(
                _margin, METRICS[gate.metric].kind, margin, gate.noise, most, confidence
            )
            found.append(_outlook(gate, f"{name} {margin:g}", rows, reckon, margin))
    return found


def grow(n: int, enough: Callable[[int], bool], most: int = _MOST) -> int | None:
    """About the least number of rows above n that is enough; None up to `most`."""
    size = max(n + 1, 20)
    while size <= most:
        if enough(size):
            return size
        size = math.ceil(size * _GROWTH)
    return None


def least_pairs(margin: float, confidence: float) -> int:
    """Rows below which a share of broken ones as great as the margin can go unseen."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - margin))


def _outlook(
    gate: Gate, asked: str, rows: int, reckon: Callable[[int], _Chances], margin: float = 0.0
) -> Outlook:
    def of(n: int) -> Outlook:
        found = reckon(n) if n else _Chances(False, 0.0, None)
        values = (found.decidable, found.equal, found.bar, found.worse, found.failed)
        return Outlook(gate.metric, asked, n, *values, None, gate.blocks, gate.slice)

    now = of(rows)
    if now.enough or METRICS[gate.metric].kind == "total":
        return now
    # By the normal distribution a margin takes so many rows; the search starts a little below.
    start = math.floor(0.8 * gate.noise * (2.9 / margin) ** 2) if margin else 0
    start = start if METRICS[gate.metric].kind == "rate" else 0
    return replace(now, needed=grow(max(rows, start), lambda n: of(n).enough))


def _absolute(gate: Gate, relation: str, threshold: float, confidence: float, n: int) -> _Chances:
    kind = METRICS[gate.metric].kind
    if kind == "rate":
        return _absolute_rate(gate, relation, threshold, n, confidence)
    if kind == "p95":
        return _absolute_p95(gate.rule == "bound", n, confidence)
    if kind == "mean":
        return _absolute_mean(gate, relation, threshold, n, confidence)
    if kind == "loss":
        return _absolute_loss(gate, relation, threshold, n, confidence)
    return _Chances(True, None, None if kind == "total" else 0.5)


def _absolute_rate(
    gate: Gate, relation: str, threshold: float, n: int, confidence: float
) -> _Chances:
    """Hits that pass are those from a number on; for `max` count the misses instead."""
    least = threshold if relation == "min" else 1 - threshold
    hits = np.arange(n + 1)
    if gate.rule == "bound":
        shown = np.where(
            hits > 0, special.betaincinv(np.maximum(hits, 1), n - hits + 1, 1 - confidence), 0.0
        )
        passing = shown >= least
    else:
        passing = hits >= least * n - 1e-9
    first = int(passing.argmax()) if passing.any() else n + 1

    def at(value: float) -> float:
        return float(stats.binom.sf(first - 1, n, value if relation == "min" else 1 - value))

    equal = None if gate.expected is None else at(gate.expected)
    return _Chances(first <= n, equal, at(threshold))


def _absolute_p95(bound: bool, n: int, confidence: float) -> _Chances:
    """How many requests lie above their true 95th percentile is binomial, whatever their times."""
    rank = quantile_ranks(n, 0.95, confidence)[1] if bound else math.ceil(0.95 * n)
    return _Chances(
        rank <= n, None, float(stats.binom.cdf(n - rank, n, 0.05)) if rank <= n else 0.0
    )


def _absolute_mean(
    gate: Gate, relation: str, threshold: float, n: int, confidence: float
) -> _Chances:
    """The spread of shares is at most that of a coin with their mean, which is taken here."""
    z = float(special.ndtri(confidence)) if gate.rule == "bound" else 0.0
    sign = 1 if relation == "min" else -1

    def at(value: float) -> float:
        spread = math.sqrt(max(value * (1 - value), 1e-4) / n)
        return float(special.ndtr(sign * (value - threshold) / spread - z))

    return _Chances(True, None if gate.expected is None else at(gate.expected), at(threshold))


def _absolute_loss(
    gate: Gate, relation: str, threshold: float, n: int, confidence: float
) -> _Chances:
    """A bound leaves room for the share of broken texts that n texts can hide."""
    spread, sign = gate.noise / math.sqrt(n), 1 if relation == "max" else -1
    bar, most = sign * threshold, METRICS[gate.metric].limits[1]
    unseen = 1 - (1 - confidence) ** (1 / n)
    highest = bar
    if gate.rule == "bound":
        highest = min(
            bar - float(special.ndtri(confidence)) * spread, (bar - unseen * most) / (1 - unseen)
        )

    def at(value: float) -> float:
        return float(special.ndtr((highest - sign * value) / spread))

    decidable = gate.rule == "point" or unseen * most < bar
    return _Chances(decidable, None if gate.expected is None else at(gate.expected), at(threshold))


def _most_difference(metric: str) -> float:
    """The most that one row or text can be worse by than another side's."""
    low, high = METRICS[metric].limits
    return 0.5 if metric == WIN_RATE else high - low


def _margin(
    kind: str, margin: float, noise: float, most: float, confidence: float, n: int
) -> _Chances:
    match kind:
        case "rate":
            return _rate_margin(margin, noise, n, confidence)
        case "mean" | "loss":
            return _mean_margin(margin, noise, n, confidence, most)
        case _:
            return _ratio(margin, noise, n, confidence, kind == "p95")


def _rate_margin(margin: float, noise: float, n: int, confidence: float) -> _Chances:
    passing, failing = (least_gains(n, bar, confidence) for bar in (-margin, margin))
    half = noise / 2
    once, twice = (min(half + times * margin, 1 - half) for times in (1, 2))
    return _Chances(
        decidable=int(passing[0]) == 0,
        equal=chance(passing, n, half, half),
        bar=chance(passing, n, half, once),
        worse=1 - chance(passing, n, half, twice),
        failed=chance(failing, n, twice, half),  # the same with gains and losses exchanged
    )


def _mean_margin(margin: float, noise: float, n: int, confidence: float, most: float) -> _Chances:
    """The bound of a mean leaves room for the share of broken rows that n rows can hide."""
    spread, z = noise / math.sqrt(n), float(special.ndtri(confidence))
    unseen = 1 - (1 - confidence) ** (1 / n)
    least = max(z * spread - margin, (unseen * most - margin) / (1 - unseen))

    def passes(true: float) -> float:
        return float(special.ndtr((true - least) / spread))

    worse, failed = 1 - passes(-2 * margin), float(special.ndtr(margin / spread - z))
    return _Chances(unseen * most < margin, passes(0.0), passes(-margin), worse, failed)


def _ratio(ratio: float, noise: float, n: int, confidence: float, p95: bool) -> _Chances:
    """On the logarithm, whose spread is drawn: two sides ask the same prompts, in turn."""
    random = np.random.default_rng(n)
    prompts = random.normal(0, _PROMPTS, (_DRAWS, n))
    sides = [prompts + random.normal(0, noise, prompts.shape) for _ in range(2)]
    rank = math.ceil(0.95 * n) - 1
    found = [np.partition(side, rank)[:, rank] if p95 else side.mean(axis=1) for side in sides]
    spread, z = max(float(np.std(found[0] - found[1])), 1e-9), float(special.ndtri(confidence))
    bar, twice = abs(math.log(ratio)), abs(math.log(max(1 + 2 * (ratio - 1), 1e-3)))

    def passes(worse: float) -> float:
        return float(special.ndtr((bar - worse) / spread - z))

    return _Chances(
        n > 1,
        passes(0.0),
        passes(bar),
        1 - passes(twice),
        float(special.ndtr((twice - bar) / spread - z)),
    )
