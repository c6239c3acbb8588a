"""What was observed, by side and metric: the part of `eval_results.json` that the gate reasons
on.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapterops.documents import sha256_json
from adapterops.specs.metric_catalogue import METRICS, excess_loss
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

    def __init__(self, results: dict[str, Any]) -> None:
        self._results = results
        self._observed = results["observations"]
        general = results["evaluation_data"].get("general") or {"rows": []}
        self.first_rows: int = results["evaluation_data"]["rows"] + sum(
            file["asked"] for file in general["rows"]
        )
        self.drawn = len(self._observed["groups"]) > self.first_rows

    def sample(
        self, side: str, metric: str, *, extended: bool = False, rows: set[int] | None = None
    ) -> Sample | None:
        """What one side (`candidate`, `production`, `base`) has of a metric; None where nothing was
        measured.

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
            found = [
                (i, value)
                for i, value in enumerate(self._excess(side))
                if rows is None or i in rows
            ]
            groups = [place for place, _ in found]
        else:
            found = self._speed(side, metric)
            groups = [place for place, _ in found]
        if not found or not all(math.isfinite(value) for _, value in found):
            return None
        positions, values = zip(*found, strict=True)
        return Sample(metric, tuple(map(float, values)), tuple(groups), positions, seed)

    def members(self, name: str | None, metric: str) -> set[int] | None:
        """Positions of a slice among the rows, or among the texts; None for no slice, which is
        all.
        """
        if name is None:
            return None
        if METRICS[metric].kind == "loss":
            languages = self._observed.get("texts", {}).get("languages", [])
            return {
                place for place, language in enumerate(languages) if f"general-{language}" == name
            }
        return set(self._results["slices"].get(name, []))

    def _excess(self, side: str) -> list[float]:
        texts = self._observed.get("texts") or {}
        return (
            excess_loss(texts[side], texts["base"]) if texts.get(side) and texts.get("base") else []
        )

    def asked_speed(self) -> dict[str, tuple[int, int]]:
        """Of each side that has a speed phase: its failed requests, and all that counted."""
        sides = ((side, speed) for side, speed in self._observed["speed"].items() if speed)
        return {
            side: (len(speed["failed"]), len(speed["failed"]) + len(speed["requests"]))
            for side, speed in sides
        }

    def _speed(self, side: str, metric: str) -> list[tuple[int, float]]:
        """(place, value) of each request that was answered: the place says which requests of two
        sides are the same.
        """
        if metric == "throughput_tokens_per_sec":
            measured = (
                self._results[{"candidate": "metrics"}.get(side, f"{side}_metrics")] or {}
            ).get(metric)
            return [(0, measured["value"])] if measured and measured["value"] is not None else []
        speed = self._observed["speed"].get(side)
        if not speed:
            return []
        answered = sorted(
            set(range(len(speed["requests"]) + len(speed["failed"]))) - set(speed["failed"])
        )
        placed = list(zip(answered, speed["requests"], strict=True))
        if metric == "stream_tokens_per_sec":
            return [
                (place, request["tokens"] / request["latency_ms"] * 1000)
                for place, request in placed
                if request["latency_ms"] > 0
            ]
        return [
            (place, request["ttft_ms" if metric == "ttft_p95_ms" else "latency_ms"])
            for place, request in placed
        ]


def nearest_rank_p95(values: np.ndarray[Any, Any], axis: int = -1) -> Any:
    """The 95th percentile as `Sample.value` takes it."""
    return np.quantile(values, 0.95, axis=axis, method="inverted_cdf")
