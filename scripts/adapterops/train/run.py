"""QLoRA training: NF4 base model, LoRA, supervised fine-tuning on the answers (QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import logging
import math
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapterops.basemodels import base_model_directory, load_tokenizer
from adapterops.documents import new_directory, sha256_file, sha256_json, write_json
from adapterops.errors import InfrastructureError, RejectedError
from adapterops.schemas import repository_path
from adapterops.store.releases import adapter_digest, adapter_files
from adapterops.train.encode import EncodedData, encode_files
from adapterops.train.recipe import Recipe, training_key_inputs

if TYPE_CHECKING:
    from peft import PeftModel

    from adapterops.train.trainer import AnswerTrainer

MANIFEST = "train_manifest.json"
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


def train(recipe: Recipe, data: list[Path], output: Path, console: Console) -> dict[str, Any]:
    """Train an adapter and write `output` (as a whole, or not at all).

    Args:
        recipe: what to train and how.
        data: training files, in this order.
        output: adapter directory to make or replace.
        console: where progress is shown.

    Returns:
        The train manifest (`configs/schemas/train_manifest.json`), which also lies in `output`.

    Raises:
        RejectedError: the data cannot be trained on, or the loss is not a number.
        UsageError: recipe, base model or template is at fault.
        InfrastructureError: out of memory, or the base model cannot be had.
    """
    started = time.monotonic()
    key_inputs = training_key_inputs(recipe, data)
    tokenizer = load_tokenizer(recipe.base_model)
    encoded = encode_files(data, tokenizer, recipe.base_model, recipe.training["max_length"], recipe.training["on_truncation"])
    console.print(
        f"{len(encoded.input_ids)} rows, {encoded.tokens} tokens ({encoded.supervised_tokens} supervised), base model "
        f"{recipe.base_model.name}, rank {recipe.lora['r']}, seed {recipe.seed}",
        soft_wrap=True,
    )
    import torch

    _quieten()
    from transformers import PrinterCallback

    try:
        with new_directory(output) as staging, tempfile.TemporaryDirectory() as scratch:
            trainer = _build_trainer(recipe, encoded, tokenizer.pad_token_id, Path(scratch))
            lora_step0 = _lora_digest(trainer.model)
            progress = _Progress(console, encoded, recipe)
            trainer.remove_callback(PrinterCallback)  # prints every log line a second time, as a dict
            trainer.add_callback(progress.callback())
            trained_from = time.monotonic()
            with progress:
                trainer.train()
            seconds = time.monotonic() - trained_from
            _save_adapter(trainer.model, recipe, staging)
            (staging / "chat_template.jinja").write_text(recipe.base_model.chat_template(), encoding="utf-8")
            manifest = {
                "schema": "train_manifest/v1",
                "training_key": sha256_json(key_inputs),
                "key_inputs": key_inputs,
                "recipe": repository_path(recipe.path),
                "base_model": {
                    "name": recipe.base_model.name,
                    "source_id": recipe.base_model.source_id,
                    "revision": recipe.base_model.revision,
                    "license": recipe.base_model.license,
                },
                "data": [{"path": repository_path(path), "sha256": sha256_file(path)} for path in data],
                "tokens": {
                    "rows": len(encoded.input_ids),
                    "total": encoded.tokens,
                    "supervised": encoded.supervised_tokens,
                    "longest_row": max(map(len, encoded.input_ids)),
                    "truncated_rows": encoded.truncated_rows,
                    "truncated_tokens": encoded.truncated_tokens,
                },
                "training": {
                    "steps": trainer.state.global_step,
                    "final_loss": progress.history[-1]["loss"],
                    "loss_history": progress.history,
                    "seconds": round(seconds, 2),
                    "tokens_per_second": round(encoded.tokens * recipe.training["num_train_epochs"] / seconds, 1),
                    "peak_memory_gib": _peak_memory_gib(),
                    "lora_step0_sha256": lora_step0,
                },
                "adapter": {
                    "digest": adapter_digest(staging),
                    "rank": recipe.lora["r"],
                    "dtype": "bfloat16",
                    "files": [
                        {"name": name, "size": (staging / name).stat().st_size, "sha256": sha256_file(staging / name)}
                        for name in adapter_files
                    ],
                },
                "environment": {
                    "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})",
                    "python": platform.python_version(),
                    "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
                },
                "total_seconds": round(time.monotonic() - started, 2),
                "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            }
            write_json(staging / MANIFEST, manifest, "train_manifest")
    except torch.OutOfMemoryError as error:
        raise InfrastructureError(
            f"out of memory while training ({str(error).splitlines()[0]}). In {recipe.path}: set gradient_checkpointing: true; "
            "halve per_device_train_batch_size and double gradient_accumulation_steps; use optim: paged_adamw_8bit; "
            "lower max_length; at last lower lora.r."
        ) from None
    return manifest


def _quieten() -> None:
    """Keep the libraries' own progress bars and advice out of the stage's output; errors still come as exceptions."""
    for name in ("bitsandbytes", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _build_trainer(recipe: Recipe, encoded: EncodedData, pad_token_id: int, directory: Path) -> AnswerTrainer:
    import torch
    from transformers import set_seed

    from adapterops.train.cpu import keep_freed_memory
    from adapterops.train.network import add_lora, apply_kernels, load_base
    from adapterops.train.packing import Collator, packed_rows
    from adapterops.train.trainer import AnswerTrainer, training_arguments

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        keep_freed_memory()
    training = recipe.training
    set_seed(recipe.seed)
    attention = training["attn_implementation"]
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    model = add_lora(load_base(base_model_directory(recipe.base_model), recipe.quantization, attention, device), recipe.lora, recipe.seed)
    apply_kernels(
        model,
        liger=training["liger"],
        fused_lora=training["fused_lora"],
        selective_checkpointing=training["gradient_checkpointing"] == "selective",
    )
    rows = encoded.rows()
    capacity = training["max_length"] if training["packing"] else None
    return AnswerTrainer(
        model=model,
        args=training_arguments(training, recipe.seed, directory),
        train_dataset=packed_rows(rows, capacity) if capacity else rows,
        data_collator=Collator(pad_token_id, capacity, variable_length=attention in {"varlen", "flash_attention_2"}),
    )


def _save_adapter(model: PeftModel, recipe: Recipe, directory: Path) -> None:
    """Write config and bf16 safetensors so that equal weights give equal bytes on any machine."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in sorted(get_peft_model_state_dict(model, save_embedding_layers=False).items())
    }
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise RejectedError("training diverged: the adapter's weights are not finite. Lower training.learning_rate.")
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config["inference_mode"] = True
    # peft records a path of this machine and sets in arbitrary order; both would change the digest.
    config["base_model_name_or_path"] = recipe.base_model.source_id
    config["revision"] = recipe.base_model.source.get("revision")
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps(config, indent=2, sort_keys=True, default=str) + "\n"
    (directory / "adapter_config.json").write_text(text, encoding="utf-8")


def _lora_digest(model: PeftModel) -> str:
    """SHA-256 over the initial LoRA A matrices: equal for equal seeds, so that a lost seed is seen."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if "lora_A" in name:
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _peak_memory_gib() -> float:
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 2**20 if sys.platform == "linux" else 2**30
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2)


class _Progress:
    """Shows a bar on a terminal and one dense line a logging step elsewhere; keeps the loss history; stops on NaN."""

    def __init__(self, console: Console, encoded: EncodedData, recipe: Recipe) -> None:
        self.history: list[dict[str, Any]] = []
        self._console = console
        self._tokens = encoded.tokens
        self._recipe = recipe
        self._started = time.monotonic()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]} · {task.fields[speed]} tok/s"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, loss="-", speed="-")

    def __enter__(self) -> None:
        self._started = time.monotonic()
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def callback(self) -> Any:
        """A trainer callback that feeds this object."""
        from transformers import TrainerCallback

        progress = self

        class Callback(TrainerCallback):  # type: ignore[misc]  # transformers ships no types for it
            def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
                progress._bar.update(progress._task, total=state.max_steps, completed=state.global_step)

            def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:
                if "loss" in logs:
                    progress._log(state, logs)

        return Callback()

    def _log(self, state: Any, logs: dict[str, Any]) -> None:
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise RejectedError(
                f"training diverged: loss {loss} at step {state.global_step}. In {self._recipe.path}: lower "
                f"learning_rate {self._recipe.training['learning_rate']} or max_grad_norm."
            )
        elapsed = time.monotonic() - self._started
        speed = self._tokens * state.epoch / elapsed
        self.history.append(
            {
                "step": state.global_step,
                "epoch": round(state.epoch, 3),
                "loss": round(loss, 5),
                "learning_rate": logs["learning_rate"],
            }
        )
        if self._console.is_terminal:
            self._bar.update(self._task, loss=f"{loss:.3f}", speed=f"{speed:.0f}")
        else:
            self._console.print(
                f"step {state.global_step}/{state.max_steps} | loss {loss:.4f} | lr {logs['learning_rate']:.2e} | "
                f"{speed:.0f} tok/s | {elapsed:.0f} s"
            )
