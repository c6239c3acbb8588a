"""The shape of `configs/schemas/checkpoint_seal.json`; `make types`."""

from __future__ import annotations

from typing import TypeAlias, TypedDict

Sha256: TypeAlias = str


class File(TypedDict):
    name: str
    size: int
    sha256: Sha256


class CheckpointSeal(TypedDict):
    training_key: Sha256
    place: str
    step: int
    files: list[File]
