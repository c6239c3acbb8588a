"""The shape of `configs/schemas/pricing.json`; `make types`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class Gpus(TypedDict):
    memory_gib: float
    bf16_tflops: float
    usd_per_hour: float


class EvaluationItem(TypedDict):
    name: str
    gpu: str
    parameters: int
    batched_tokens_per_second: float
    stream_tokens_per_second: float


class UsdPerMillionTokens(TypedDict):
    input: float
    output: float


class Judges(TypedDict):
    usd_per_million_tokens: UsdPerMillionTokens


class MeasuredItem(TypedDict):
    name: str
    gpu: str
    base_model: str
    parameters: int
    r: int
    packing: bool
    max_length: int
    per_device_train_batch_size: int
    train_sampling_strategy: Literal["random", "group_by_length"]
    attn_implementation: str
    liger: bool
    fused_lora: bool
    gradient_checkpointing: Literal[True, False, "selective"]
    tokens_per_second: float


class Pricing(TypedDict):
    cap_usd: float
    gpus: dict[str, Gpus]
    evaluation: list[EvaluationItem]
    judges: NotRequired[dict[str, Judges]]
    measured: list[MeasuredItem]
