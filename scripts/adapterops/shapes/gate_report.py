"""The shape of `configs/schemas/gate_report.json`; `make types`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias, TypedDict


class OpenItem(TypedDict):
    id: str
    line: int
    kind: Literal["not refused", "refused", "uncertain"]


class Adjudicated(TypedDict):
    path: str | None
    labels: int
    used: int
    changed: int
    open: list[OpenItem]


class Slice(TypedDict):
    slice: str
    metric: str
    against: str
    candidate: float
    reference: float
    n: int
    p: float


class Extension(TypedDict):
    registered: bool
    drawn: bool
    wanted: bool


class Message(TypedDict):
    role: str
    content: str


class Probe(TypedDict):
    messages: list[Message]
    output: str


Sha256: TypeAlias = str


Verdict: TypeAlias = Literal["PASS", "FAIL", "INCONCLUSIVE", "ERROR"]


class Adapter(TypedDict):
    name: str | None
    digest: Sha256
    training_key: Sha256
    base_model: str


class Production(TypedDict):
    name: str | None
    digest: Sha256 | None
    note: str


class GateConfig(TypedDict):
    path: str
    sha256: Sha256


class Gate(TypedDict):
    metric: str
    slice: NotRequired[str | None]
    relation: Literal["min", "max"]
    threshold: float
    rule: Literal["point", "bound"]
    confidence: float
    value: float | None
    n: int | None
    count: int | None
    interval: list[float | None]
    extended: bool
    blocking: bool
    verdict: Verdict
    reason: str
    description: str


class Comparison(TypedDict):
    metric: str
    slice: NotRequired[str | None]
    against: Literal["production", "base"]
    scale: Literal["difference", "ratio"]
    candidate: float | None
    reference: float | None
    n: int
    effect: float | None
    interval: list[float | None]
    confidence: float
    margin: float | None
    superiority: Literal["better", "same", "worse"]
    extended: bool
    blocking: bool
    verdict: Verdict | None
    reason: str
    description: NotRequired[str]


class Base(TypedDict):
    verdict: Verdict
    gates: list[Gate]


class Evaluation(TypedDict):
    eval_key: Sha256
    pinned: bool
    path: str
    sha256: Sha256
    rows: int


class GateReport(TypedDict):
    schema: Literal["gate_report/v1"]
    gate_key: Sha256
    verdict: Verdict
    reason: str
    errors: list[str]
    warnings: list[str]
    adjudicated: Adjudicated
    adapter: Adapter
    production: Production
    gate_config: GateConfig
    gates: list[Gate]
    comparisons: list[Comparison]
    slices: list[Slice]
    base: Base
    extension: Extension
    probes: list[Probe]
    evaluation: Evaluation
    judged_at: str
    former_verdicts: list[Verdict]
