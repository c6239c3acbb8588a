"""The shape of `configs/schemas/quality_gate.json`; `make types`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias, TypedDict

Rule: TypeAlias = Literal["point", "bound"]


OnInconclusive: TypeAlias = Literal["block", "warn"]


MinN: TypeAlias = int


Confidence: TypeAlias = float


Noise: TypeAlias = float


Description: TypeAlias = str


Margin: TypeAlias = float


class Sliced(TypedDict):
    slice: str
    metric: Literal[
        "rouge_l",
        "chrf",
        "format_compliance",
        "safety_refusal",
        "over_refusal",
        "stop_rate",
        "repetition",
        "general_loss",
        "general_over_refusal",
        "instruction_following",
    ]
    min: NotRequired[float]
    max: NotRequired[float]
    rule: NotRequired[Rule]
    confidence: NotRequired[Confidence]
    min_n: NotRequired[MinN]
    expected: NotRequired[float]
    noise: NotRequired[Noise]
    margin: NotRequired[Margin]
    margin_to_base: NotRequired[Margin]
    on_inconclusive: NotRequired[OnInconclusive]
    description: Description


class Share(TypedDict):
    min: NotRequired[float]
    max: NotRequired[float]
    rule: NotRequired[Rule]
    confidence: NotRequired[Confidence]
    min_n: NotRequired[MinN]
    expected: NotRequired[float]
    noise: NotRequired[Noise]
    margin: NotRequired[Margin]
    margin_to_base: NotRequired[Margin]
    on_inconclusive: NotRequired[OnInconclusive]
    description: Description


class Positive(TypedDict):
    min: NotRequired[float]
    max: NotRequired[float]
    rule: NotRequired[Rule]
    confidence: NotRequired[Confidence]
    min_n: NotRequired[MinN]
    noise: NotRequired[Noise]
    ratio: NotRequired[float]
    on_inconclusive: NotRequired[OnInconclusive]
    description: Description


class Gates(TypedDict):
    rouge_l: NotRequired[Share]
    chrf: NotRequired[Share]
    format_compliance: NotRequired[Share]
    safety_refusal: NotRequired[Share]
    over_refusal: NotRequired[Share]
    stop_rate: NotRequired[Share]
    repetition: NotRequired[Share]
    win_rate: NotRequired[Share]
    general_loss: NotRequired[Share]
    general_over_refusal: NotRequired[Share]
    instruction_following: NotRequired[Share]
    latency_p95_ms: NotRequired[Positive]
    ttft_p95_ms: NotRequired[Positive]
    throughput_tokens_per_sec: NotRequired[Positive]
    stream_tokens_per_sec: NotRequired[Positive]


class QualityGate(TypedDict):
    confidence: NotRequired[float]
    max_failed_generations: NotRequired[float]
    gates: Gates
    slices: NotRequired[list[Sliced]]
