"""From a recipe and encoded rows to a trainer that is ready to go."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, set_seed

from adapterops.basemodels import base_model_directory
from adapterops.train.cpu import keep_freed_memory
from adapterops.train.labels import Row
from adapterops.train.network import add_lora, apply_kernels, load_base, refuse_leaks
from adapterops.train.packing import Collator, packed_rows
from adapterops.train.recipe import Recipe
from adapterops.train.trainer import AnswerTrainer, training_arguments


def build_trainer(recipe: Recipe, training: dict[str, Any], rows: list[Row], pad_token_id: int, checkpoints: Path) -> AnswerTrainer:
    """Load the base model, add LoRA and kernels, and hand all to Trainer.

    Args:
        recipe: what to train.
        training: its settings, or milder ones of the ladder.
        rows: what to train on.
        pad_token_id: fills up batches.
        checkpoints: where Trainer writes them.

    Raises:
        UsageError: settings that cannot be had here, or packed rows that would see each other.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        keep_freed_memory()
    set_seed(recipe.seed)
    arguments = training_arguments(training, recipe.seed, checkpoints)
    attention = training["attn_implementation"]
    model = add_lora(
        load_base(base_model_directory(recipe.base_model), recipe.quantization, attention, arguments.device), recipe.lora, recipe.seed
    )
    apply_kernels(
        model,
        liger=training["liger"],
        fused_lora=training["fused_lora"],
        selective_checkpointing=training["gradient_checkpointing"] == "selective",
    )
    capacity = training["max_length"] if training["packing"] else None
    collate = Collator(pad_token_id, capacity, variable_length=attention in {"varlen", "flash_attention_2"})
    if capacity:
        refuse_leaks(model, collate, model.config.vocab_size)
    trainer = AnswerTrainer(
        model=model,
        args=arguments,
        train_dataset=packed_rows(rows, capacity) if capacity else rows,
        data_collator=collate,
    )
    trainer.remove_callback(PrinterCallback)  # prints every log line a second time, as a dict
    return trainer


def mean_loss(model: Any, rows: list[Row], collate: Collator, batch: int = 8) -> float:
    """Mean negative log-likelihood in nats over the supervised tokens of the rows, without dropout."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            inputs = collate(rows[start : start + batch])
            count += len(inputs["targets"])
            moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in inputs.items() if name != "labels"}
            total += float(model(**moved))
    model.train(was_training)
    return total / max(1, count)


def hold_back(rows: list[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and a share held back to judge by; the content of a row decides, not its place."""

    def key(row: Row) -> str:
        return hashlib.sha256(repr(row["input_ids"]).encode()).hexdigest()

    count = max(1, round(len(rows) * share))
    held = set(sorted(map(key, rows))[:count])
    return [row for row in rows if key(row) not in held], [row for row in rows if key(row) in held]


def remember(model: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """`keep` copies the trained weights, `restore` puts the last copy back."""
    copies: dict[str, torch.Tensor] = {}

    def keep() -> None:
        copies.update({name: value.detach().to("cpu", copy=True) for name, value in model.named_parameters() if value.requires_grad})

    def restore() -> None:
        with torch.no_grad():
            for name, value in model.named_parameters():
                if name in copies:
                    value.copy_(copies[name])

    return keep, restore
