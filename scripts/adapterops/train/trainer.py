"""transformers' Trainer with the loss over the answers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments


def training_arguments(training: dict[str, Any], seed: int, directory: Path, **changes: Any) -> TrainingArguments:
    """The recipe's `training` as Trainer wants it.

    Args:
        training: the recipe's section.
        seed: of the order of rows and of dropout.
        directory: where Trainer may write checkpoints.
        changes: other arguments, which win.
    """
    on_gpu = torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "output_dir": str(directory),
        "seed": seed,
        "num_train_epochs": training["num_train_epochs"],
        "per_device_train_batch_size": training["per_device_train_batch_size"],
        "gradient_accumulation_steps": training["gradient_accumulation_steps"],
        "learning_rate": training["learning_rate"],
        "lr_scheduler_type": training["lr_scheduler_type"],
        "warmup_steps": training["warmup_ratio"],  # a float below 1 is a share of all steps
        "weight_decay": training["weight_decay"],
        "max_grad_norm": training["max_grad_norm"],
        "train_sampling_strategy": training["train_sampling_strategy"],
        "gradient_checkpointing": training["gradient_checkpointing"] is True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "optim": training["optim"],
        "bf16": False,  # every weight is bf16 already; autocast would only add casts
        "use_cpu": not on_gpu,
        "logging_steps": training["logging_steps"],
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # its default shows a diverged run as a healthy one
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu,
        "remove_unused_columns": False,  # the collator makes the batch
    }
    return TrainingArguments(**{**arguments, **changes})


class AnswerTrainer(Trainer):  # type: ignore[misc]  # transformers ships no types for it
    """Trainer for batches of `packing.Collator` and models of `network.apply_kernels`."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, Any]]:
        """Mean negative log-likelihood in nats over supervised tokens; `num_items_in_batch` counts those of all micro-batches."""
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        total = model(**inputs)
        if num_items_in_batch is None:
            loss = total / max(1, len(inputs["targets"]))
        else:
            loss = total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
            if model.training and self.args.average_tokens_across_devices:
                # The count is that of all processes, and their gradients are averaged, not summed.
                loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss
