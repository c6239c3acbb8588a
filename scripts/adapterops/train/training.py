"""QLoRA training: NF4 base model, LoRA, supervised fine-tuning on the answers (QLoRA,
arXiv:2305.14314).
"""

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

from adapterops.basemodels.materialize import base_model_directory, load_tokenizer
from adapterops.candidates.checkpoints import Checkpoints, Remote
from adapterops.documents import new_directory, sha256_file, sha256_json, write_json
from adapterops.errors import InfrastructureError, UsageError
from adapterops.schemas import ROOT, repository_path
from adapterops.shapes.pricing import Pricing
from adapterops.shapes.train_manifest import TrainManifest
from adapterops.specs.recipe import Recipe, hints, training_key_inputs
from adapterops.store.releases import adapter_digest, adapter_files
from adapterops.train.artifacts import (
    lora_digest,
    loss_curve,
    model_card,
    peak_memory_gib,
    save_adapter,
)
from adapterops.train.encode import EncodedData, encode_files, mask_sample
from adapterops.train.interruptions import Interruptions
from adapterops.train.judgement import judge
from adapterops.train.ladder import is_out_of_memory, next_rung
from adapterops.train.preflight import PRICING, cost, predict
from adapterops.yamlfile import load_yaml

MANIFEST = "train_manifest.json"
_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


def train(
    recipe: Recipe,
    data: list[Path],
    output: Path,
    console: Console,
    *,
    remote: Remote | None = None,
) -> dict[str, Any]:
    """Train an adapter and write `output` (as a whole, or not at all).

    An interrupted training leaves checkpoints beside `output`, and in `remote` if there is one; the
    same call goes on from there. So does one that was trained and then refused: with a higher
    `max_loss_increase` the same call only judges again.

    Args:
        recipe: what to train and how.
        data: training files, in this order.
        output: adapter directory to make or replace.
        console: where progress is shown.
        remote: where checkpoints lie for other machines too.

    Returns:
        The train manifest (`configs/schemas/train_manifest.json`), which also lies in `output`;
        empty in processes of rank above 0.

    Raises:
        RejectedError: the data cannot be trained on, or the loss is not a number or diverges.
        UsageError: recipe, base model or template is at fault, or the processes cannot share the
            effective batch.
        InfrastructureError: interrupted, out of memory, checkpoints cannot be written, or the base
            model cannot be had.
    """
    with Interruptions() as interruptions:
        return _train(recipe, data, output, console, remote, interruptions)


def _train(
    recipe: Recipe,
    data: list[Path],
    output: Path,
    console: Console,
    remote: Remote | None,
    interruptions: Interruptions,
) -> dict[str, Any]:
    started = time.monotonic()
    tracker = recipe.training.get("report_to", "tensorboard")
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise UsageError(
            f"{recipe.path}: training.report_to {tracker}: it is not installed. pip install"
            f" {tracker}, or set another of tensorboard, wandb, trackio, none."
        )
    os.environ.setdefault(
        "TENSORBOARD_LOGGING_DIR", str(output.with_name(f"{output.name}.tensorboard"))
    )  # transformers reads it
    prices = load_yaml(
        ROOT / PRICING, Pricing
    )  # for the manifest; a mistake in it must not come out when all is computed
    key_inputs = training_key_inputs(recipe, data)
    key = sha256_json(key_inputs)
    tokenizer = load_tokenizer(recipe.base_model)
    encoded = encode_files(
        data,
        tokenizer,
        recipe.base_model,
        recipe.training["max_length"],
        recipe.training["on_truncation"],
    )
    import torch
    from accelerate import PartialState

    from adapterops.train.processes import of_first

    # Without the argument, each of several processes on a CPU would take itself for the only one.
    processes = PartialState(cpu=not torch.cuda.is_available())
    main = processes.is_main_process
    if not main:
        console = Console(quiet=True)
    console.print(
        f"{len(encoded.input_ids)} rows, {encoded.tokens} tokens ({encoded.supervised_tokens}"
        f" supervised), base model {recipe.base_model.name}, rank {recipe.lora['r']}, seed"
        f" {recipe.seed}",
        soft_wrap=True,
    )
    advice = hints(recipe, len(encoded.input_ids))
    for hint in advice:
        console.print(f"hint: {hint}", markup=False, soft_wrap=True)
    checkpoints = Checkpoints(
        output.parent / f".checkpoints.{output.name}", key, remote, processes.num_processes
    )
    training: dict[str, Any] = {**recipe.training, "report_to": tracker}
    rungs: list[str] = []
    checkpoints.rung = of_first(checkpoints.find_rung() if main else 0)
    while len(rungs) < checkpoints.rung:
        milder = next_rung(training)
        if milder is None:  # of a recipe that allowed to shorten rows then
            checkpoints.rung = len(rungs)
            break
        training = milder[0]
        rungs.append(milder[1])
        console.print(f"memory ran out before: {milder[1]}.", markup=False, soft_wrap=True)
    while True:
        if training["max_length"] != recipe.training["max_length"]:
            encoded = encode_files(
                data, tokenizer, recipe.base_model, training["max_length"], "allow"
            )
        try:
            outcome = _attempt(
                recipe, training, encoded, tokenizer, checkpoints, console, interruptions, main=main
            )
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not interruptions.stepping:
            raise InfrastructureError(
                f"out of memory ({reason}) {interruptions.when} No setting of the training makes"
                f" {recipe.base_model.name} smaller: end what else uses the memory, or take a"
                " larger GPU: --preflight says which."
            )
        interruptions.stepping = False
        milder = next_rung(training) if processes.num_processes == 1 else None
        if milder is None:
            nothing = (
                f"nothing is left to make smaller. Tried: {'; '.join(rungs) or 'nothing'}"
                if processes.num_processes == 1
                else (
                    "with several processes nothing is made smaller by itself, since memory may"
                    " have run out in one of them alone"
                )
            )
            raise InfrastructureError(
                f"out of memory while training ({reason}), and {nothing}. In {recipe.path}: halve"
                " per_device_train_batch_size and double gradient_accumulation_steps, use optim:"
                f" paged_adamw_8bit, lower max_length {training['max_length']}, or at last lower"
                f" lora.r {recipe.lora['r']}; or take a larger GPU: --preflight says which."
            )
        if interruptions.heard:
            raise InfrastructureError(
                f"interrupted by {interruptions.heard} when memory ran out. The same command starts"
                " again."
            )
        training = milder[0]
        rungs.append(milder[1])
        console.print(
            f"out of memory ({reason}). Again with {milder[1]}.", markup=False, soft_wrap=True
        )
        checkpoints.take_rung(milder[1])
        gc.collect()
        torch.cuda.empty_cache()
    trainer, watch = outcome["trainer"], outcome["watch"]
    weights = trainer.adapter_weights()
    if not main:
        return {}
    if quantisation := outcome["quantisation"]:
        console.print(
            f"loss on NF4 → bf16 weights: adapter {quantisation['adapter_nf4']:.4f} →"
            f" {quantisation['adapter_bf16']:.4f}, base model {quantisation['base_nf4']:.4f} →"
            f" {quantisation['base_bf16']:.4f} ({quantisation['rows']} rows)",
            soft_wrap=True,
        )
        judge(quantisation, recipe.quantization["max_loss_increase"], recipe.path)
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})"
    )
    with new_directory(output) as staging:
        save_adapter(weights, trainer.model.peft_config["default"], recipe, staging)
        (staging / "chat_template.jinja").write_text(
            recipe.base_model.chat_template(), encoding="utf-8"
        )
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
                **cost(outcome["seconds"], device, prices, processes.num_processes),
                "peak_memory_gib": peak_memory_gib(),
                "lora_step0_sha256": outcome["lora_step0"],
            },
            "prediction": predict(
                recipe,
                training,
                encoded,
                device,
                prices,
                processes=processes.num_processes,
                sharded=trainer.sharded,
            ),
            "run": {
                "processes": processes.num_processes,
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
                    {
                        "name": name,
                        "size": (staging / name).stat().st_size,
                        "sha256": sha256_file(staging / name),
                    }
                    for name in adapter_files
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
        write_json(staging / MANIFEST, manifest, TrainManifest)
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
    interruptions: Interruptions,
    *,
    main: bool,
) -> dict[str, Any]:
    """Train once with these settings; what is left is in the trainer and in the watch."""
    for name in ("bitsandbytes", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)  # advice; errors still come as exceptions
    import torch
    from accelerate import PartialState
    from transformers import TrainerState

    from adapterops.train.build import Kept, build_trainer, mean_loss
    from adapterops.train.processes import divided, of_first
    from adapterops.train.quantisation import compare, sample
    from adapterops.train.watch import EarlyStopping, LossGuard, Watch
    from adapterops.train.work import hold_back

    processes = PartialState().num_processes
    micro, accumulation = divided(
        training["per_device_train_batch_size"],
        training["gradient_accumulation_steps"],
        processes,
        recipe.path,
    )
    if processes > 1:
        console.print(
            f"{processes} processes, each with micro-batches of {micro}, accumulated over"
            f" {accumulation}"
        )
    shared = {
        **training,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
    }
    rows = encoded.rows()
    stopping = recipe.training.get("early_stopping")
    held: list[Any] = []
    if stopping:
        rows, held = hold_back(rows, stopping["share"])
    watch = Watch(
        console,
        encoded.tokens,
        LossGuard(str(recipe.path), training["learning_rate"]),
        interruptions,
        logging_steps=training["logging_steps"],
        evaluate_steps=stopping["every_steps"] if stopping else 0,
        early_stopping=EarlyStopping(stopping["patience"]) if stopping else None,
        main=main,
    )
    trainer = build_trainer(recipe, shared, rows, tokenizer, checkpoints.directory)
    trainer.checkpoints = checkpoints
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    kept = Kept(trainer.model)
    if held:
        trainer.kept = kept
        watch.keep, watch.evaluate = (
            kept.keep,
            lambda: mean_loss(trainer.model, held, trainer.data_collator, micro),
        )
    trainer.add_callback(watch)
    lora_step0 = lora_digest(trainer.model)
    found = of_first(checkpoints.newest() if main else None)
    resumed_from = 0
    if found:
        if not found.is_dir():  # on another host
            raise InfrastructureError(
                f"checkpoint {found} is not there on every host. Put --output on storage that all"
                " of them share."
            )
        state = TrainerState.load_from_json(str(found / "trainer_state.json"))
        resumed_from = state.global_step
        console.print(f"resuming from step {resumed_from} ({found})", soft_wrap=True)
        watch.resume(state)
        trainer.resume_order(found)
        kept.read(found)
    began = time.monotonic()
    if watch.stopped:
        trainer.state = state
    else:
        with watch:
            trainer.train(resume_from_checkpoint=str(found) if found else None)
    seconds = max(1e-6, time.monotonic() - began)
    interruptions.when = (
        f"after the last step. Its checkpoint is in {checkpoints.directory}; the same command goes"
        " on from it."
    )
    interruptions.stepping = False
    if watch.interrupted:
        raise InfrastructureError(
            _interrupted(trainer, checkpoints, interruptions.heard, main=main)
        )
    interruptions.check()
    if watch.stopped:
        kept.restore()
        console.print(f"stopped early: {watch.stopped}", markup=False, soft_wrap=True)
    quantisation: dict[str, Any] = {}
    if main and not trainer.sharded:
        judged = sample(held or rows)
        losses = compare(
            trainer.model,
            base_model_directory(recipe.base_model),
            lambda: mean_loss(trainer.model, judged, trainer.data_collator, micro),
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


def _interrupted(trainer: Any, checkpoints: Checkpoints, by: str | None, *, main: bool) -> str:
    said = (
        f"interrupted by {by or 'a signal to another process'} at step {trainer.state.global_step}"
        f" of {trainer.state.max_steps}."
    )
    if main and not (checkpoints.directory / f"checkpoint-{trainer.state.global_step}").is_dir():
        return (
            f"{said} No checkpoint could be written: the same command resumes from an earlier one,"
            " if there is any."
        )
    elsewhere = " or on another machine" if checkpoints.uploaded else ""
    return (
        f"{said} A checkpoint is in {checkpoints.directory}; the same command resumes,"
        f" here{elsewhere}."
    )
