"""The shape of `configs/schemas/base_models.json`; `make types`."""

from __future__ import annotations

from typing import Literal, TypeAlias, TypedDict

Sha256: TypeAlias = str


class Source(TypedDict):
    type: Literal["hub"]
    id: str
    revision: str


class Source1(TypedDict):
    type: Literal["directory"]
    path: str


class Part(TypedDict):
    package: str
    version: str
    member: str


class Source2(TypedDict):
    type: Literal["wheels"]
    parts: list[Part]
    sha256: Sha256


Language: TypeAlias = str


class ChatTemplate(TypedDict):
    path: str
    sha256: Sha256


StopToken: TypeAlias = str


class Memory(TypedDict):
    bf16_gib: float
    nf4_gib: float


class Model(TypedDict):
    source: Source | Source1 | Source2
    license: str
    license_url: str
    languages: list[Language]
    parameters: int
    context_length: int
    chat_template: ChatTemplate
    end_of_turn: str
    stop_tokens: list[StopToken]
    pad_token: str
    memory: Memory


class BaseModels(TypedDict):
    models: dict[str, Model]
