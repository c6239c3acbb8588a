"""TRL's SFTTrainer with the loss over the answers alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer

from adapterops.train.processes import any_process
from adapterops.train.units import load_adapter

if TYPE_CHECKING:
    from adapterops.candidates.checkpoints import Checkpoints
    from adapterops.train.build import Kept

_ORDER = "order_rng.json"


def training_arguments(
    training: dict[str, Any], seed: int, directory: Path, **changes: Any
) -> SFTConfig:
    """The recipe's `training` as TRL wants it.

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
        # Every weight is bf16 already; autocast would only add casts. DeepSpeed casts by itself,
        # and is refused if told another type.
        "bf16": _launched_with("DEEPSPEED"),
        "use_cpu": not on_gpu,
        "logging_steps": 1,  # every step is looked at; `Watch` shows one in training.logging_steps
        "logging_nan_inf_filter": False,  # its default shows a diverged run as a healthy one
        "save_strategy": "no",
        "report_to": training.get("report_to", "none"),
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu,
        # Rows come rendered, masked, checked against max_length and packed: TRL would cut them
        # without a word.
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


class _RepeatableOrder(torch.utils.data.Sampler[int]):
    """An order drawn from the global generator, whose state at the draw is kept: a resumed epoch
    must draw the same order.

    transformers does so for its random order alone (accelerate's seedable sampler).
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.drawn_from: torch.Tensor | None = None
        self.draw_from: torch.Tensor | None = None

    def __iter__(self) -> Any:
        if self.draw_from is not None:
            torch.set_rng_state(self.draw_from)
            self.draw_from = None
        self.drawn_from = torch.get_rng_state()
        return iter(list(self.inner))

    def __len__(self) -> int:
        return len(self.inner)


class AnswerTrainer(SFTTrainer):  # type: ignore[misc]  # TRL ships no types for it
    """SFTTrainer for batches of `packing.Collator` and models of `network.apply_kernels`.

    TRL seeds, adds the adapter and keeps it in bf16 (arXiv:2305.14314 §3) when it is made; kernels
    are applied after that.
    """

    loss_is_scaled_for_ga = True  # by `num_items_in_batch`
    sharded = False
    checkpoints: Checkpoints | None = None
    kept: Kept | None = None
    _order: _RepeatableOrder | None = None
    _resumed_order: torch.Tensor | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        self._order = _RepeatableOrder(sampler)
        self._order.draw_from = self._resumed_order
        return self._order

    def _send_telemetry(self) -> None:
        """A training tells nobody about itself."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Written once, when the training is done: `artifacts.model_card`. TRL writes its own with
        every checkpoint.
        """

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        directory = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        reason = ""
        try:
            super()._save_checkpoint(*arguments, **options)
            if self.is_world_process_zero():
                # Between two epochs there is no order to go on with: the next is drawn from the
                # state that Trainer itself restores.
                if (
                    self._order is not None
                    and self._order.drawn_from is not None
                    and self.state.epoch % 1
                ):
                    state = json.dumps(bytes(self._order.drawn_from.tolist()).hex())
                    (directory / _ORDER).write_text(state, encoding="utf-8")
                if self.kept:
                    self.kept.write(directory)
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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            load_adapter(model, Path(resume_from_checkpoint))
            return
        types = {
            name: parameter.dtype
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        # peft's load_adapter makes the adapter float32: a resumed training would go on in another
        # precision than it began.
        for name, parameter in self.model.named_parameters():
            if name in types:
                parameter.data = parameter.data.to(types[name])

    def adapter_weights(self) -> dict[str, torch.Tensor]:
        """The trained weights by name; in pieces, every process has to ask, and the first one gets
        them.
        """
        state = self.accelerator.get_state_dict(self.model_wrapped) if self.sharded else None
        if not self.is_world_process_zero():
            return {}
        model = self.accelerator.unwrap_model(self.model)
        return dict(get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False))

    def resume_order(self, checkpoint: Path) -> None:
        """Have the epoch that `checkpoint` interrupted drawn in the order that it had."""
        if (checkpoint / _ORDER).is_file():
            state = bytes.fromhex(json.loads((checkpoint / _ORDER).read_text(encoding="utf-8")))
            self._resumed_order = torch.tensor(list(state), dtype=torch.uint8)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, Any]]:
        """Mean negative log-likelihood in nats over supervised tokens; `num_items_in_batch` counts
        those of all micro-batches.

        TRL's own loss waits for the GPU several times a micro-batch, to count and to log entropy
        and accuracy. It is taken where the LM head lies in pieces, which it knows to gather.
        """
        if self.sharded:
            inputs = {
                name: value
                for name, value in inputs.items()
                if name not in {"positions", "targets"}
            }
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-any-return]
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
