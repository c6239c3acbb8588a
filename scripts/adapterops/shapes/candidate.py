"""The shape of `configs/schemas/candidate.json`; `make types`."""

from __future__ import annotations

from typing import Literal, TypeAlias, TypedDict


class Files(TypedDict):
    """
    Expected each of the four files of a trained adapter, once.
    """


Sha256: TypeAlias = str


class File(TypedDict):
    name: Literal[
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "train_manifest.json",
    ]
    size: int
    sha256: Sha256


class Candidate(TypedDict):
    schema: Literal["candidate/v1"]
    training_key: Sha256
    digest: Sha256
    files: list[File] | Files
