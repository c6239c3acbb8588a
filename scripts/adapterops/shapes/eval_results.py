"""The shape of `configs/schemas/eval_results.json`; `make types`."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

Group: TypeAlias = int


class Request(TypedDict):
    latency_ms: float
    ttft_ms: float
    tokens: int


class Candidate(TypedDict):
    warm_up: int
    concurrency: int
    failed: list[int]
    requests: list[Request]


class Production1(TypedDict):
    warm_up: int
    concurrency: int
    failed: list[int]
    requests: list[Request]


class Speed(TypedDict):
    candidate: Candidate
    production: Production1 | None


class Source(TypedDict):
    source: str
    refusals: int
    refusals_refused: int
    refusals_unsure: int
    answers: int
    answers_refused: int
    answers_unsure: int


class RefusalDetector(TypedDict):
    id: str
    sources: list[Source]
    unsure: int
    judge: str | None
    judge_note: str
    judged: int


class WinRate(TypedDict):
    judge: str
    against: Literal["production", "base"]
    trial: int
    trial_right: int
    wins: int
    ties: int
    losses: int
    identical: int
    swayed: int
    unreadable: int
    note: str


class Engine(TypedDict):
    version: str
    dtype: str
    device: str


class Message(TypedDict):
    role: str
    content: str


class Probe(TypedDict):
    messages: list[Message]
    output: str


Sha256: TypeAlias = str


class GeneralItem(TypedDict):
    path: str
    sha256: Sha256
    rows: int
    asked: int


General: TypeAlias = list[GeneralItem]


Losses: TypeAlias = list[float]


class Metrics1(TypedDict):
    id: str
    value: float | None
    n: int
    count: NotRequired[int]
    floor: NotRequired[float]


Metrics: TypeAlias = dict[str, Metrics1]


class Adapter(TypedDict):
    digest: Sha256
    training_key: Sha256
    base_model: str


class Production(TypedDict):
    name: str | None
    digest: Sha256 | None
    note: str


class Extension(TypedDict):
    path: str
    sha256: Sha256
    rows: int


class GeneralModel(TypedDict):
    rows: General
    texts: General


class EvaluationData(TypedDict):
    path: str
    sha256: Sha256
    rows: int
    extension: Extension | None
    general: NotRequired[GeneralModel]


class Texts(TypedDict):
    languages: list[str]
    candidate: Losses
    production: Losses | None
    base: Losses


class Observations(TypedDict):
    groups: list[Group]
    candidate: dict[str, list[float | None]]
    production: dict[str, list[float | None]] | None
    base: dict[str, list[float | None]]
    texts: NotRequired[Texts]
    speed: Speed


class EvalResults(TypedDict):
    schema: Literal["eval_results/v1"]
    eval_key: Sha256
    key_inputs: dict[str, Any]
    adapter: Adapter
    production: Production
    evaluation_data: EvaluationData
    metrics: Metrics
    production_metrics: Metrics | None
    base_metrics: Metrics
    slices: dict[str, list[int]]
    observations: Observations
    failed: dict[str, int]
    refusal_detector: RefusalDetector
    win_rate: WinRate | None
    engine: Engine
    probes: list[Probe]
    samples: str
    seconds: dict[str, float]
