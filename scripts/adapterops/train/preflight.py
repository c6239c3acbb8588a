"""What a training would need and cost, before a GPU second is spent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from rich.table import Table

from adapterops.basemodels.materialize import base_model_directory, load_tokenizer
from adapterops.errors import UsageError
from adapterops.schemas import ROOT, did_you_mean, repository_path
from adapterops.shapes.preflight import GpuVerdict, MemoryGib, Preflight
from adapterops.shapes.pricing import MeasuredItem, Pricing
from adapterops.shapes.recipe import Training
from adapterops.shapes.train_manifest import Prediction
from adapterops.specs.price_list import gpu_type
from adapterops.specs.recipe import Recipe, hints, training_key
from adapterops.train.encode import EncodedData, encode_files
from adapterops.train.ladder import next_rung
from adapterops.train.memory import CONTEXT_BYTES, Estimate, Shape, estimate
from adapterops.train.work import work_tokens
from adapterops.yamlfile import load_yaml

if TYPE_CHECKING:
    from rich.console import Console

PRICING = Path("configs/pricing.yaml")
_GIB = 2**30
# Above this share of memory the verdict is `tight`: fragmentation or a longer row can end it.
_TIGHT = 0.9
# What a speed was measured with: settings that change it by factors, and others by percents.
_DECISIVE = (
    "packing",
    "train_sampling_strategy",
    "fused_lora",
    "gradient_checkpointing",
    "liger",
    "attn_implementation",
)
_LESSER = ("per_device_train_batch_size", "max_length", "r")


@dataclass(frozen=True)
class Gpu:
    """One GPU type of `configs/pricing.yaml`."""

    name: str
    memory_gib: float
    bf16_tflops: float
    usd_per_hour: float


class Course(TypedDict):
    """Speed of all GPUs together, if none waits for another; minutes and cost of the steps."""

    tokens_per_second: float
    minutes: float
    usd: float


class Cost(TypedDict, total=False):
    """What a training cost; empty where its device has no price."""

    usd: float


def shape_of(recipe: Recipe) -> Shape:
    """The dimensions in the base model's `config.json`; from a hub that file alone is fetched.

    Raises:
        UsageError: the recipe trains more layers than there are.
    """
    directory = base_model_directory(recipe.base_model, weights=False)
    shape = Shape.of(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    if shape.trained_layers(recipe.lora) > shape.num_hidden_layers:
        raise UsageError(
            f"{recipe.path}: lora.last_layers {recipe.lora['last_layers']}:"
            f" {recipe.base_model.name} has {shape.num_hidden_layers} layers. Lower it, or remove"
            " it to train them all."
        )
    return shape


def memory(recipe: Recipe, training: Training, encoded: EncodedData, pieces: int = 1) -> Estimate:
    """The estimate for the largest micro-batch that these rows could make."""
    size = training["per_device_train_batch_size"]
    if training["packing"]:
        tokens = supervised = size * training["max_length"]
    else:
        tokens = size * max(map(len, encoded.input_ids))
        supervised = sum(sorted((len(row) for row in encoded.input_ids), reverse=True)[:size])
    return estimate(
        shape_of(recipe), recipe.quantization, recipe.lora, training, tokens, supervised, pieces
    )


def predict(
    recipe: Recipe,
    training: Training,
    encoded: EncodedData,
    device: str,
    prices: Pricing,
    *,
    processes: int = 1,
    sharded: bool = False,
) -> Prediction:
    """What the manifest holds against what was measured.

    Args:
        recipe: what is trained.
        training: its settings, or milder ones of the ladder.
        encoded: on what.
        device: its name by the driver, as `NVIDIA A100-SXM4-80GB`.
        prices: the content of `configs/pricing.yaml`.
        processes: GPUs.
        sharded: the network lies in pieces on them.
    """
    needed = memory(recipe, training, encoded, processes if sharded else 1)
    peaks: Prediction = {
        "loading_gib": round(needed.loading / _GIB, 2),
        "training_gib": round(needed.training / _GIB, 2),
        "evaluation_gib": round(needed.evaluation / _GIB, 2),
    }
    gpu = gpu_named(device, prices)
    if gpu is None:
        return peaks
    speed, basis = throughput(recipe, training, shape_of(recipe), gpu, prices)
    return {
        **peaks,
        "gpu": gpu.name,
        "speed_from": basis,
        **_course(work_tokens(training, encoded), speed, gpu, processes),
    }


def cost(seconds: float, device: str, prices: Pricing, processes: int) -> Cost:
    """What a training of so many seconds cost; arguments as for `predict`."""
    gpu = gpu_named(device, prices)
    return {"usd": round(seconds / 3600 * gpu.usd_per_hour * processes, 2)} if gpu else {}


def gpu_named(device: str, prices: Pricing) -> Gpu | None:
    """The priced GPU type that the driver means; None for another device."""
    name = gpu_type(device, prices["gpus"])
    return Gpu(name, **prices["gpus"][name]) if name else None


def _course(tokens: float, speed: float, gpu: Gpu, processes: int) -> Course:
    seconds = tokens / (speed * processes)
    return {
        "tokens_per_second": round(speed * processes, 1),
        "minutes": round(seconds / 60, 1),
        "usd": round(seconds / 3600 * gpu.usd_per_hour * processes, 2),
    }


def preflight(
    recipe: Recipe, data: list[Path], pricing: Path = ROOT / PRICING, *, pieces: int = 1
) -> Preflight:
    """Memory, tokens, minutes and cost of a training, and a verdict for each GPU type.

    Args:
        recipe: what would be trained.
        data: on what.
        pricing: GPU types, prices and measured speeds.
        pieces: over how many GPUs FSDP or ZeRO stage 3 lays the network; memory is that of each.

    Raises:
        RejectedError: the data cannot be trained on.
        UsageError: recipe or pricing is at fault.
        InfrastructureError: tokenizer and configuration of the base model cannot be had.
    """
    prices = load_yaml(pricing, Pricing)
    tokenizer = load_tokenizer(recipe.base_model, weights=False)
    training = recipe.training
    encoded = encode_files(
        data, tokenizer, recipe.base_model, training["max_length"], training["on_truncation"]
    )
    needed = memory(recipe, training, encoded, pieces)
    return {
        "schema": "preflight/v1",
        "recipe": repository_path(recipe.path),
        "training_key": training_key(recipe, data),
        "rows": len(encoded.input_ids),
        "tokens": encoded.tokens,
        "supervised_tokens": encoded.supervised_tokens,
        "truncated_rows": encoded.truncated_rows,
        "truncated_tokens": encoded.truncated_tokens,
        "truncated_supervised_tokens": encoded.truncated_supervised,
        "epochs": training["num_train_epochs"],
        "gpus_together": pieces,
        "milder": list(milder_settings(training)),
        "memory_gib": _memory_gib(needed),
        "gpus": _verdicts(recipe, encoded, needed, prices, pieces),
        "hints": hints(recipe, len(encoded.input_ids)),
    }


def _memory_gib(needed: Estimate) -> MemoryGib:
    """The parts of an estimate in GiB, and its peaks with what CUDA itself takes."""

    def gib(value: float) -> float:
        return round(value / _GIB, 3)

    def peak(value: float) -> float:
        return round((value + CONTEXT_BYTES) / _GIB, 2)

    return {
        "weights": gib(needed.weights),
        "quantisation_constants": gib(needed.quantisation_constants),
        "embeddings": gib(needed.embeddings),
        "lora": gib(needed.lora),
        "gradients": gib(needed.gradients),
        "optimiser": gib(needed.optimiser),
        "activations": gib(needed.activations),
        "working": gib(needed.working),
        "logits": gib(needed.logits),
        "staging": gib(needed.staging),
        "forward": gib(needed.forward),
        "context": gib(CONTEXT_BYTES),
        "peak_loading": peak(needed.loading),
        "peak_training": peak(needed.training),
        "peak_evaluation": peak(needed.evaluation),
    }


def _verdicts(
    recipe: Recipe, encoded: EncodedData, needed: Estimate, prices: Pricing, pieces: int
) -> list[GpuVerdict]:
    """Whether the training fits on each GPU type, and what it takes there."""
    peak = max(needed.loading, needed.training, needed.evaluation) + CONTEXT_BYTES
    tokens = work_tokens(recipe.training, encoded)
    shape = shape_of(recipe)
    verdicts: list[GpuVerdict] = []
    for name, entry in prices["gpus"].items():
        gpu = Gpu(name, **entry)
        speed, basis = throughput(recipe, recipe.training, shape, gpu, prices)
        share = peak / (gpu.memory_gib * _GIB)
        verdicts.append(
            {
                "gpu": name,
                "verdict": "fits" if share <= _TIGHT else "tight" if share <= 1 else "does not fit",
                "memory_share": round(share, 3),
                "speed_from": basis,
                **_course(tokens, speed, gpu, pieces),
            }
        )
    return verdicts


def throughput(
    recipe: Recipe, training: Training, shape: Shape, gpu: Gpu, prices: Pricing
) -> tuple[float, str]:
    """Real tokens a second of one GPU, and what the figure rests on.

    The measurement with the most settings in common counts; another GPU is scaled by its bf16 rate,
    another model by the weights that a token passes through. Both are guesses that ignore memory
    bandwidth: they are called scaled. One with other settings on the same GPU and model is taken as
    it is, and called like.
    """
    mine: Mapping[str, object] = {**training, "r": recipe.lora["r"]}

    def alike(row: Mapping[str, object], settings: tuple[str, ...]) -> int:
        return sum(row[setting] == mine[setting] for setting in settings)

    def likeness(row: MeasuredItem) -> tuple[bool, int, int, bool]:
        return (
            row["base_model"] == recipe.base_model.name,
            alike(row, _DECISIVE),
            alike(row, _LESSER),
            row["gpu"] == gpu.name,
        )

    best = max(prices["measured"], key=likeness)
    what = f"{best['gpu']}, {best['base_model']}, {best['name']}"
    if best["gpu"] == gpu.name and best["base_model"] == recipe.base_model.name:
        every = _DECISIVE + _LESSER
        basis = "measured" if alike(best, every) == len(every) else "like"
        return best["tokens_per_second"], f"{basis} {what}"
    faster = gpu.bf16_tflops / prices["gpus"][best["gpu"]]["bf16_tflops"]
    factor = faster * best["parameters"] / shape.passed_parameters
    return best["tokens_per_second"] * factor, f"scaled from {what}"


def milder_settings(training: Training) -> Iterator[str]:
    """What would need less memory, in the order of the ladder."""
    while rung := next_rung(training):
        training, words = rung
        yield words


def too_large(document: Preflight, chosen: GpuVerdict) -> str | None:
    """Why a training cannot run on a GPU type, and what to do; None if it can.

    Args:
        document: what `preflight` returned.
        chosen: the verdict on that type.
    """
    if chosen["verdict"] != "does not fit":
        return None
    rungs = "; then ".join(document["milder"])
    milder = f"as far as it takes: {rungs}. Or " if rungs else ""
    return (
        f"the training needs {chosen['memory_share']:.0%} of the memory of {chosen['gpu']}. In"
        f" {document['recipe']}, {milder}lower max_length or lora.r, or take another GPU:"
        " --preflight says which."
    )


def choose(document: Preflight, gpu: str) -> GpuVerdict:
    """The verdict on one GPU type.

    Raises:
        UsageError: there is none of that name in the pricing.
    """
    known = [entry["gpu"] for entry in document["gpus"]]
    for entry in document["gpus"]:
        if entry["gpu"] == gpu:
            return entry
    raise UsageError(
        f"--gpu {gpu} is not in {PRICING}.{did_you_mean(gpu, known)} Known: {', '.join(known)}."
    )


def show(document: Preflight, console: Console) -> None:
    """Print the document for people."""
    parts = document["memory_gib"]
    console.print(
        f"{document['rows']} rows, {document['tokens']:,} tokens"
        f" ({document['supervised_tokens']:,} supervised), {document['epochs']} epochs;"
        f" {document['truncated_rows']} rows would be cut, losing"
        f" {document['truncated_tokens']:,} tokens,"
        f" {document['truncated_supervised_tokens']:,} of them of answers",
        soft_wrap=True,
    )
    console.print(
        f"peak GiB: loading {parts['peak_loading']} · training {parts['peak_training']} ·"
        f" evaluation {parts['peak_evaluation']}\n"
        f"  of it: weights {parts['weights']},"
        f" quantisation constants {parts['quantisation_constants']},"
        f" embeddings {parts['embeddings']}, LoRA {parts['lora']}, gradients {parts['gradients']},"
        f" optimiser {parts['optimiser']}, activations {parts['activations']},"
        f" working {parts['working']}, logits {parts['logits']}, context {parts['context']};"
        f" while loading, staging {parts['staging']}; while evaluating, forward {parts['forward']}",
        soft_wrap=True,
    )
    table = Table("GPU", "verdict", "memory", "tok/s", "minutes", "cost", "speed")
    colours = {"fits": "green", "tight": "yellow", "does not fit": "red"}
    for entry in document["gpus"]:
        table.add_row(
            entry["gpu"],
            f"[{colours[entry['verdict']]}]{entry['verdict']}[/]",
            f"{entry['memory_share']:.0%}",
            f"{entry['tokens_per_second']:,.0f}",
            f"{entry['minutes']:,.1f}",
            f"${entry['usd']:,.2f}",
            entry["speed_from"],
        )
    console.print(table)
    for hint in document["hints"]:
        console.print(f"hint: {hint}", markup=False, soft_wrap=True)
