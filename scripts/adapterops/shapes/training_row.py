"""The shape of `configs/schemas/training_row.json`; `make types`."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


Tag: TypeAlias = str


class TrainingRow(TypedDict):
    id: str
    instruction: NotRequired[str]
    input: NotRequired[str]
    system: NotRequired[str]
    output: NotRequired[str]
    messages: NotRequired[list[Message]]
    language: str
    license: str
    source: str
    tags: NotRequired[list[Tag]]


Either: TypeAlias = Any
