"""The shape of `configs/schemas/preflight.json`; `make types`."""

from __future__ import annotations

from typing import Literal, TypedDict


class MemoryGib(TypedDict):
    weights: float
    quantisation_constants: float
    embeddings: float
    lora: float
    gradients: float
    optimiser: float
    activations: float
    working: float
    logits: float
    staging: float
    forward: float
    context: float
    peak_loading: float
    peak_training: float
    peak_evaluation: float


class Gpu(TypedDict):
    gpu: str
    verdict: Literal["fits", "tight", "does not fit"]
    memory_share: float
    tokens_per_second: float
    speed_from: str
    minutes: float
    usd: float


class Preflight(TypedDict):
    schema: Literal["preflight/v1"]
    recipe: str
    training_key: str
    rows: int
    tokens: int
    supervised_tokens: int
    truncated_rows: int
    truncated_tokens: int
    truncated_supervised_tokens: int
    gpus_together: int
    milder: list[str]
    epochs: float
    memory_gib: MemoryGib
    gpus: list[Gpu]
    hints: list[str]
