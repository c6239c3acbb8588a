"""The train manifest: what is recorded of a training (`configs/schemas/train_manifest.json`)."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from adapterops.documents import sha256_file, sha256_json
from adapterops.schemas import repository_path
from adapterops.shapes.pricing import Pricing
from adapterops.shapes.recipe import Training as Settings
from adapterops.shapes.train_manifest import (
    Adapter,
    AdapterFile,
    Environment,
    KeyInputs,
    Prediction,
    Quantisation,
    Run,
    Tokens,
    Training,
    TrainManifest,
)
from adapterops.specs.recipe import Recipe, hints
from adapterops.store.releases import adapter_digest
from adapterops.train.artifacts import peak_memory_gib
from adapterops.train.encode import EncodedData, mask_sample
from adapterops.train.preflight import cost, predict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adapterops.train.trainer import AnswerTrainer
    from adapterops.train.watch import Watch

_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


@dataclass(frozen=True)
class Inputs:
    """What a training is made of.

    Args:
        recipe: what is trained and how.
        data: training files, in this order.
        key_inputs: what the training key is the SHA-256 of.
        prices: of GPU types.
        started: when it began, by `time.monotonic`.
    """

    recipe: Recipe
    data: list[Path]
    key_inputs: KeyInputs
    prices: Pricing
    started: float


@dataclass(frozen=True)
class Outcome:
    """A training that came to its end.

    Args:
        trainer: with the trained network in it.
        watch: what was seen on the way.
        settings: those of the recipe, or milder ones.
        rungs: how they came to be milder.
        encoded: what was trained on.
        processes: how many trained.
        seconds: of the steps, since the last resumption.
        resumed_from: the step at which that was; 0 for none.
        lora_step0: digest of the initial LoRA matrices.
        quantisation: losses on both kinds of weights; None where they could not be compared.
    """

    trainer: AnswerTrainer
    watch: Watch
    settings: Settings
    rungs: list[str]
    encoded: EncodedData
    processes: int
    seconds: float
    resumed_from: int
    lora_step0: str
    quantisation: Quantisation | None


def train_manifest(
    inputs: Inputs, outcome: Outcome, tokenizer: PreTrainedTokenizerBase, adapter: Path
) -> TrainManifest:
    """The manifest of the adapter whose files lie in `adapter`."""
    recipe, encoded = inputs.recipe, outcome.encoded
    device = _device()
    return {
        "schema": "train_manifest/v1",
        "training_key": sha256_json(inputs.key_inputs),
        "key_inputs": inputs.key_inputs,
        "recipe": repository_path(recipe.path),
        "base_model": {
            "name": recipe.base_model.name,
            "source_id": recipe.base_model.source_id,
            "revision": recipe.base_model.revision,
            "license": recipe.base_model.license,
        },
        "data": [
            {"path": repository_path(path), "sha256": sha256_file(path)} for path in inputs.data
        ],
        "licenses": encoded.licenses,
        "tokens": _tokens(encoded, tokenizer),
        "training": _training(outcome, device, inputs.prices),
        "prediction": _prediction(recipe, outcome, device, inputs.prices),
        "run": _run(recipe, outcome),
        "adapter": _adapter(recipe, adapter),
        "environment": _environment(outcome, device),
        "total_seconds": round(time.monotonic() - inputs.started, 2),
        "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _device() -> str:
    """The GPU's name by its driver, or the kind of processor."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"cpu ({platform.machine()})"


def _tokens(encoded: EncodedData, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    return {
        "rows": len(encoded.input_ids),
        "total": encoded.tokens,
        "supervised": encoded.supervised_tokens,
        "longest_row": max(map(len, encoded.input_ids)),
        "truncated_rows": encoded.truncated_rows,
        "truncated_tokens": encoded.truncated_tokens,
        "truncated_supervised": encoded.truncated_supervised,
        "mask_sample": mask_sample(encoded, tokenizer),
    }


def _training(outcome: Outcome, device: str, prices: Pricing) -> Training:
    state, seconds = outcome.trainer.state, outcome.seconds
    share = (state.global_step - outcome.resumed_from) / max(1, state.global_step)
    trained = outcome.encoded.tokens * state.epoch * share
    return {
        "steps": state.global_step,
        "final_loss": outcome.watch.history[-1]["loss"],
        "loss_history": outcome.watch.history,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(trained / seconds, 1),
        **cost(seconds, device, prices, outcome.processes),
        "peak_memory_gib": peak_memory_gib(),
        "lora_step0_sha256": outcome.lora_step0,
    }


def _prediction(recipe: Recipe, outcome: Outcome, device: str, prices: Pricing) -> Prediction:
    return predict(
        recipe,
        outcome.settings,
        outcome.encoded,
        device,
        prices,
        processes=outcome.processes,
        sharded=outcome.trainer.sharded,
    )


def _run(recipe: Recipe, outcome: Outcome) -> Run:
    run: Run = {
        "processes": outcome.processes,
        "resumed_from_step": outcome.resumed_from,
        "out_of_memory": outcome.rungs,
        "stopped": outcome.watch.stopped,
        "held_back": outcome.watch.evaluations,
        "hints": hints(recipe, len(outcome.encoded.input_ids)),
    }
    if outcome.quantisation:
        run["quantisation"] = outcome.quantisation
    return run


def _adapter(recipe: Recipe, directory: Path) -> Adapter:
    names: tuple[AdapterFile, ...] = get_args(AdapterFile)
    return {
        "digest": adapter_digest(directory),
        "rank": recipe.lora["r"],
        "dtype": "bfloat16",
        "files": [
            {
                "name": name,
                "size": (directory / name).stat().st_size,
                "sha256": sha256_file(directory / name),
            }
            for name in names
        ],
    }


def _environment(outcome: Outcome, device: str) -> Environment:
    import torch

    computed_in = outcome.trainer.model.get_base_model().dtype
    name: Literal["bfloat16", "float32"] = (
        "bfloat16" if computed_in == torch.bfloat16 else "float32"
    )
    return {
        "device": device,
        "compute_dtype": name,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
