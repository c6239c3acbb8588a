"""The shape of `configs/schemas/data_policy.json`; `make types`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias, TypedDict

License: TypeAlias = str


class Range(TypedDict):
    min: int
    max: int


Share: TypeAlias = float


class Limits(TypedDict):
    instruction_tokens: Range
    output_tokens: Range
    duplicate_rate: Share
    near_duplicate: float
    contamination_hint: Share
    language: str | None
    language_share: Share
    licenses: list[License]
    personal_data: list[
        Literal["email", "phone", "rrn", "passport", "driver_licence", "card", "ip", "secret"]
    ]


class Dataset(TypedDict):
    files: str
    reason: str
    instruction_tokens: NotRequired[Range]
    output_tokens: NotRequired[Range]
    duplicate_rate: NotRequired[Share]
    near_duplicate: NotRequired[float]
    contamination_hint: NotRequired[Share]
    language: NotRequired[str | None]
    language_share: NotRequired[Share]
    licenses: NotRequired[list[License]]
    personal_data: NotRequired[
        list[Literal["email", "phone", "rrn", "passport", "driver_licence", "card", "ip", "secret"]]
    ]


class DataPolicy(TypedDict):
    limits: Limits
    datasets: list[Dataset]
