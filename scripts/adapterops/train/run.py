"""QLoRA training: NF4 base model, LoRA, supervised fine-tuning on the answers (QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import importlib.util
import logging
import os
import platform
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from adapterops.basemodels import base_model_directory, load_tokenizer
from adapterops.documents import new_directory, sha256_file, sha256_json, write_json
from adapterops.errors import InfrastructureError, UsageError
from adapterops.schemas import ROOT, repository_path
from adapterops.store.objects import ObjectStore
from adapterops.store.releases import adapter_digest, adapter_files
from adapterops.train.artifacts import lora_digest, loss_curve, model_card, peak_memory_gib, save_adapter
from adapterops.train.checkpoints import Checkpoints
from adapterops.train.encode import EncodedData, encode_files, mask_sample
from adapterops.train.ladder import next_rung
from adapterops.train.preflight import PRICING, cost, predict
from adapterops.train.recipe import Recipe, hints, training_key_inputs
from adapterops.yamlfile import load_yaml

MANIFEST = "train_manifest.json"
_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


def train(recipe: Recipe, data: list[Path], output: Path, console: Console, *, store: ObjectStore | None = None) -> dict[str, Any]:
    """Train an adapter and write `output` (as a whole, or not at all).

    An interrupted training leaves checkpoints beside `output`, and in `store` if there is one; the same call goes on from there.

    Args:
        recipe: what to train and how.
        data: training files, in this order.
        output: adapter directory to make or replace.
        console: where progress is shown.
        store: bucket for checkpoints.

    Returns:
        The train manifest (`configs/schemas/train_manifest.json`), which also lies in `output`; empty in processes of rank above 0.

    Raises:
        RejectedError: the data cannot be trained on, or the loss is not a number or diverges.
        UsageError: recipe, base model or template is at fault.
        InfrastructureError: interrupted, out of memory, checkpoints cannot be written, or the base model cannot be had.
    """
    started = time.monotonic()
    tracker = recipe.training.get("report_to", "tensorboard")
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise UsageError(
            f"{recipe.path}: training.report_to {tracker}: it is not installed. pip install {tracker}, or set another of tensorboard, "
            "wandb, trackio, none."
        )
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(output.with_name(f"{output.name}.tensorboard")))  # transformers reads it
    prices = load_yaml(ROOT / PRICING, "pricing")  # for the manifest; a mistake in it must not come out when all is computed
    key_inputs = training_key_inputs(recipe, data)
    key = sha256_json(key_inputs)
    tokenizer = load_tokenizer(recipe.base_model)
    encoded = encode_files(data, tokenizer, recipe.base_model, recipe.training["max_length"], recipe.training["on_truncation"])
    import torch
    from accelerate import PartialState

    # Without the argument, each of several processes on a CPU would take itself for the only one.
    main = PartialState(cpu=not torch.cuda.is_available()).is_main_process
    if not main:
        console = Console(quiet=True)
    console.print(
        f"{len(encoded.input_ids)} rows, {encoded.tokens} tokens ({encoded.supervised_tokens} supervised), base model "
        f"{recipe.base_model.name}, rank {recipe.lora['r']}, seed {recipe.seed}",
        soft_wrap=True,
    )
    advice = hints(recipe, len(encoded.input_ids))
    for hint in advice:
        console.print(f"hint: {hint}", markup=False, soft_wrap=True)
    checkpoints = Checkpoints(output.parent / f".{output.name}.checkpoints", key, store)
    training: dict[str, Any] = {**recipe.training, "report_to": tracker}
    rungs: list[str] = []
    while True:
        try:
            outcome = _attempt(recipe, training, encoded, tokenizer, checkpoints, console, main=main)
            break
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            reason = str(error).splitlines()[0]
        milder = next_rung(training)
        if milder is None:
            raise InfrastructureError(
                f"out of memory while training ({reason}), and nothing is left to make smaller. Tried: {'; '.join(rungs) or 'nothing'}. "
                f"In {recipe.path}: use optim: paged_adamw_8bit, lower max_length {training['max_length']}, or at last lower lora.r "
                f"{recipe.lora['r']}; or take a larger GPU: --preflight says which."
            )
        training = milder[0]
        rungs.append(milder[1])
        console.print(f"out of memory ({reason}). Again with {milder[1]}.", markup=False, soft_wrap=True)
        checkpoints.clear()  # they count micro-batches of another size
        if training["max_length"] != recipe.training["max_length"]:
            encoded = encode_files(data, tokenizer, recipe.base_model, training["max_length"], "allow")
        gc.collect()
        torch.cuda.empty_cache()
    trainer, watch = outcome["trainer"], outcome["watch"]
    weights = trainer.adapter_weights()
    if not main:
        return {}
    from adapterops.train.quantisation import judge

    if quantisation := outcome["quantisation"]:
        console.print(
            f"loss on NF4 → bf16 weights: adapter {quantisation['adapter_nf4']:.4f} → {quantisation['adapter_bf16']:.4f}, "
            f"base model {quantisation['base_nf4']:.4f} → {quantisation['base_bf16']:.4f} ({quantisation['rows']} rows)",
            soft_wrap=True,
        )
        judge(quantisation, quantisation["max_loss_increase"], recipe.path)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})"
    processes = trainer.args.world_size
    with new_directory(output) as staging:
        save_adapter(weights, trainer.model.peft_config["default"], recipe, staging)
        (staging / "chat_template.jinja").write_text(recipe.base_model.chat_template(), encoding="utf-8")
        tokens_trained = encoded.tokens * trainer.state.epoch * outcome["share"]
        manifest = {
            "schema": "train_manifest/v1",
            "training_key": key,
            "key_inputs": key_inputs,
            "recipe": repository_path(recipe.path),
            "base_model": {
                "name": recipe.base_model.name,
                "source_id": recipe.base_model.source_id,
                "revision": recipe.base_model.revision,
                "license": recipe.base_model.license,
            },
            "data": [{"path": repository_path(path), "sha256": sha256_file(path)} for path in data],
            "licenses": encoded.licenses,
            "tokens": {
                "rows": len(encoded.input_ids),
                "total": encoded.tokens,
                "supervised": encoded.supervised_tokens,
                "longest_row": max(map(len, encoded.input_ids)),
                "truncated_rows": encoded.truncated_rows,
                "truncated_tokens": encoded.truncated_tokens,
                "truncated_supervised": encoded.truncated_supervised,
                "mask_sample": mask_sample(encoded, tokenizer),
            },
            "training": {
                "steps": trainer.state.global_step,
                "final_loss": watch.history[-1]["loss"],
                "loss_history": watch.history,
                "seconds": round(outcome["seconds"], 2),
                "tokens_per_second": round(tokens_trained / outcome["seconds"], 1),
                **cost(outcome["seconds"], device, prices, processes),
                "peak_memory_gib": peak_memory_gib(),
                "lora_step0_sha256": outcome["lora_step0"],
            },
            "prediction": predict(recipe, training, encoded, device, prices, processes=processes, sharded=trainer.sharded),
            "run": {
                "processes": processes,
                "resumed_from_step": outcome["resumed_from"],
                "out_of_memory": rungs,
                "stopped": watch.stopped,
                "held_back": watch.evaluations,
                "hints": advice,
                **({"quantisation": quantisation} if quantisation else {}),
            },
            "adapter": {
                "digest": adapter_digest(staging),
                "rank": recipe.lora["r"],
                "dtype": "bfloat16",
                "files": [
                    {"name": name, "size": (staging / name).stat().st_size, "sha256": sha256_file(staging / name)} for name in adapter_files
                ],
            },
            "environment": {
                "device": device,
                "compute_dtype": str(trainer.model.get_base_model().dtype).removeprefix("torch."),
                "python": platform.python_version(),
                "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
            },
            "total_seconds": round(time.monotonic() - started, 2),
            "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_json(staging / MANIFEST, manifest, "train_manifest")
        (staging / "loss.svg").write_text(loss_curve(manifest), encoding="utf-8")
        (staging / "README.md").write_text(model_card(manifest, recipe), encoding="utf-8")
    checkpoints.clear()
    return manifest


def _attempt(
    recipe: Recipe,
    training: dict[str, Any],
    encoded: EncodedData,
    tokenizer: Any,
    checkpoints: Checkpoints,
    console: Console,
    *,
    main: bool,
) -> dict[str, Any]:
    """Train once with these settings; what is left is in the trainer and in the watch."""
    for name in ("bitsandbytes", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)  # advice; errors still come as exceptions
    import torch

    from adapterops.train.build import build_trainer, hold_back, mean_loss, remember
    from adapterops.train.quantisation import compare, sample
    from adapterops.train.watch import EarlyStopping, LossGuard, Watch

    rows = encoded.rows()
    stopping = recipe.training.get("early_stopping")
    held: list[Any] = []
    if stopping:
        rows, held = hold_back(rows, stopping["share"])
    watch = Watch(
        console,
        encoded.tokens,
        LossGuard(str(recipe.path), training["learning_rate"]),
        evaluate_steps=stopping["every_steps"] if stopping else 0,
        early_stopping=EarlyStopping(stopping["patience"]) if stopping else None,
        main=main,
    )
    with watch:
        trainer = build_trainer(recipe, training, rows, tokenizer, checkpoints.directory)
        trainer.checkpoints = checkpoints
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        keep, restore = remember(trainer.model)
        if held:
            watch.keep, watch.evaluate = keep, lambda: mean_loss(trainer.model, held, trainer.data_collator, trainer.args.train_batch_size)
        trainer.add_callback(watch)
        lora_step0 = lora_digest(trainer.model)
        found = checkpoints.newest()
        resumed_from = 0
        if found:
            resumed_from = int(found.name.split("-")[1])
            console.print(f"resuming from step {resumed_from} ({found})", soft_wrap=True)
            trainer.resume_order(found)
        began = time.monotonic()
        trainer.train(resume_from_checkpoint=str(found) if found else None)
        seconds = time.monotonic() - began
    if watch.interrupted:
        saved = not main or (checkpoints.directory / f"checkpoint-{trainer.state.global_step}").is_dir()
        rest = f"A checkpoint is in {checkpoints.directory}; the same command resumes." if saved else "No checkpoint could be written."
        raise InfrastructureError(f"interrupted at step {trainer.state.global_step} of {trainer.state.max_steps}. {rest}")
    if watch.stopped:
        restore()
        console.print(f"stopped early: {watch.stopped}", markup=False, soft_wrap=True)
    quantisation: dict[str, Any] = {}
    if main and not trainer.sharded:
        judged = sample(held or rows)
        losses = compare(
            trainer.model,
            base_model_directory(recipe.base_model),
            lambda: mean_loss(trainer.model, judged, trainer.data_collator, trainer.args.train_batch_size),
        )
        quantisation = {
            "rows": len(judged),
            "from": "held_back" if held else "training",
            "max_loss_increase": recipe.quantization["max_loss_increase"],
            **losses,
        }
    return {
        "trainer": trainer,
        "watch": watch,
        "seconds": seconds,
        "lora_step0": lora_step0,
        "quantisation": quantisation,
        "resumed_from": resumed_from,
        "share": (trainer.state.global_step - resumed_from) / max(1, trainer.state.global_step),
    }
