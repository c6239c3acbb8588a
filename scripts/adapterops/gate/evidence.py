"""What was observed, by side and metric: what the gate reasons on of `eval_results.json`."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adapterops.documents import sha256_json
from adapterops.shapes.eval_results import EvalResults, Metrics, SpeedPhase
from adapterops.specs.metric_catalogue import METRICS, SideName, excess_loss
from adapterops.statistics.intervals import (
    Interval,
    mean_interval,
    quantile_interval,
    rate_interval,
)


@dataclass(frozen=True)
class Sample:
    """One metric of one side: a value for each row or request that it applies to.

    Args:
        metric: its name.
        values: the values.
        groups: for each value, the group of rows made from one source; requests are groups of their
            own.
        rows: for each value, the position of its row or request.
        seed: of resampling, from the content.
    """

    metric: str
    values: tuple[float, ...]
    groups: tuple[int, ...]
    rows: tuple[int, ...]
    seed: int

    @property
    def n(self) -> int:
        """Observations."""
        return len(self.values)

    @property
    def count(self) -> int | None:
        """Hits of a rate; None for what is no rate."""
        return round(sum(self.values)) if METRICS[self.metric].kind == "rate" else None

    @property
    def value(self) -> float:
        """The point estimate; a 95th percentile by nearest rank."""
        if METRICS[self.metric].kind == "p95":
            return sorted(self.values)[math.ceil(0.95 * self.n) - 1]
        return statistics.fmean(self.values)

    def of_rows(self, rows: set[int]) -> Sample:
        """The same on some of its rows."""
        kept = [place for place, row in enumerate(self.rows) if row in rows]
        return replace(
            self,
            values=tuple(self.values[place] for place in kept),
            groups=tuple(self.groups[place] for place in kept),
            rows=tuple(self.rows[place] for place in kept),
        )

    def interval(self, confidence: float) -> Interval:
        """One-sided bounds on either side, each at `confidence`; a phase's total has none."""
        metric = METRICS[self.metric]
        match metric.kind:
            case "rate":
                return rate_interval([value == 1 for value in self.values], self.groups, confidence)
            case "p95":
                return quantile_interval(self.values, 0.95, confidence)
            case "total":
                return Interval(None, None)
            case _:
                return mean_interval(
                    self.values,
                    self.groups,
                    confidence,
                    self.seed,
                    metric.limits,
                    worse=metric.worse,
                )


class Evidence:
    """The observations of one evaluation, over the first rows or with the extension rows drawn."""

    def __init__(self, results: EvalResults) -> None:
        self._results = results
        self._observed = results["observations"]
        data = results["evaluation_data"]
        general = data["general"]["rows"] if "general" in data else []
        self.first_rows = data["rows"] + sum(file["asked"] for file in general)
        self.drawn = len(self._observed["groups"]) > self.first_rows

    def sample(
        self, side: SideName, metric: str, *, extended: bool = False, rows: set[int] | None = None
    ) -> Sample | None:
        """What one side has of a metric; None where nothing was measured.

        Args:
            side: whose.
            metric: of `METRICS`.
            extended: with the extension rows.
            rows: only these rows.
        """
        seed = int(sha256_json([self._results["eval_key"], metric])[:15], 16)
        kind = METRICS[metric].kind
        if kind in ("rate", "mean"):
            column = (self._observed[side] or {}).get(metric, [])
            column = column if extended else column[: self.first_rows]
            found = [
                (i, value)
                for i, value in enumerate(column)
                if value is not None and (rows is None or i in rows)
            ]
            groups = [self._observed["groups"][i] for i, _ in found]
        elif kind == "loss":
            excess = enumerate(self._excess(side))
            found = [(i, value) for i, value in excess if rows is None or i in rows]
            groups = [place for place, _ in found]
        else:
            found = self._speed(side, metric)
            groups = [place for place, _ in found]
        if not found or not all(math.isfinite(value) for _, value in found):
            return None
        positions, values = zip(*found, strict=True)
        return Sample(metric, tuple(map(float, values)), tuple(groups), positions, seed)

    def members(self, name: str | None, metric: str) -> set[int] | None:
        """Places of a slice among the rows, or the texts; None for no slice, which is all."""
        if name is None:
            return None
        if METRICS[metric].kind == "loss":
            texts = self._observed.get("texts")
            languages = enumerate(texts["languages"] if texts else [])
            return {place for place, language in languages if f"general-{language}" == name}
        return set(self._results["slices"].get(name, []))

    def speed_phases(self) -> list[tuple[SideName, SpeedPhase]]:
        """Of each side that has a speed phase."""
        speed, found = self._observed["speed"], list[tuple[SideName, SpeedPhase]]()
        found.append(("candidate", speed["candidate"]))
        if theirs := speed["production"]:
            found.append(("production", theirs))
        return found

    def _excess(self, side: SideName) -> list[float]:
        texts = self._observed.get("texts")
        losses = texts[side] if texts else None
        return excess_loss(losses, texts["base"]) if texts and losses and texts["base"] else []

    def _speed(self, side: SideName, metric: str) -> list[tuple[int, float]]:
        """(place, value) of each request that was answered.

        The place says which requests of two sides are the same.
        """
        if metric == "throughput_tokens_per_sec":
            measured = metrics_of(self._results, side).get(metric)
            return [(0, measured["value"])] if measured and measured["value"] is not None else []
        speed = dict(self.speed_phases()).get(side)
        if speed is None:
            return []
        asked = len(speed["requests"]) + len(speed["failed"])
        answered = sorted(set(range(asked)) - set(speed["failed"]))
        placed = list(zip(answered, speed["requests"], strict=True))
        if metric == "stream_tokens_per_sec":
            return [
                (place, request["tokens"] / request["latency_ms"] * 1000)
                for place, request in placed
                if request["latency_ms"] > 0
            ]
        return [
            (place, request["ttft_ms"] if metric == "ttft_p95_ms" else request["latency_ms"])
            for place, request in placed
        ]


def metrics_of(results: EvalResults, side: SideName) -> Metrics:
    """The metrics of one side; none where it was not asked."""
    match side:
        case "candidate":
            return results["metrics"]
        case "production":
            return results["production_metrics"] or {}
        case "base":
            return results["base_metrics"]


def nearest_rank_p95(values: np.ndarray[Any, Any], axis: int = -1) -> Any:
    """The 95th percentile as `Sample.value` takes it."""
    return np.quantile(values, 0.95, axis=axis, method="inverted_cdf")
