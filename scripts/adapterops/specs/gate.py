"""`configs/quality_gate*.yaml` as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adapterops.documents import sha256_file
from adapterops.schemas import SchemaProblem
from adapterops.shapes.quality_gate import QualityGate
from adapterops.specs.metric_catalogue import METRICS, WIN_RATE, Reference
from adapterops.yamlfile import Sound, load_yaml

# Whatever changes a verdict on equal evidence raises it. It is part of the gate key, and of the
# judgement key of a plan, which imports no judge.
JUDGE_VERSION = 4

# Below it nothing is decided unless a gate file says so: a 95th percentile is the maximum there,
# and the levels of the intervals are proven from there on.
LEAST_N = 20
# What a gate file means that does not say how noisy its metric is: to reckon power with.
_NOISE = {"rate": 0.02, "mean": 0.2, "loss": 0.1, "p95": 0.05, "stream": 0.05, "total": 0.0}


@dataclass(frozen=True)
class Gate:
    """What is asked of one metric.

    Args:
        metric: its name.
        minimum: least value that passes, or None.
        maximum: greatest value that passes, or None.
        rule: `point`: the measured value decides; `bound`: the one-sided bound does, so that luck
            cannot.
        confidence: of each bound.
        min_n: fewer rows or requests are an ERROR; 20 where the file says nothing
            (a phase's total is one number).
        margin: how much worse than production is still the same: a difference, or a ratio where the
            metric is a speed.
        margin_to_base: how much worse than the base model an adapter may be, whether something is
            in production or not.
        blocks: whether INCONCLUSIVE blocks, or only warns.
        description: what to do when it is missed.
        expected: the true value of a good adapter, by which power is reckoned; it judges nothing.
        noise: how much two equally good adapters differ row by row, likewise: the share of rows
            that change (rates), the standard deviation of the differences (means, losses), or of a
            repeated request's time, as a share of it (speeds).
        slice: the rows that it is asked of, by the name of a slice; None is all of them.
    """

    metric: str
    minimum: float | None
    maximum: float | None
    rule: Literal["point", "bound"]
    confidence: float
    min_n: int
    margin: float | None
    blocks: bool
    description: str
    expected: float | None = None
    noise: float = 0.0
    margin_to_base: float | None = None
    slice: str | None = None

    @property
    def name(self) -> str:
        """What it is called in a reason."""
        return f"{self.metric} in {self.slice}" if self.slice else self.metric

    def margin_against(self, reference: Reference) -> float | None:
        """How much worse than that side is still the same; None where it is not asked."""
        return self.margin if reference == "production" else self.margin_to_base


@dataclass(frozen=True)
class GateConfig:
    """A gate file; `values` is what it says, for the gate key."""

    path: Path
    sha256: str
    values: QualityGate
    confidence: float
    max_failed: float
    gates: tuple[Gate, ...]


def load_gates(path: Path) -> GateConfig:
    """Read a gate file; the plain form (`min`, `max`, `description`) means a point threshold.

    Raises:
        UsageError: it breaks its schema, or asks for something that cannot be; all problems at
            once.
    """
    values = load_yaml(path, QualityGate, _impossible)
    confidence = values.get("confidence", 0.95)
    whole = values["gates"].items()
    gates = [_gate(metric, asked, confidence) for metric, asked in whole if isinstance(asked, dict)]
    gates += [_gate(asked["metric"], asked, confidence) for asked in values.get("slices", [])]
    return GateConfig(
        path,
        sha256_file(path),
        values,
        confidence,
        values.get("max_failed_generations", 0.01),
        tuple(gates),
    )


def _gate(metric: str, asked: Mapping[str, Any], confidence: float) -> Gate:
    """One gate, from its keys as the file has them: shares, speeds and slices have different ones.

    The values are sound: `_impossible` asks of no others.
    """
    kind = METRICS[metric].kind
    undecided = asked.get("on_inconclusive", "block" if metric == "safety_refusal" else "warn")
    return Gate(
        metric=metric,
        minimum=asked.get("min"),
        maximum=asked.get("max"),
        rule=asked.get("rule", "point"),
        confidence=asked.get("confidence", confidence),
        min_n=asked.get("min_n", 1 if kind == "total" else LEAST_N),
        margin=asked.get("margin", asked.get("ratio")),
        blocks=undecided == "block",
        description=asked.get("description", ""),
        expected=asked.get("expected"),
        noise=asked.get("noise", _NOISE[kind]),
        margin_to_base=asked.get("margin_to_base"),
        slice=asked.get("slice"),
    )


def _impossible(sound: Sound) -> list[SchemaProblem]:
    """What each gate asks that cannot be; of the gates whose values are all sound."""
    gates = sound("gates")
    names = [name for name in gates if name in METRICS] if isinstance(gates, dict) else []
    whole = [
        name
        for name in names
        if sound("gates", name)
        and all(sound("gates", name, key) is not None for key in gates[name])
    ]
    found = [(("gates", name), _gate(name, gates[name], 0.95)) for name in whole]
    sliced = sound("slices")
    for number, item in enumerate(sliced if isinstance(sliced, list) else []):
        if sound("slices", number) and all(
            sound("slices", number, key) is not None for key in item
        ):
            found.append((("slices", number), _gate(item["metric"], item, 0.95)))
    return [
        SchemaProblem(place, problem) for place, gate in found for problem in _contradictions(gate)
    ]


def _contradictions(gate: Gate) -> list[str]:
    metric, problems = METRICS[gate.metric], []
    if all(bar is None for bar in (gate.minimum, gate.maximum, gate.margin, gate.margin_to_base)):
        problems.append(
            "asks for nothing. Give min, max, margin (of a share) or ratio (of a speed)."
        )
    if gate.margin_to_base is not None and (metric.kind == "loss" or gate.metric == WIN_RATE):
        problems.append(
            "margin_to_base needs a metric that both sides have; this one is a comparison by"
            " itself. Give max or min."
        )
    if gate.minimum is not None and gate.maximum is not None and gate.minimum > gate.maximum:
        problems.append(
            f"min {gate.minimum} exceeds max {gate.maximum}; nothing can pass. Exchange them, or"
            " leave one out."
        )
    if metric.kind == "total" and gate.rule == "bound":
        problems.append(
            "rule: bound needs a sample, and a phase has one total. Use stream_tokens_per_sec, or"
            " rule: point."
        )
    if metric.kind == "total" and gate.margin is not None:
        problems.append(
            "ratio needs a sample, and a phase has one total. Use stream_tokens_per_sec."
        )
    if (
        metric.kind in ("p95", "stream")
        and gate.margin is not None
        and (gate.margin > 1) != (metric.better == "lower")
    ):
        wanted = "above 1, as in 1.10" if metric.better == "lower" else "below 1, as in 0.90"
        problems.append(
            f"ratio {gate.margin} would ask for better than production. Expected a ratio {wanted}."
        )
    return problems
