"""TRL's SFTTrainer with the loss over the answers alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig

from adapterops.shapes.recipe import Training
from adapterops.train.packing import Batch, model_inputs
from adapterops.train.patches.peft import load_adapter, same_precision
from adapterops.train.patches.transformers import RepeatableOrder, order_state
from adapterops.train.patches.trl import QuietTrainer
from adapterops.train.processes import any_process

if TYPE_CHECKING:
    from adapterops.candidates.checkpoints import Checkpoints
    from adapterops.train.best_weights import BestWeights


def training_arguments(
    training: Training, seed: int, directory: Path, **changes: object
) -> SFTConfig:
    """The recipe's `training` as TRL wants it.

    Args:
        training: the recipe's section.
        seed: of the order of rows and of dropout.
        directory: where Trainer may write checkpoints.
        changes: other arguments, which win.
    """
    on_gpu = torch.cuda.is_available()
    arguments: dict[str, object] = {
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
        # Every weight is bf16 already; autocast would only add casts. DeepSpeed casts by itself and
        # refuses another type.
        "bf16": _launched_with("DEEPSPEED"),
        "use_cpu": not on_gpu,
        "logging_steps": 1,  # every step is looked at; `Watch` shows one in training.logging_steps
        "logging_nan_inf_filter": False,  # its default shows a diverged run as a healthy one
        "save_strategy": "no",
        "report_to": training.get("report_to", "none"),
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu,
        # Rows come rendered, masked, checked and packed: TRL would cut them without a word.
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "remove_unused_columns": False,  # the collator makes the batch
    }
    return SFTConfig(**{**arguments, **changes})


def in_pieces(arguments: SFTConfig) -> bool:
    """Whether each process holds only a piece of the network: FSDP, or DeepSpeed ZeRO stage 3."""
    plugin = arguments.deepspeed_plugin
    return _launched_with("FSDP") or (plugin is not None and plugin.zero_stage == 3)


def _launched_with(kind: str) -> bool:
    """Whether `accelerate launch` said so: FSDP or DEEPSPEED."""
    return os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true"


class AnswerTrainer(QuietTrainer):
    """SFTTrainer for batches of `packing.Collator` and models of `network.apply_kernels`.

    TRL seeds, adds the adapter and keeps it in bf16 (arXiv:2305.14314 §3) when it is made; kernels
    are applied after that.

    Attributes:
        sharded: each process holds only a piece of the network.
        checkpoints: who is told of each; None where nobody is.
        best: weights that go with each checkpoint; None where there are none.
    """

    loss_is_scaled_for_ga = True  # by `num_items_in_batch`
    sharded = False
    checkpoints: Checkpoints | None = None
    best: BestWeights | None = None
    _order: RepeatableOrder | None = None
    _resumed_order: torch.Tensor | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        self._order = RepeatableOrder(sampler, self._resumed_order)
        return self._order

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        reason = ""
        try:
            super()._save_checkpoint(*arguments, **options)
            if self.is_world_process_zero():
                self._save_beside(Path(self.args.output_dir))
        except (OSError, RuntimeError, SafetensorError) as error:
            if not self.checkpoints:
                raise
            reason = str(error)
        if not self.checkpoints:
            return
        # Each process writes files of its own: all are there, or it is no checkpoint.
        (failed,) = any_process(bool(reason))
        if failed:
            self.checkpoints.failed(
                self.state.global_step, reason or "another process could not write it"
            )
        elif self.is_world_process_zero():
            self.checkpoints.seal(self.state.global_step)

    def _save_beside(self, directory: Path) -> None:
        """What a resumption needs and Trainer does not write."""
        checkpoint = directory / f"checkpoint-{self.state.global_step}"
        # Between two epochs there is no order to go on with: the next is drawn from the state that
        # Trainer itself restores.
        if self._order is not None and self.state.epoch % 1:
            self._order.write(checkpoint)
        if self.best is not None:
            self.best.write(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            load_adapter(model, Path(resume_from_checkpoint))
            return
        with same_precision(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def adapter_weights(self) -> dict[str, torch.Tensor]:
        """The trained weights by name, in the first process; all processes have to ask."""
        state = self.accelerator.get_state_dict(self.model_wrapped) if self.sharded else None
        if not self.is_world_process_zero():
            return {}
        model = self.accelerator.unwrap_model(self.model)
        return dict(get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False))

    def resume_order(self, checkpoint: Path) -> None:
        """Have the epoch that `checkpoint` interrupted drawn in the order that it had."""
        self._resumed_order = order_state(checkpoint)

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, object]]:
        """Mean negative log-likelihood in nats over supervised tokens.

        TRL's own loss waits for the GPU several times a micro-batch, to count and to log entropy
        and accuracy (https://github.com/huggingface/trl/pull/6678). It is taken where the LM head
        lies in pieces, which it knows to gather.

        Args:
            model: what is trained.
            inputs: a batch of `packing.Collator`.
            return_outputs: whether outputs are wanted beside the loss; there are none.
            num_items_in_batch: supervised tokens of all micro-batches of the step.
        """
        if self.sharded:
            plain = {k: v for k, v in inputs.items() if k not in {"positions", "targets"}}
            theirs: torch.Tensor | tuple[torch.Tensor, dict[str, object]] = super().compute_loss(
                model, plain, return_outputs, num_items_in_batch
            )
            return theirs
        total = model(**model_inputs(inputs, inputs["input_ids"].device))
        if num_items_in_batch is None:
            loss = total / max(1, len(inputs["targets"]))
        else:
            loss = total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
            if model.training and self.args.average_tokens_across_devices:
                # The count is that of all processes, and their gradients are averaged, not summed.
                loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss
