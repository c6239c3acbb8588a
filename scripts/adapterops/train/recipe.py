"""`configs/qlora/*.yaml` as data, and the training key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterops.basemodels import BaseModel, find_base_model
from adapterops.documents import sha256_file, sha256_json
from adapterops.errors import UsageError
from adapterops.yamlfile import load_yaml

# Carried into the training key. Raise it with every change of the training code that changes the weights it makes.
RECIPE_VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """One training recipe; the field groups are those of the YAML file."""

    path: Path
    base_model: BaseModel
    seed: int
    quantization: dict[str, Any]
    lora: dict[str, Any]
    training: dict[str, Any]

    def resolved(self) -> dict[str, Any]:
        """Everything in the recipe that determines weights, with spellings made equal (`2` and `2.0`, order of modules)."""
        training = {
            key: float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
            for key, value in self.training.items()
            if key not in {"logging_steps", "on_truncation"}
        }
        lora = {
            **self.lora,
            "alpha": float(self.lora["alpha"]),
            "dropout": float(self.lora["dropout"]),
            "target_modules": sorted(self.lora["target_modules"]),
        }
        return {"quantization": self.quantization, "lora": lora, "training": training}


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        UsageError: schema violations, a base model that is not on the allow-list, or options that do not go together.
    """
    values = load_yaml(path, "recipe")
    base_model = find_base_model(values["base_model"], f"{path}: base_model")
    training = values["training"]
    problems = []
    if training["attn_implementation"] == "varlen" and not training["packing"]:
        problems.append("training.attn_implementation varlen takes packed rows only. Set packing: true, or attn_implementation: sdpa.")
    if training["gradient_checkpointing"] == "selective" and not training["fused_lora"]:
        problems.append("training.gradient_checkpointing selective is done by the fused MLP. Set fused_lora: true, or true or false.")
    if training["max_length"] > base_model.context_length:
        problems.append(
            f"training.max_length {training['max_length']} exceeds the context length {base_model.context_length} of {base_model.name}."
        )
    if problems:
        raise UsageError("\n".join(f"{path}: {problem}" for problem in problems))
    return Recipe(path, base_model, values["seed"], values["quantization"], values["lora"], training)


def training_key_inputs(recipe: Recipe, data: list[Path]) -> dict[str, Any]:
    """What determines an adapter's weights: resolved recipe, data digests, base model, seed, recipe version."""
    return {
        "recipe_version": RECIPE_VERSION,
        "base_model": recipe.base_model.key_inputs(),
        "recipe": recipe.resolved(),
        "data": [sha256_file(path) for path in data],
        "seed": recipe.seed,
    }


def training_key(recipe: Recipe, data: list[Path]) -> str:
    """SHA-256 of the canonical JSON of `training_key_inputs`, 64 hex digits."""
    return sha256_json(training_key_inputs(recipe, data))
