"""The shape of `configs/schemas/release_manifest.json`; `make types`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias, TypedDict


class Files(TypedDict):
    pass


class LostItem(TypedDict):
    metric: str
    slice: str | None
    base: float
    adapter: float
    n: int
    difference: float
    interval: list[float | None]
    confidence: float


class Message(TypedDict):
    role: str
    content: str


class Probe(TypedDict):
    messages: list[Message]
    output: str


Sha256: TypeAlias = str


Line: TypeAlias = str


Maybe: TypeAlias = Line | int | None


class File(TypedDict):
    name: Literal["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"]
    size: int
    sha256: Sha256


class BaseModel(TypedDict):
    name: Line
    source_id: Line
    revision: Line


class Source(TypedDict):
    commit: Maybe
    pr: Maybe
    actor: Maybe


class ReleaseManifest(TypedDict):
    schema: Literal["release_manifest/v1"]
    adapter: str
    digest: Sha256
    files: list[File] | Files
    base_model: BaseModel
    rank: int
    training_key: Sha256
    gate_key: Sha256
    verdict: Literal["PASS"]
    lost: NotRequired[list[LostItem]]
    metrics: dict[str, float | None]
    probes: list[Probe]
    trained_at: Line
    published_at: Line
    source: Source
