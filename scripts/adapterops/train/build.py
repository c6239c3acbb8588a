"""From a recipe and encoded rows to a trainer that is ready to go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback

from adapterops.basemodels.materialize import base_model_directory
from adapterops.errors import UsageError
from adapterops.specs.recipe import Recipe
from adapterops.train.cpu import keep_freed_memory
from adapterops.train.labels import Row
from adapterops.train.network import apply_kernels, load_base, lora_config, try_attention
from adapterops.train.packing import Collator, packed_rows
from adapterops.train.preflight import shape_of
from adapterops.train.trainer import AnswerTrainer, in_pieces, training_arguments
from adapterops.train.units import keep_buffers_exact, let_peft_see_units

_KEPT = "best_weights.safetensors"


def build_trainer(
    recipe: Recipe, training: dict[str, Any], rows: list[Row], tokenizer: Any, checkpoints: Path
) -> AnswerTrainer:
    """Load the base model, hand it to TRL, which adds LoRA, and apply the kernels.

    Args:
        recipe: what to train.
        training: its settings, or milder ones of the ladder.
        rows: what to train on.
        tokenizer: the base model's.
        checkpoints: where Trainer writes them.

    Raises:
        UsageError: settings that cannot be had here, or packed rows that would see each other.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        keep_freed_memory()
    datasets.disable_progress_bars()
    arguments = training_arguments(training, recipe.seed, checkpoints)
    if arguments.n_gpu > 1:
        raise UsageError(
            f"{arguments.n_gpu} GPUs are visible to one process, which trains on one. Set"
            " CUDA_VISIBLE_DEVICES=0, or start one for each: accelerate launch --config_file"
            f" configs/accelerate/ddp.yaml --num_processes {arguments.n_gpu}"
            " scripts/train_qlora.py …"
        )
    sharded = in_pieces(arguments)
    if sharded:
        _refuse_in_pieces(recipe, training)
    lora = lora_config(recipe.lora, shape_of(recipe).num_hidden_layers)
    attention = training["attn_implementation"]
    capacity = training["max_length"] if training["packing"] else None
    collate = Collator(
        tokenizer.pad_token_id,
        capacity,
        variable_length=attention in {"varlen", "flash_attention_2"},
    )
    if not (
        sharded and arguments.deepspeed_plugin
    ):  # under ZeRO stage 3, whatever is made comes in pieces
        try_attention(
            base_model_directory(recipe.base_model, weights=False),
            attention,
            arguments.device,
            collate,
            recipe.path,
        )
    examples = datasets.Dataset.from_list(rows)
    trainer = AnswerTrainer(
        model=load_base(
            base_model_directory(recipe.base_model),
            recipe.quantization,
            attention,
            arguments.device,
            sharded=sharded,
        ),
        peft_config=lora,
        args=arguments,
        train_dataset=packed_rows(examples, capacity) if capacity else examples,
        data_collator=collate,
        processing_class=tokenizer,
    )
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # TRL makes it bf16, whatever the base model computes in
            parameter.data = parameter.data.to(trainer.model.get_base_model().dtype)
    trainer.sharded = sharded
    if trainer.is_fsdp_enabled:
        let_peft_see_units()
        keep_buffers_exact(trainer.accelerator.state.fsdp_plugin)
    apply_kernels(
        trainer.model,
        liger=training["liger"],
        fused_lora=training["fused_lora"],
        selective_checkpointing=training["gradient_checkpointing"] == "selective",
        keep_dequantized=training.get("keep_dequantized", False),
    )
    trainer.remove_callback(PrinterCallback)  # prints every log line a second time, as a dict
    return trainer


def _refuse_in_pieces(recipe: Recipe, training: dict[str, Any]) -> None:
    problems = []
    if training["fused_lora"]:
        problems.append(
            "training.fused_lora true reads the frozen weights itself, of which each process holds"
            " a piece. Set it to false."
        )
    if (
        training["attn_implementation"]
        not in {"flash_attention_2", "flex_attention", "sdpa", "eager"}
        and training["packing"]
    ):
        problems.append(
            "training.attn_implementation varlen was not tried there. Set flex_attention or"
            " flash_attention_2."
        )
    if training["optim"].startswith("paged"):
        problems.append(
            f"training.optim {training['optim']} pages whole parameters. Set adamw_torch, whose"
            " state is in pieces as well."
        )
    if training.get("early_stopping"):
        problems.append(
            "training.early_stopping keeps copies of the best weights, which are in pieces."
            " Remove it."
        )
    if problems:
        raise UsageError(
            "\n".join(
                f"{recipe.path}: under FSDP and ZeRO stage 3: {problem}" for problem in problems
            )
        )


def mean_loss(model: Any, rows: list[Row], collate: Collator, batch: int) -> float:
    """Mean negative log-likelihood in nats over the supervised tokens of the rows, `batch` rows or
    packs at a time, without dropout.
    """
    if collate.capacity:
        rows = packed_rows(datasets.Dataset.from_list(rows), collate.capacity).to_list()
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            inputs = collate(rows[start : start + batch])
            count += len(inputs["targets"])
            moved = {
                name: value.to(device) if hasattr(value, "to") else value
                for name, value in inputs.items()
                if name != "labels"
            }
            total += float(model(**moved))
    model.train(was_training)
    return total / max(1, count)


class Kept:
    """A copy of the trained weights as they were at one step.

    Args:
        model: whose weights.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._copies: dict[str, torch.Tensor] = {}

    def keep(self) -> None:
        """Copy them, in place of what was kept before."""
        self._copies = {
            name: value.detach().to("cpu", copy=True)
            for name, value in self._model.named_parameters()
            if value.requires_grad
        }

    def restore(self) -> None:
        """Put the copy back; without one, nothing."""
        with torch.no_grad():
            for name, value in self._model.named_parameters():
                if name in self._copies:
                    value.copy_(self._copies[name])

    def write(self, checkpoint: Path) -> None:
        """Lay the copy beside a checkpoint."""
        if self._copies:
            save_file(self._copies, checkpoint / _KEPT)

    def read(self, checkpoint: Path) -> None:
        """Take over what `write` left there."""
        if (checkpoint / _KEPT).is_file():
            self._copies = load_file(checkpoint / _KEPT)
