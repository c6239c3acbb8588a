"""From a recipe and encoded rows to a trainer that is ready to go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PrinterCallback
from trl import SFTConfig

from adapterops.basemodels.materialize import base_model_directory
from adapterops.errors import UsageError
from adapterops.shapes.recipe import Training
from adapterops.specs.recipe import Recipe
from adapterops.train.cpu import keep_freed_memory
from adapterops.train.labels import Row
from adapterops.train.network import apply_kernels, load_base, lora_config, try_attention
from adapterops.train.packing import Collator, model_inputs, packed_rows
from adapterops.train.patches.accelerate import keep_buffers_exact
from adapterops.train.patches.peft import let_peft_see_units
from adapterops.train.patches.trl import adapter_in_compute_type
from adapterops.train.preflight import shape_of
from adapterops.train.trainer import AnswerTrainer, in_pieces, training_arguments


def build_trainer(
    recipe: Recipe, training: Training, rows: list[Row], tokenizer: Any, checkpoints: Path
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
    if not torch.cuda.is_available():
        keep_freed_memory()
    datasets.disable_progress_bars()
    arguments = training_arguments(training, recipe.seed, checkpoints)
    _refuse_several_gpus(arguments)
    sharded = in_pieces(arguments)
    if sharded:
        _refuse_in_pieces(recipe, training)
    lora = lora_config(recipe.lora, shape_of(recipe).num_hidden_layers)
    attention = training["attn_implementation"]
    capacity = training["max_length"] if training["packing"] else None
    variable_length = attention in {"varlen", "flash_attention_2"}
    collate = Collator(tokenizer.pad_token_id, capacity, variable_length=variable_length)
    # Under ZeRO stage 3, whatever is made comes in pieces, and so would the network to try.
    if not (sharded and arguments.deepspeed_plugin):
        configuration = base_model_directory(recipe.base_model, weights=False)
        try_attention(configuration, attention, arguments.device, collate, recipe.path)
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
    trainer.sharded = sharded
    _prepare(trainer, training)
    return trainer


def _prepare(trainer: AnswerTrainer, training: Training) -> None:
    """What TRL, peft and FSDP leave to do before the first step."""
    adapter_in_compute_type(trainer.model)
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


def _refuse_several_gpus(arguments: SFTConfig) -> None:
    """One process trains on one GPU."""
    if arguments.n_gpu > 1:
        raise UsageError(
            f"{arguments.n_gpu} GPUs are visible to one process, which trains on one. Set"
            " CUDA_VISIBLE_DEVICES=0, or start one for each: accelerate launch --config_file"
            f" configs/accelerate/ddp.yaml --num_processes {arguments.n_gpu}"
            " scripts/train_qlora.py …"
        )


def _refuse_in_pieces(recipe: Recipe, training: Training) -> None:
    """Name all settings that FSDP or ZeRO stage 3 cannot do."""
    problems = []
    if training["fused_lora"]:
        problems.append(
            "training.fused_lora true reads the frozen weights itself, of which each process holds"
            " a piece. Set it to false."
        )
    if training["packing"] and training["attn_implementation"] == "varlen":
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
        where = f"{recipe.path}: under FSDP and ZeRO stage 3"
        raise UsageError("\n".join(f"{where}: {problem}" for problem in problems))


def mean_loss(model: Any, rows: list[Row], collate: Collator, batch: int) -> float:
    """Mean loss in nats a supervised token, without dropout, `batch` rows or packs at a time."""
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
            total += float(model(**model_inputs(inputs, device)))
    model.train(was_training)
    return total / max(1, count)
