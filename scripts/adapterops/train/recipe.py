"""`configs/qlora/*.yaml` as data, and the training key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterops.basemodels import BaseModel, find_base_model
from adapterops.documents import sha256_file, sha256_json
from adapterops.errors import UsageError
from adapterops.schemas import ROOT, repository_path
from adapterops.yamlfile import load_yaml

# Carried into the training key. Raise it with every change of the training code that changes the weights it makes.
RECIPE_VERSION = 2


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
            if key not in {"logging_steps", "on_truncation", "report_to"}
        }
        lora = {
            **self.lora,
            "alpha": float(self.lora["alpha"]),
            "dropout": float(self.lora["dropout"]),
            "target_modules": sorted(self.lora["target_modules"]),
        }
        quantization = {key: value for key, value in self.quantization.items() if key != "max_loss_increase"}
        return {"quantization": quantization, "lora": lora, "training": training}


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
    if problem := _servable(values["lora"]["r"], base_model):
        problems.append(problem)
    if problems:
        raise UsageError("\n".join(f"{path}: {problem}" for problem in problems))
    return Recipe(path, base_model, values["seed"], values["quantization"], values["lora"], training)


def _servable(rank: int, base_model: BaseModel, directory: Path = ROOT / "configs") -> str | None:
    """Why no configured server would take an adapter of that rank; None if one would, or none serves this base model."""
    limits = {}
    for path in sorted(directory.glob("serving*.yaml")):
        config = load_yaml(path, "serving")
        if config["base_model"] == base_model.name:
            limits[repository_path(path)] = config["engine"]["max_lora_rank"]
    if not limits or max(limits.values()) >= rank:
        return None
    listed = ", ".join(f"{path} up to {limit}" for path, limit in limits.items())
    return (
        f"lora.r {rank} is more than any configured server of {base_model.name} accepts ({listed}). Lower it, or raise max_lora_rank there."
    )


def hints(recipe: Recipe, rows: int) -> list[str]:
    """Advice on settings outside the ranges in which QLoRA usually does well; nothing here is refused.

    Ranges: QLoRA (arXiv:2305.14314 §4), "LoRA Learns Less and Forgets Less" (arXiv:2405.09673), and experience.
    """
    found = []
    rank, alpha, training = recipe.lora["r"], recipe.lora["alpha"], recipe.training
    rate, epochs = training["learning_rate"], training["num_train_epochs"]
    small = recipe.base_model.parameters < 1e9  # a small model wants less rank and larger steps
    if not 16 <= rank <= 128:
        found.append(f"lora.r {rank} is outside 16–128: below, hard tasks do not fit; above, it costs memory and rarely helps.")
    if not rank <= alpha <= 2 * rank:
        found.append(f"lora.alpha {alpha} is outside 1–2 × r ({rank}–{2 * rank}): alpha / r scales the update as the learning rate does.")
    if not small and not 1e-4 <= rate <= 3e-4:
        found.append(f"training.learning_rate {rate} is outside 1e-4–3e-4: below, few steps learn little; above, large models diverge.")
    low, high = (3, 5) if rows < 10_000 else (2, 3) if rows <= 100_000 else (1, 2)
    if epochs > high or (epochs < low and not small):
        found.append(f"training.num_train_epochs {epochs} is outside {low}–{high}, usual for {rows:,} rows: more memorises.")
    if not recipe.training["packing"] and not small:
        found.append("training.packing false computes on padding: packing was 2.9 × as fast on the 8B model, with the same loss.")
    return found


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
