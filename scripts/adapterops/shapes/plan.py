"""The shape of `configs/schemas/plan.json`; `make types`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias, TypedDict


class Changes(TypedDict):
    data: list[str]
    rules: list[str]
    settings: list[str]
    code: list[str]
    documents: list[str]


class Rule(TypedDict):
    file: str
    setting: str
    old: str | None
    new: str | None
    weaker: bool | None


class Gpu(TypedDict):
    allowed: bool
    reason: str


class Budget(TypedDict):
    usd: float | None
    cap_usd: float | None
    approved: bool


Sha256: TypeAlias = str


Commit: TypeAlias = str


class Adapter(TypedDict):
    name: str
    change: Literal["new", "weights", "judgement", "removed"]
    training_key: Sha256 | None
    judgement_key: Sha256 | None
    digest: Sha256 | None
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"] | None
    released: bool
    action: Literal["train", "judge", "reuse", "none"]
    minutes: float | None
    usd: float | None
    basis: str
    hints: list[str]
    power: NotRequired[list[str]]


class Plan(TypedDict):
    schema: Literal["plan/v1"]
    base: Commit
    head: Commit
    tree: str | None
    fork: bool
    verdict: Literal["PROCEED", "REFUSED"]
    reason: str
    problems: list[str]
    changes: Changes
    rules: list[Rule]
    gpu: Gpu
    budget: Budget
    adapters: list[Adapter]
    validate: list[str]
    train: list[str]
