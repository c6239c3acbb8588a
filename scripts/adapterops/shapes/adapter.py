"""The shape of `configs/schemas/adapter.json`; `make types`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias, TypedDict

GeneralItem: TypeAlias = str


class Evaluation1(TypedDict):
    gate: str
    max_tokens: int
    latency_requests: int
    latency_concurrency: int
    general: NotRequired[list[GeneralItem]]
    general_rows: NotRequired[int]
    general_texts: NotRequired[int]
    win_rate_judge: NotRequired[str]


Step: TypeAlias = int


class Limits(TypedDict):
    error_rate: float
    latency_p95_ratio: float
    saturation: float
    negative_feedback: NotRequired[float]
    win_rate: NotRequired[float]


class Rollout(TypedDict):
    strategy: Literal["canary", "blue-green", "immediate"]
    steps: list[Step]
    min_duration_s: float
    max_duration_s: float
    min_requests: int
    probes_per_s: float
    confidence: float
    limits: Limits


Sha256: TypeAlias = str


Training: TypeAlias = str


Evaluation: TypeAlias = str


class Data(TypedDict):
    training: list[Training]
    evaluation: Evaluation
    evaluation_sha256: NotRequired[Sha256]
    extension: NotRequired[Evaluation]
    extension_sha256: NotRequired[Sha256]


class Adapter(TypedDict):
    name: str
    description: str
    recipe: str
    data: Data
    evaluation: Evaluation1
    serving: str
    rollout: Rollout
