"""What the hosts counted during a rollout, and what it says: the canary against the stable version.

Intervals, not points, as in the gate: one-sided bounds at the rollout's confidence. A limit is met
when the whole interval meets it, missed when the whole interval misses it, and undecided otherwise.
Quantiles and the rate of a version alone are bounded by the gate's own functions. The difference of
two rates is not: the gate compares two models on the same rows, in pairs (Tango 1998); here each
version answers other questions, two independent samples without pairs, which Newcombe's hybrid
score interval is for (Newcombe 1998, method 10).
"""

from __future__ import annotations

import bisect
import functools
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import Literal

from prometheus_client.parser import text_string_to_metric_families

from adapterops.statistics.intervals import binomial_bounds, quantile_ranks

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
_Key = tuple[str, ...]
_LEAST_READINGS = 60  # of saturation, about one a second, before a host counts as too busy


@dataclass(frozen=True)
class Finding:
    """One limit: what was found, and in a sentence why."""

    metric: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Answers:
    """To users or to probes: good ones, by how many took at most so many seconds, and errors."""

    good: int = 0
    errors: int = 0
    buckets: tuple[tuple[float, int], ...] = ()

    @property
    def requests(self) -> int:
        """Answers that count: a client's own errors do not."""
        return self.good + self.errors

    def plus(self, other: Answers, sign: int = 1) -> Answers:
        """Both together; with -1, these without the others."""
        buckets = dict(self.buckets)
        for bound, count in other.buckets:
            buckets[bound] = buckets.get(bound, 0) + sign * count
        return Answers(
            self.good + sign * other.good,
            self.errors + sign * other.errors,
            tuple(sorted(buckets.items())),
        )


@dataclass(frozen=True)
class Seen:
    """What one API key saw of a version: answers and its thumbs."""

    answers: Answers = Answers()
    up: int = 0
    down: int = 0


@dataclass(frozen=True)
class Counts:
    """What one version did: for each API key of users, and for the rollout's own probes."""

    keys: Mapping[str, Seen] = field(default_factory=dict)
    probes: Answers = Answers()

    @cached_property
    def users(self) -> Answers:
        """Answers to users, of all keys."""
        return functools.reduce(
            Answers.plus, (seen.answers for seen in self.keys.values()), Answers()
        )

    @property
    def up(self) -> int:
        """Thumbs up."""
        return sum(seen.up for seen in self.keys.values())

    @property
    def down(self) -> int:
        """Thumbs down."""
        return sum(seen.down for seen in self.keys.values())

    @property
    def errors(self) -> int:
        """Errors of ours, whoever asked."""
        return self.users.errors + self.probes.errors

    @property
    def requests(self) -> int:
        """Answers that count, whoever asked."""
        return self.users.requests + self.probes.requests

    def without(self, key: str) -> Counts:
        """What all but one key saw."""
        others = Counts(
            {name: seen for name, seen in self.keys.items() if name != key}, self.probes
        )
        if key in self.keys:
            # Not added up anew for each of many keys.
            vars(others)["users"] = self.users.plus(self.keys[key].answers, -1)
        return others


@dataclass
class Accumulated:
    """Counters of several gateways since this was made, also of one that began at 0 again.

    Args:
        adapter: whose.
    """

    adapter: str
    saturation: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _last: dict[str, dict[_Key, float]] = field(default_factory=dict)
    _sum: dict[_Key, float] = field(default_factory=lambda: defaultdict(float))
    _heard: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    def add(self, gateway: str, text: str) -> None:
        """Take up one gateway's metrics; the first ones are where it begins."""
        now = self._parse(gateway, text)
        if gateway in self._last:
            for key, value in now.items():
                former = self._last[gateway].get(key, 0.0)
                self._sum[key] += value - former if value >= former else value
        self._last[gateway] = now
        self._heard[gateway] = time.monotonic()

    def silent_for(self, gateway: str) -> float:
        """Seconds since the gateway was heard last."""
        return time.monotonic() - self._heard.get(gateway, self._began)

    def counts(self, digest: str, since: dict[_Key, float] | None = None) -> Counts:
        """What a version did since the beginning or since a `mark`."""
        version, former = digest[:12], since or {}
        found = {
            key: max(0.0, value - former.get(key, 0.0))
            for key, value in self._sum.items()
            if key[1] == version
        }

        by_key: dict[tuple[str, str], dict[_Key, float]] = defaultdict(dict)
        for key, value in found.items():
            if value:
                by_key[key[-2], key[-1]][key] = value

        def answers(of: dict[_Key, float]) -> Answers:
            status = {key: value for key, value in of.items() if key[0] == "status"}
            good = sum(value for key, value in status.items() if key[2].startswith("2"))
            errors = sum(value for key, value in status.items() if key[2].startswith("5"))
            buckets = [(float(key[2]), round(value)) for key, value in of.items() if key[0] == "le"]
            return Answers(round(good), round(errors), tuple(sorted(buckets)))

        def seen(of: dict[_Key, float]) -> Seen:
            thumbs = {key[2]: round(value) for key, value in of.items() if key[0] == "thumb"}
            return Seen(answers(of), thumbs.get("up", 0), thumbs.get("down", 0))

        users = {name: seen(of) for (name, origin), of in by_key.items() if origin == "user"}
        probes = [answers(of) for (_, origin), of in by_key.items() if origin == "probe"]
        return Counts(users, functools.reduce(Answers.plus, probes, Answers()))

    def mark(self) -> dict[_Key, float]:
        """This moment, for `counts`."""
        return dict(self._sum)

    def _parse(self, gateway: str, text: str) -> dict[_Key, float]:
        found: dict[_Key, float] = defaultdict(float)
        wanted = "\n".join(
            line
            for line in text.splitlines()
            if line.startswith(("llm_version_", "llm_feedback_total", "llm_gateway_saturation"))
        )
        for family in text_string_to_metric_families(wanted + "\n"):
            for sample in family.samples:
                if sample.name == "llm_gateway_saturation_ratio":
                    self.saturation[gateway].append(sample.value)
                if sample.labels.get("adapter") != self.adapter:
                    continue
                version = sample.labels["version"]
                who = (sample.labels.get("key", "-"), sample.labels.get("origin", "user"))
                if sample.name == "llm_version_request_total":
                    found["status", version, sample.labels["status"], *who] += sample.value
                elif sample.name == "llm_version_duration_seconds_bucket":
                    found["le", version, sample.labels["le"], *who] += sample.value
                elif sample.name == "llm_feedback_total":
                    found["thumb", version, sample.labels["rating"], *who] += sample.value
        return dict(found)


def wilson(count: int, n: int, z: float) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson 1927); 0 and 1 for n = 0."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = count / n, z * z
    middle, half = share + z2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def difference(count: int, n: int, base_count: int, base_n: int, z: float) -> tuple[float, float]:
    """Newcombe's interval of the difference of two independent rates; `base_n` is not 0."""
    low, high = wilson(count, n, z)
    base_low, base_high = wilson(base_count, base_n, z)
    share, base = (count / n if n else 0.5), base_count / base_n
    return (
        share - base - math.hypot(share - low, base_high - base),
        share - base + math.hypot(high - share, base - base_low),
    )


def quantile_bounds(
    buckets: Sequence[tuple[float, int]], q: float, confidence: float
) -> tuple[float, float]:
    """One-sided bounds in seconds of a histogram's q-quantile; 0 and infinity are none."""
    n = _size(buckets)
    if n == 0:
        return 0.0, math.inf
    low, high = quantile_ranks(n, q, confidence)
    return (_at(buckets, low) if low >= 1 else 0.0, _at(buckets, high) if high <= n else math.inf)


def _at(buckets: Sequence[tuple[float, int]], rank: int) -> float:
    """The value of that rank, straight between the bounds of its bucket."""
    position = bisect.bisect_left([count for _, count in buckets], rank)
    bound, count = buckets[position]
    below, before = buckets[position - 1] if position else (0.0, 0)
    if math.isinf(bound):
        return math.inf
    return below + (bound - below) * (rank - before) / (count - before)


def _size(buckets: Sequence[tuple[float, int]]) -> int:
    return buckets[-1][1] if buckets else 0


def judge_rate(
    metric: str,
    counted: tuple[int, int],
    base: tuple[int, int] | None,
    limit: float,
    confidence: float,
) -> Finding:
    """Is the canary's rate at most `limit` above the base's? With no base (None), at most it?"""
    shown = f"{counted[0]} of {counted[1]}" + (f" against {base[0]} of {base[1]}" if base else "")
    if base and not base[1]:
        reason = f"{metric} {shown}: the stable version has nothing to compare with"
        return Finding(metric, "INCONCLUSIVE", reason)
    if base:
        low, high = difference(*counted, *base, NormalDist().inv_cdf(confidence))
        found = f"difference {low:+.3f} to {high:+.3f}, wanted ≤ {limit:+.3f}"
    else:
        low, high = binomial_bounds(*counted, confidence)
        found = f"share {low:.3f} to {high:.3f}, wanted ≤ {limit:.3f}"
    verdict: Verdict = "PASS" if high <= limit else "FAIL" if low > limit else "INCONCLUSIVE"
    return Finding(metric, verdict, f"{metric} {shown}, {found}")


def judge_latency(
    canary: Counts, stable: Counts | None, limit: float, confidence: float
) -> Finding:
    """Is the canary's p95 at most `limit` times the stable version's (None: there is none)?

    Users ask longer things than probes do, and the two versions need not have the same share of
    each: compared are users' answers, or probes, whichever both have more of.
    """
    if stable is None:
        reason = "latency_p95 has nothing to be compared with: there is no stable version"
        return Finding("latency_p95", "PASS", reason)
    pairs = {
        "users": (canary.users.buckets, stable.users.buckets),
        "probes": (canary.probes.buckets, stable.probes.buckets),
    }
    who = max(pairs, key=lambda name: min(map(_size, pairs[name])))
    if not all(map(_size, pairs[who])):
        reason = "latency_p95 was not measured: no answers of both versions to users, or to probes"
        return Finding("latency_p95", "INCONCLUSIVE", reason)
    low, high = quantile_bounds(pairs[who][0], 0.95, confidence)
    base_low, base_high = quantile_bounds(pairs[who][1], 0.95, confidence)
    smallest = low / base_high if base_high else math.inf
    largest = high / base_low if base_low else math.inf
    verdict: Verdict = (
        "PASS" if largest <= limit else "FAIL" if smallest > limit else "INCONCLUSIVE"
    )
    mine = f"{low * 1000:.0f} to {high * 1000:.0f} ms"
    other = f"{base_low * 1000:.0f} to {base_high * 1000:.0f} ms"
    ratio = f"ratio {smallest:.2f} to {largest:.2f}, wanted ≤ {limit:.2f}"
    reason = f"latency_p95 {mine} against {other} ({who}), {ratio}"
    return Finding("latency_p95", verdict, reason)


def judge_saturation(readings: dict[str, list[float]], limit: float) -> Finding:
    """Is the busiest host, on average over the step, below the limit?

    The limit is absolute, for hosts serve both versions: their batch is full or it is not,
    whichever version fills it. A host whose engines are down counts as full, so a few readings may
    be an engine that is being restarted and miss no limit.
    """
    means = {gateway: sum(values) / len(values) for gateway, values in readings.items() if values}
    if not means:
        return Finding("saturation", "INCONCLUSIVE", "saturation was not measured")
    gateway = max(means, key=lambda name: means[name])
    n = len(readings[gateway])
    verdict: Verdict = (
        "PASS" if means[gateway] <= limit else "FAIL" if n >= _LEAST_READINGS else "INCONCLUSIVE"
    )
    mean = means[gateway]
    reason = f"saturation {mean:.2f} on {gateway} ({n} readings), wanted ≤ {limit:.2f}"
    return Finding("saturation", verdict, reason)
