"""The shape of `configs/schemas/data_report.json`; `make types`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias, TypedDict


class Duplicates(TypedDict):
    exact: int
    near: int
    conflicts: int


class Finding(TypedDict):
    file: str
    line: int
    code: str
    message: str
    severity: Literal["error", "hint"]
    row_id: str | None
    changed: bool


class Base(TypedDict):
    revision: str
    changed_only: bool


class Timing(TypedDict):
    startup_s: float
    checks_s: float
    rows_per_second: int


Sha256: TypeAlias = str


class Spread(TypedDict):
    min: int
    mean: float
    p50: int
    p95: int
    max: int
    total: int
    sampled_rows: NotRequired[int]


class Figures(TypedDict):
    rows: int
    mean_characters: float
    languages: dict[str, float]
    tasks: dict[str, float]
    refusals: float


class Policy(TypedDict):
    path: str
    sha256: Sha256


class Drift(TypedDict):
    added: int
    removed: int
    changed: int
    before: Figures | None
    after: Figures | None


class File(TypedDict):
    path: str
    kind: Literal["training", "eval"]
    sha256: Sha256
    bytes: int
    rows: int
    rejected_rows: int
    changed_rows: int
    duplicates: Duplicates
    target_language: str
    languages: dict[str, int]
    detected_languages: dict[str, int]
    tags: dict[str, int]
    refusals: int
    characters: Spread | None
    prompt_tokens: Spread | None
    answer_tokens: Spread | None
    row_tokens: Spread | None
    drift: Drift | None


class DataReport(TypedDict):
    schema: Literal["data_report/v2"]
    verdict: Literal["PASS", "FAIL"]
    policy: Policy
    base_model: str | None
    files: list[File]
    counts: dict[str, int]
    findings: list[Finding]
    base: Base | None
    timing: Timing
