"""QLoRA training: NF4 base model, LoRA, supervised fine-tuning on the answers (arXiv:2305.14314).

It reads downward: `train` → `_train` → `_until_it_fits` → `_attempt` → `_write`.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from adapterops.basemodels.materialize import base_model_directory, load_tokenizer
from adapterops.candidates.checkpoints import Checkpoints, Remote
from adapterops.documents import new_directory, sha256_json, write_json
from adapterops.errors import InfrastructureError, UsageError
from adapterops.schemas import ROOT
from adapterops.shapes.pricing import Pricing
from adapterops.shapes.recipe import Training
from adapterops.shapes.train_manifest import Quantisation, TrainManifest
from adapterops.specs.recipe import Recipe, hints, training_key_inputs
from adapterops.train.artifacts import lora_digest, loss_curve, model_card, save_adapter
from adapterops.train.encode import EncodedData, encode_files
from adapterops.train.interruptions import Interruptions
from adapterops.train.judgement import judge
from adapterops.train.labels import Row
from adapterops.train.ladder import is_out_of_memory, next_rung
from adapterops.train.manifest import Inputs, Outcome, train_manifest
from adapterops.train.preflight import PRICING
from adapterops.yamlfile import load_yaml

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from adapterops.train.best_weights import BestWeights
    from adapterops.train.trainer import AnswerTrainer
    from adapterops.train.watch import Watch

MANIFEST = "train_manifest.json"


@dataclass(frozen=True)
class _Run:
    """What stays as it is whatever settings memory allows.

    Args:
        inputs: recipe, data and prices.
        tokenizer: the base model's.
        checkpoints: of this training key.
        console: where progress is shown; quiet in processes of rank above 0.
        interruptions: whether a signal came.
        processes: how many train.
        main: whether this one speaks for all.
    """

    inputs: Inputs
    tokenizer: PreTrainedTokenizerBase
    checkpoints: Checkpoints
    console: Console
    interruptions: Interruptions
    processes: int
    main: bool

    @property
    def recipe(self) -> Recipe:
        return self.inputs.recipe

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


def train(
    recipe: Recipe,
    data: list[Path],
    output: Path,
    console: Console,
    *,
    remote: Remote | None = None,
) -> TrainManifest | None:
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
        The train manifest, which also lies in `output`; None in processes of rank above 0.

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
) -> TrainManifest | None:
    started = time.monotonic()
    training = _with_tracker(recipe, output)
    prices = load_yaml(ROOT / PRICING, Pricing)  # a mistake in it must not come out at the end
    inputs = Inputs(recipe, data, training_key_inputs(recipe, data), prices, started)
    tokenizer = load_tokenizer(recipe.base_model)
    encoded = encode_files(
        data, tokenizer, recipe.base_model, training["max_length"], training["on_truncation"]
    )
    processes, main = _processes()
    checkpoints = Checkpoints(
        output.parent / f".checkpoints.{output.name}",
        sha256_json(inputs.key_inputs),
        remote,
        processes,
    )
    console = console if main else Console(quiet=True)
    run = _Run(inputs, tokenizer, checkpoints, console, interruptions, processes, main)
    _announce(run, encoded)
    outcome = _until_it_fits(run, training, encoded)
    weights = outcome.trainer.adapter_weights()  # every process has to ask
    if not main:
        return None
    _judge(run, outcome.quantisation)
    manifest = _write(run, outcome, weights, output)
    checkpoints.clear()
    return manifest


def _with_tracker(recipe: Recipe, output: Path) -> Training:
    """The recipe's settings with where losses go while it trains."""
    tracker = recipe.training.get("report_to", "tensorboard")
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise UsageError(
            f"{recipe.path}: training.report_to {tracker}: it is not installed. pip install"
            f" {tracker}, or set another of tensorboard, wandb, trackio, none."
        )
    # transformers reads it
    os.environ.setdefault(
        "TENSORBOARD_LOGGING_DIR", str(output.with_name(f"{output.name}.tensorboard"))
    )
    return {**recipe.training, "report_to": tracker}


def _processes() -> tuple[int, bool]:
    """How many processes train, and whether this one speaks for all."""
    import torch
    from accelerate import PartialState

    # Without the argument, each of several processes on a CPU would take itself for the only one.
    state = PartialState(cpu=not torch.cuda.is_available())
    return state.num_processes, state.is_main_process


def _announce(run: _Run, encoded: EncodedData) -> None:
    recipe = run.recipe
    run.console.print(
        f"{len(encoded.input_ids)} rows, {encoded.tokens} tokens"
        f" ({encoded.supervised_tokens} supervised), base model {recipe.base_model.name},"
        f" rank {recipe.lora['r']}, seed {recipe.seed}",
        soft_wrap=True,
    )
    for hint in hints(recipe, len(encoded.input_ids)):
        run.say(f"hint: {hint}")


def _until_it_fits(run: _Run, training: Training, encoded: EncodedData) -> Outcome:
    """Train; whenever memory runs out, again with the next milder settings."""
    import torch

    training, rungs = _taken_before(run, training)
    while True:
        if training["max_length"] != run.recipe.training["max_length"]:
            encoded = encode_files(
                run.inputs.data,
                run.tokenizer,
                run.recipe.base_model,
                training["max_length"],
                "allow",
            )
        try:
            return _attempt(run, training, rungs, encoded)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Outside of `except`: the error's traceback holds on to the network.
        training, rung = _milder(run, training, rungs, reason)
        rungs = [*rungs, rung]
        run.say(f"out of memory ({reason}). Again with {rung}.")
        run.checkpoints.take_rung(rung)
        gc.collect()
        torch.cuda.empty_cache()


def _taken_before(run: _Run, training: Training) -> tuple[Training, list[str]]:
    """The settings at which an earlier call of this training was, and how they came to be so."""
    from adapterops.train.processes import of_first

    rungs: list[str] = []
    run.checkpoints.rung = of_first(run.checkpoints.find_rung() if run.main else 0)
    while len(rungs) < run.checkpoints.rung:
        milder = next_rung(training)
        if milder is None:  # of a recipe that allowed to shorten rows then
            run.checkpoints.rung = len(rungs)
            break
        training, rung = milder
        rungs.append(rung)
        run.say(f"memory ran out before: {rung}.")
    return training, rungs


def _milder(run: _Run, training: Training, rungs: list[str], reason: str) -> tuple[Training, str]:
    """The next settings to try after memory ran out, and what changes.

    Raises:
        InfrastructureError: none are left, no setting would help, or a signal came.
    """
    recipe, interruptions = run.recipe, run.interruptions
    if not interruptions.stepping:
        raise InfrastructureError(
            f"out of memory ({reason}) {interruptions.when} No setting of the training makes"
            f" {recipe.base_model.name} smaller: end what else uses the memory, or take a larger"
            " GPU: --preflight says which."
        )
    interruptions.stepping = False
    milder = next_rung(training) if run.processes == 1 else None
    if milder is None:
        nothing = (
            f"nothing is left to make smaller. Tried: {'; '.join(rungs) or 'nothing'}"
            if run.processes == 1
            else "with several processes nothing is made smaller by itself, since memory may have"
            " run out in one of them alone"
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
    return milder


def _attempt(run: _Run, training: Training, rungs: list[str], encoded: EncodedData) -> Outcome:
    """Train once with these settings."""
    for name in ("bitsandbytes", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)  # advice; errors still come as exceptions
    import torch

    from adapterops.train.best_weights import BestWeights
    from adapterops.train.build import build_trainer, mean_loss

    shared = _divided(run, training)
    rows, held = _held_back(run.recipe, encoded)
    watch = _watch(run, training, encoded)
    trainer = build_trainer(run.recipe, shared, rows, run.tokenizer, run.checkpoints.directory)
    trainer.checkpoints = run.checkpoints
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()

    def loss_on(some: list[Row]) -> float:
        micro = shared["per_device_train_batch_size"]
        return mean_loss(trainer.model, some, trainer.data_collator, micro)

    best = BestWeights(trainer.model)
    if held:
        trainer.best = best
        watch.keep, watch.evaluate = best.keep, lambda: loss_on(held)
    trainer.add_callback(watch)
    lora_step0 = lora_digest(trainer.model)
    found, resumed_from = _resume(run, trainer, watch, best)
    seconds = _take_steps(run, trainer, watch, found)
    if watch.stopped:
        best.restore()
        run.say(f"stopped early: {watch.stopped}")
    return Outcome(
        trainer=trainer,
        watch=watch,
        settings=training,
        rungs=rungs,
        encoded=encoded,
        processes=run.processes,
        seconds=seconds,
        resumed_from=resumed_from,
        lora_step0=lora_step0,
        quantisation=_quantisation(run, trainer, held, rows, loss_on),
    )


def _divided(run: _Run, training: Training) -> Training:
    """The settings of one of the processes that share a step."""
    from adapterops.train.processes import divided

    micro, accumulation = divided(
        training["per_device_train_batch_size"],
        training["gradient_accumulation_steps"],
        run.processes,
        run.recipe.path,
    )
    if run.processes > 1:
        run.console.print(
            f"{run.processes} processes, each with micro-batches of {micro}, accumulated over"
            f" {accumulation}"
        )
    return {
        **training,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
    }


def _held_back(recipe: Recipe, encoded: EncodedData) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and those to stop by; none where the recipe does not stop early."""
    from adapterops.train.work import hold_back

    stopping = recipe.training.get("early_stopping")
    rows = encoded.rows()
    return hold_back(rows, stopping["share"]) if stopping else (rows, [])


def _watch(run: _Run, training: Training, encoded: EncodedData) -> Watch:
    from adapterops.train.watch import EarlyStopping, LossGuard, Watch

    stopping = run.recipe.training.get("early_stopping")
    return Watch(
        run.console,
        encoded.tokens,
        LossGuard(str(run.recipe.path), training["learning_rate"]),
        run.interruptions,
        logging_steps=training["logging_steps"],
        evaluate_steps=stopping["every_steps"] if stopping else 0,
        early_stopping=EarlyStopping(stopping["patience"]) if stopping else None,
        main=run.main,
    )


def _resume(
    run: _Run, trainer: AnswerTrainer, watch: Watch, best: BestWeights
) -> tuple[Path | None, int]:
    """Take over what an interrupted call left: its checkpoint and step, or None and 0."""
    from transformers import TrainerState

    from adapterops.train.processes import of_first

    found = of_first(run.checkpoints.newest() if run.main else None)
    if not found:
        return None, 0
    if not found.is_dir():  # on another host
        raise InfrastructureError(
            f"checkpoint {found} is not there on every host. Put --output on storage that all of"
            " them share."
        )
    state = TrainerState.load_from_json(str(found / "trainer_state.json"))
    run.console.print(f"resuming from step {state.global_step} ({found})", soft_wrap=True)
    watch.resume(state)
    trainer.resume_order(found)
    best.read(found)
    if watch.stopped:  # then already: no step is left to take
        trainer.state = state
    return found, state.global_step


def _take_steps(run: _Run, trainer: AnswerTrainer, watch: Watch, found: Path | None) -> float:
    """Train to the end, and return the seconds that it took.

    Raises:
        InfrastructureError: a signal came.
    """
    began = time.monotonic()
    if not watch.stopped:
        with watch:
            trainer.train(resume_from_checkpoint=str(found) if found else None)
    seconds = max(1e-6, time.monotonic() - began)
    run.interruptions.when = (
        f"after the last step. Its checkpoint is in {run.checkpoints.directory}; the same command"
        " goes on from it."
    )
    run.interruptions.stepping = False
    if watch.interrupted:
        raise InfrastructureError(_interrupted(run, trainer))
    run.interruptions.check()
    return seconds


def _interrupted(run: _Run, trainer: AnswerTrainer) -> str:
    """Where an interrupted training stands, and what the same command would do."""
    state, checkpoints = trainer.state, run.checkpoints
    said = (
        f"interrupted by {run.interruptions.heard or 'a signal to another process'} at step"
        f" {state.global_step} of {state.max_steps}."
    )
    if run.main and not (checkpoints.directory / f"checkpoint-{state.global_step}").is_dir():
        return (
            f"{said} No checkpoint could be written: the same command resumes from an earlier one,"
            " if there is any."
        )
    elsewhere = " or on another machine" if checkpoints.uploaded else ""
    return (
        f"{said} A checkpoint is in {checkpoints.directory};"
        f" the same command resumes, here{elsewhere}."
    )


def _quantisation(
    run: _Run,
    trainer: AnswerTrainer,
    held: list[Row],
    rows: list[Row],
    loss_on: Callable[[list[Row]], float],
) -> Quantisation | None:
    """Losses on the weights that are trained on and on those that are served.

    None in processes of rank above 0, and where the weights are in pieces.
    """
    from adapterops.train.quantisation import compare, sample

    if trainer.sharded or not run.main:
        return None
    judged = sample(held or rows)
    directory = base_model_directory(run.recipe.base_model)
    return {
        "rows": len(judged),
        "from": "held_back" if held else "training",
        "max_loss_increase": run.recipe.quantization["max_loss_increase"],
        **compare(trainer.model, directory, lambda: loss_on(judged)),
    }


def _judge(run: _Run, losses: Quantisation | None) -> None:
    """Show what serving changes, and refuse an adapter that loses too much by it.

    Raises:
        RejectedError: it does.
    """
    if not losses:
        return
    run.console.print(
        "loss on NF4 → bf16 weights:"
        f" adapter {losses['adapter_nf4']:.4f} → {losses['adapter_bf16']:.4f},"
        f" base model {losses['base_nf4']:.4f} → {losses['base_bf16']:.4f} ({losses['rows']} rows)",
        soft_wrap=True,
    )
    judge(losses, run.recipe.quantization["max_loss_increase"], run.recipe.path)


def _write(run: _Run, outcome: Outcome, weights: dict[str, Tensor], output: Path) -> TrainManifest:
    """Write the adapter with its manifest, card and curve, as a whole or not at all."""
    recipe = run.recipe
    with new_directory(output) as staging:
        lora = outcome.trainer.model.peft_config["default"]
        save_adapter(weights, lora, recipe, staging)
        template = recipe.base_model.chat_template()
        (staging / "chat_template.jinja").write_text(template, encoding="utf-8")
        manifest = train_manifest(run.inputs, outcome, run.tokenizer, staging)
        write_json(staging / MANIFEST, manifest, TrainManifest)
        (staging / "loss.svg").write_text(loss_curve(manifest), encoding="utf-8")
        (staging / "README.md").write_text(model_card(manifest, recipe), encoding="utf-8")
    return manifest
