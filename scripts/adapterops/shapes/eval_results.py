"""The shape of `configs/schemas/eval_results.json`; `make types`."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict


class Decoding(TypedDict):
    temperature: NotRequired[float]
    max_tokens: NotRequired[int]


Group: TypeAlias = int


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


Losses: TypeAlias = list[float]


class GeneralFile(TypedDict):
    path: str
    sha256: Sha256
    rows: int
    asked: int


class Metric(TypedDict):
    id: str
    value: float | None
    n: int
    count: NotRequired[int]
    floor: NotRequired[float]


class GeneralSets(TypedDict):
    rows: list[GeneralFile]
    texts: list[GeneralFile]


Columns: TypeAlias = dict[str, list[float | None]]


class Request(TypedDict):
    latency_ms: float
    ttft_ms: float
    tokens: int


class SourceFigures(TypedDict):
    source: str
    refusals: int
    refusals_refused: int
    refusals_unsure: int
    answers: int
    answers_refused: int
    answers_unsure: int


class Registered(TypedDict):
    sha256: Sha256
    drawn: bool


class SpeedAsked(TypedDict):
    requests: NotRequired[int]
    concurrency: NotRequired[int]


class EngineBuild(TypedDict):
    version: NotRequired[str]
    dtype: NotRequired[str]


class KeyBaseModel(TypedDict):
    name: str
    revision: str
    chat_template_sha256: Sha256
    end_of_turn: str
    pad_token: str


class KeyInputs(TypedDict):
    """
    what determines the measurements; an evaluation that is older than a setting lacks it
    """

    base_model: NotRequired[KeyBaseModel]
    decoding: NotRequired[Decoding]
    engine: NotRequired[EngineBuild]
    adapter: NotRequired[Sha256]
    production: NotRequired[Sha256 | None]
    data: NotRequired[Sha256]
    extension: NotRequired[Registered | None]
    general: NotRequired[dict[str, list[list[Any]]]]
    speed: NotRequired[SpeedAsked | None]
    metrics: NotRequired[dict[str, str]]
    refusal_judge: NotRequired[str]
    win_rate_judge: NotRequired[str]


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


class EvaluationData(TypedDict):
    path: str
    sha256: Sha256
    rows: int
    extension: Extension | None
    general: NotRequired[GeneralSets]


class Texts(TypedDict):
    languages: list[str]
    candidate: Losses
    production: Losses | None
    base: Losses


class RefusalDetector(TypedDict):
    id: str
    sources: list[SourceFigures]
    unsure: int
    judge: str | None
    judge_note: str
    judged: int


Metrics: TypeAlias = dict[str, Metric]


class SpeedPhase(TypedDict):
    warm_up: int
    concurrency: int
    failed: list[int]
    requests: list[Request]


class SliceMetrics(TypedDict):
    """
    of the rows of one slice
    """

    candidate: Metrics
    production: Metrics | None
    base: Metrics


class Speed(TypedDict):
    candidate: SpeedPhase
    production: SpeedPhase | None


class Observations(TypedDict):
    groups: list[Group]
    candidate: Columns
    production: Columns | None
    base: Columns
    texts: NotRequired[Texts]
    speed: Speed


class EvalResults(TypedDict):
    schema: Literal["eval_results/v1"]
    eval_key: Sha256
    key_inputs: KeyInputs
    adapter: Adapter
    production: Production
    evaluation_data: EvaluationData
    metrics: Metrics
    production_metrics: Metrics | None
    base_metrics: Metrics
    slices: dict[str, list[int]]
    slice_metrics: NotRequired[dict[str, SliceMetrics]]
    observations: Observations
    failed: dict[str, int]
    refusal_detector: RefusalDetector
    win_rate: WinRate | None
    engine: Engine
    probes: list[Probe]
    samples: str
    seconds: dict[str, float]
