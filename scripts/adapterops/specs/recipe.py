"""`configs/qlora/*.yaml` as data, and the training key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapterops.documents import sha256_file, sha256_json
from adapterops.schemas import ROOT, SchemaProblem, repository_path
from adapterops.shapes.recipe import Lora, Quantization, Training
from adapterops.shapes.recipe import Recipe as RecipeDocument
from adapterops.shapes.serving import Serving
from adapterops.shapes.train_manifest import KeyInputs, ResolvedRecipe
from adapterops.specs.base_model import BaseModel, find_base_model, load_base_models, not_allowed
from adapterops.yamlfile import Sound, load_yaml

# Part of the training key. Raise it with every change of the code that changes the weights.
RECIPE_VERSION = 3


@dataclass(frozen=True)
class Recipe:
    """One training recipe; the field groups are those of the YAML file."""

    path: Path
    base_model: BaseModel
    seed: int
    quantization: Quantization
    lora: Lora
    training: Training

    def resolved(self) -> ResolvedRecipe:
        """Everything that determines weights; equal settings are written alike (`2` and `2.0`)."""
        training = {
            key: (
                float(value)
                if isinstance(value, int | float) and not isinstance(value, bool)
                else value
            )
            for key, value in self.training.items()
            if key not in {"keep_dequantized", "logging_steps", "on_truncation", "report_to"}
        }
        lora: dict[str, object] = {
            **self.lora,
            "alpha": float(self.lora["alpha"]),
            "dropout": float(self.lora["dropout"]),
            "target_modules": sorted(self.lora["target_modules"]),
        }
        quantization = {
            key: value for key, value in self.quantization.items() if key != "max_loss_increase"
        }
        return {"quantization": quantization, "lora": lora, "training": training}


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        UsageError: schema violations, a base model that is not on the allow-list, or options that
            do not go together.
    """
    values = load_yaml(path, RecipeDocument, _together)
    base_model = find_base_model(values["base_model"], f"{path}: base_model")
    return Recipe(
        path, base_model, values["seed"], values["quantization"], values["lora"], values["training"]
    )


def _together(sound: Sound) -> list[SchemaProblem]:
    """Settings that do not go together, or not with the base model and its servers."""
    problems = []

    def refuse(section: str, setting: str, message: str) -> None:
        problems.append(SchemaProblem((section, setting), message))

    if (
        sound("training", "attn_implementation") == "varlen"
        and sound("training", "packing") is False
    ):
        refuse(
            "training",
            "attn_implementation",
            "varlen takes packed rows only. Set packing: true, or attn_implementation: sdpa.",
        )
    if (
        sound("training", "gradient_checkpointing") == "selective"
        and sound("training", "fused_lora") is False
    ):
        refuse(
            "training",
            "gradient_checkpointing",
            "selective is done by the fused MLP. Set fused_lora: true, or this to true or false.",
        )
    if sound("training", "keep_dequantized") and sound("training", "fused_lora") is False:
        refuse(
            "training",
            "keep_dequantized",
            "it is the fused layers that keep them. Set fused_lora: true, or remove this.",
        )
    name, length, rank = sound("base_model"), sound("training", "max_length"), sound("lora", "r")
    base_model = load_base_models().get(name) if name else None
    if name and not base_model:
        problems.append(SchemaProblem(("base_model",), not_allowed(name)))
    if base_model and length and length > base_model.context_length:
        refuse(
            "training",
            "max_length",
            f"{length} exceeds the context length {base_model.context_length} of {name}. Lower it.",
        )
    if base_model and rank and (problem := _servable(rank, base_model)):
        refuse("lora", "r", problem)
    return problems


def _servable(rank: int, base_model: BaseModel, directory: Path = ROOT / "configs") -> str | None:
    """Why no configured server would take an adapter of that rank; None if one would.

    A base model that none serves is held to the highest limit: its server would be set up alike.
    """
    configs = {
        repository_path(path): load_yaml(path, Serving)
        for path in sorted(directory.glob("serving*.yaml"))
    }
    mine = {
        path: config for path, config in configs.items() if config["base_model"] == base_model.name
    }
    limits = {path: config["engine"]["max_lora_rank"] for path, config in (mine or configs).items()}
    if not limits or max(limits.values()) >= rank:
        return None
    listed = ", ".join(f"{path} up to {limit}" for path, limit in limits.items())
    of, none = (f" of {base_model.name}", "") if mine else ("", f"; none serves {base_model.name}")
    return (
        f"{rank} is more than any configured server{of} accepts ({listed}{none}). Lower it, or"
        " raise max_lora_rank there."
    )


def hints(recipe: Recipe, rows: int) -> list[str]:
    """Advice on settings outside the ranges in which QLoRA usually does well; none is refused.

    Ranges: QLoRA (arXiv:2305.14314 §4), "LoRA Learns Less and Forgets Less" (arXiv:2405.09673), and
    experience.
    """
    found = []
    rank, alpha, training = recipe.lora["r"], recipe.lora["alpha"], recipe.training
    rate, epochs = training["learning_rate"], training["num_train_epochs"]
    small = recipe.base_model.parameters < 1e9  # a small model wants less rank and larger steps
    if not 16 <= rank <= 128:
        found.append(
            f"lora.r {rank} is outside 16–128: below, hard tasks do not fit; above, it costs memory"
            " and rarely helps."
        )
    if not rank <= alpha <= 2 * rank:
        found.append(
            f"lora.alpha {alpha} is outside 1–2 × r ({rank}–{2 * rank}): alpha / r scales the"
            " update as the learning rate does."
        )
    if not small and not 1e-4 <= rate <= 3e-4:
        found.append(
            f"training.learning_rate {rate} is outside 1e-4–3e-4: below, few steps learn little;"
            " above, large models diverge."
        )
    low, high = (3, 5) if rows < 10_000 else (2, 3) if rows <= 100_000 else (1, 2)
    if epochs > high or (epochs < low and not small):
        why = "more memorises" if epochs > high else "fewer leave much unlearnt"
        found.append(
            f"training.num_train_epochs {epochs} is outside {low}–{high}, usual for {rows:,} rows:"
            f" {why}."
        )
    if not training["packing"] and not small:
        found.append(
            "training.packing false computes on padding: packing was 3.45 × as fast on the 8B model"
            " (docs/performance.md)."
        )
    return found


def training_key_inputs(recipe: Recipe, data: list[Path]) -> KeyInputs:
    """What determines an adapter's weights: recipe and its version, data, base model, seed."""
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
