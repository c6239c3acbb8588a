"""What the hosts counted during a rollout, and what it says: the canary against the stable version.

Intervals, not points: a limit is met when the whole interval meets it, missed when the whole interval misses it, and undecided
otherwise. Rates: difference of two proportions, Newcombe's hybrid score interval (Newcombe 1998, method 10). Quantiles: order
statistics, which assume no distribution.
"""

from __future__ import annotations

import bisect
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

from prometheus_client.parser import text_string_to_metric_families

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
_Key = tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One limit: what was found, and in a sentence why."""

    metric: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Counts:
    """What one version did: good answers and errors of ours, latencies by upper bound in seconds, thumbs."""

    good: int = 0
    errors: int = 0
    buckets: tuple[tuple[float, int], ...] = ()
    up: int = 0
    down: int = 0

    @property
    def requests(self) -> int:
        """Answers that count: a client's own errors do not."""
        return self.good + self.errors


@dataclass
class Accumulated:
    """Counters of several gateways since this was made; a gateway that was restarted begins at 0 again and loses nothing.

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
        """What a version did, also by probes, since the beginning or since a `mark`."""
        version, former = digest[:12], since or {}
        found = {key: max(0.0, value - former.get(key, 0.0)) for key, value in self._sum.items() if key[1] == version}
        good = sum(value for key, value in found.items() if key[0] == "status" and key[2].startswith("2"))
        errors = sum(value for key, value in found.items() if key[0] == "status" and key[2].startswith("5"))
        cumulative = sorted((float(key[2]), round(value)) for key, value in found.items() if key[0] == "le")
        thumbs = {key[2]: round(value) for key, value in found.items() if key[0] == "thumb"}
        return Counts(round(good), round(errors), tuple(cumulative), thumbs.get("up", 0), thumbs.get("down", 0))

    def mark(self) -> dict[_Key, float]:
        """This moment, for `counts`."""
        return dict(self._sum)

    def _parse(self, gateway: str, text: str) -> dict[_Key, float]:
        found: dict[_Key, float] = defaultdict(float)
        wanted = "\n".join(
            line for line in text.splitlines() if line.startswith(("llm_version_", "llm_feedback_total", "llm_gateway_saturation"))
        )
        for family in text_string_to_metric_families(wanted + "\n"):
            for sample in family.samples:
                if sample.name == "llm_gateway_saturation_ratio":
                    self.saturation[gateway].append(sample.value)
                if sample.labels.get("adapter") != self.adapter:
                    continue
                version = sample.labels["version"]
                if sample.name == "llm_version_request_total":
                    found["status", version, sample.labels["status"]] += sample.value
                elif sample.name == "llm_version_duration_seconds_bucket":
                    found["le", version, sample.labels["le"]] += sample.value
                elif sample.name == "llm_feedback_total":
                    found["thumb", version, sample.labels["rating"]] += sample.value
        return dict(found)


def wilson(count: int, n: int, z: float) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson 1927); 0 and 1 for n = 0."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = count / n, z * z
    middle, half = share + z2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def difference(count: int, n: int, base_count: int, base_n: int, z: float) -> tuple[float, float]:
    """Newcombe's interval of the difference of two rates; the base counts as exactly 0 if there is none."""
    low, high = wilson(count, n, z)
    if base_n == 0:
        return low, high
    base_low, base_high = wilson(base_count, base_n, z)
    share, base = (count / n if n else 0.5), base_count / base_n
    return (
        share - base - math.hypot(share - low, base_high - base),
        share - base + math.hypot(high - share, base - base_low),
    )


def quantile_bounds(buckets: Sequence[tuple[float, int]], q: float, confidence: float) -> tuple[float, float]:
    """One-sided bounds in seconds of the q-quantile behind a cumulative histogram; 0 and infinity where it cannot be bounded.

    With B, the number of n values below the quantile, binomial: the value of rank r is an upper bound if P(B >= r) <= 1 - confidence,
    a lower one if P(B >= r) >= confidence. Above 1,000 values the normal approximation gives the ranks.
    """
    n = buckets[-1][1] if buckets else 0
    low, high = 0, n + 1
    if n > 1000:
        spread = NormalDist().inv_cdf(confidence) * math.sqrt(n * q * (1 - q))
        low, high = math.floor(n * q - spread), math.ceil(n * q + spread) + 1
    else:
        tail = 0.0
        for rank in range(n, 0, -1):
            tail += math.comb(n, rank) * q**rank * (1 - q) ** (n - rank)
            if tail <= 1 - confidence:
                high = rank
            if tail >= confidence:
                low = rank
                break
    return (_at(buckets, low) if low >= 1 else 0.0, _at(buckets, high) if high <= n else math.inf)


def _at(buckets: Sequence[tuple[float, int]], rank: int) -> float:
    """The value of that rank, straight between the bounds of its bucket."""
    position = bisect.bisect_left([count for _, count in buckets], rank)
    bound, count = buckets[position]
    below, before = buckets[position - 1] if position else (0.0, 0)
    if math.isinf(bound):
        return math.inf
    return below + (bound - below) * (rank - before) / (count - before)


def judge_rate(metric: str, counted: tuple[int, int], base: tuple[int, int], limit: float, confidence: float) -> Finding:
    """May the rate of the canary exceed that of the stable version by at most `limit`?"""
    low, high = difference(*counted, *base, NormalDist().inv_cdf(confidence))
    verdict: Verdict = "PASS" if high <= limit else "FAIL" if low > limit else "INCONCLUSIVE"
    shown = f"{counted[0]} of {counted[1]}" + (f" against {base[0]} of {base[1]}" if base[1] else "")
    return Finding(metric, verdict, f"{metric} {shown}, difference {low:+.3f} to {high:+.3f}, wanted ≤ {limit:+.3f}")


def judge_latency(canary: Counts, stable: Counts, limit: float, confidence: float) -> Finding:
    """May the canary's p95 be `limit` times the stable version's at most?"""
    if not stable.good:
        return Finding("latency_p95", "PASS", "latency_p95 has nothing to be compared with: there is no stable version")
    low, high = quantile_bounds(canary.buckets, 0.95, confidence)
    base_low, base_high = quantile_bounds(stable.buckets, 0.95, confidence)
    smallest = low / base_high if base_high else math.inf
    largest = high / base_low if base_low else math.inf
    verdict: Verdict = "PASS" if largest <= limit else "FAIL" if smallest > limit else "INCONCLUSIVE"
    reason = f"latency_p95 {low * 1000:.0f} to {high * 1000:.0f} ms against {base_low * 1000:.0f} to {base_high * 1000:.0f} ms"
    return Finding("latency_p95", verdict, f"{reason}, ratio {smallest:.2f} to {largest:.2f}, wanted ≤ {limit:.2f}")


def judge_saturation(readings: dict[str, list[float]], limit: float) -> Finding:
    """Is the busiest host, on average over the step, below the limit?"""
    means = {gateway: sum(values) / len(values) for gateway, values in readings.items() if values}
    if not means:
        return Finding("saturation", "INCONCLUSIVE", "saturation was not measured")
    gateway = max(means, key=lambda name: means[name])
    verdict: Verdict = "PASS" if means[gateway] <= limit else "FAIL"
    return Finding("saturation", verdict, f"saturation {means[gateway]:.2f} on {gateway}, wanted ≤ {limit:.2f}")
