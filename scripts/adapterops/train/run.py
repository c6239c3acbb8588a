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
    from trl import SFTTrainer

MANIFEST = "train_manifest.json"
_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets")


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
            trainer = _build_trainer(recipe, encoded, tokenizer, Path(scratch))
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
    import datasets

    datasets.disable_progress_bars()
    for name in ("bitsandbytes", "trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _build_trainer(recipe: Recipe, encoded: EncodedData, tokenizer: Any, directory: Path) -> SFTTrainer:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed
    from trl import SFTConfig, SFTTrainer

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        from adapterops.train.cpu import AnswerLossTrainer, keep_freed_memory

        keep_freed_memory()
    training = recipe.training
    # TRL seeds again before it initialises LoRA; here already so that nothing before it can depend on chance.
    set_seed(recipe.seed)
    network = AutoModelForCausalLM.from_pretrained(
        base_model_directory(recipe.base_model),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=recipe.quantization["type"],
            bnb_4bit_use_double_quant=recipe.quantization["double_quant"],
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        dtype=torch.bfloat16,
        device_map={"": torch.cuda.current_device() if on_gpu else "cpu"},
        attn_implementation=training["attn_implementation"],
        trust_remote_code=False,
    )
    arguments = SFTConfig(
        output_dir=str(directory),
        seed=recipe.seed,
        num_train_epochs=training["num_train_epochs"],
        per_device_train_batch_size=training["per_device_train_batch_size"],
        gradient_accumulation_steps=training["gradient_accumulation_steps"],
        learning_rate=training["learning_rate"],
        lr_scheduler_type=training["lr_scheduler_type"],
        warmup_steps=training["warmup_ratio"],  # a float below 1 is a share of all steps
        weight_decay=training["weight_decay"],
        max_grad_norm=training["max_grad_norm"],
        max_length=training["max_length"],
        packing=training["packing"],
        train_sampling_strategy=training["train_sampling_strategy"],
        gradient_checkpointing=training["gradient_checkpointing"],
        gradient_checkpointing_kwargs={"use_reentrant": False},
        optim=training["optim"],
        bf16=on_gpu,  # on CPU the weights are bf16 already and autocast would only add casts
        use_cpu=not on_gpu,
        logging_steps=training["logging_steps"],
        logging_first_step=True,
        logging_nan_inf_filter=False,  # its default shows a diverged run as a healthy one
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
    )
    return (SFTTrainer if on_gpu else AnswerLossTrainer)(
        model=network,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": encoded.input_ids, "labels": encoded.labels}),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=recipe.lora["r"],
            lora_alpha=recipe.lora["alpha"],
            lora_dropout=recipe.lora["dropout"],
            target_modules=sorted(recipe.lora["target_modules"]),
            bias="none",
            task_type="CAUSAL_LM",
        ),
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
