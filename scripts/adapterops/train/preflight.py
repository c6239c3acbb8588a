"""What a training would need and cost, before a GPU second is spent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from adapterops.basemodels.materialize import base_model_directory, load_tokenizer
from adapterops.errors import UsageError
from adapterops.schemas import ROOT, did_you_mean, repository_path
from adapterops.shapes.pricing import Pricing
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
# Above this share of a GPU's memory the verdict is `tight`: fragmentation and a longer row can
# still end it.
_TIGHT = 0.9
# What a throughput was measured with. The first decide by factors, the others by percents; where
# one differs, nothing was measured.
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


def memory(
    recipe: Recipe, training: dict[str, Any], encoded: EncodedData, pieces: int = 1
) -> Estimate:
    """The estimate for the largest micro-batch of these rows: the longest row, as often as the
    micro-batch has rows.
    """
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
    training: dict[str, Any],
    encoded: EncodedData,
    device: str,
    prices: dict[str, Any],
    *,
    processes: int = 1,
    sharded: bool = False,
) -> dict[str, Any]:
    """What the manifest holds against what was measured: peaks of one GPU in GiB; speed, minutes
    and cost of all.

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
    found: dict[str, Any] = {
        "loading_gib": round(needed.loading / _GIB, 2),
        "training_gib": round(needed.training / _GIB, 2),
        "evaluation_gib": round(needed.evaluation / _GIB, 2),
    }
    gpu = gpu_named(device, prices)
    if gpu is None:
        return found
    speed, basis = throughput(recipe, training, shape_of(recipe), gpu, prices)
    return found | {
        "gpu": gpu.name,
        "speed_from": basis,
        **_course(work_tokens(training, encoded), speed, gpu, processes),
    }


def cost(seconds: float, device: str, prices: dict[str, Any], processes: int) -> dict[str, float]:
    """`usd` of what a training took, for the manifest; nothing on a device without a price.
    Arguments as for `predict`.
    """
    gpu = gpu_named(device, prices)
    return {"usd": round(seconds / 3600 * gpu.usd_per_hour * processes, 2)} if gpu else {}


def gpu_named(device: str, prices: dict[str, Any]) -> Gpu | None:
    """The priced GPU type that the driver means; None for another device."""
    name = gpu_type(device, prices["gpus"])
    return Gpu(name, **prices["gpus"][name]) if name else None


def _course(tokens: float, speed: float, gpu: Gpu, processes: int) -> dict[str, float]:
    """Speed of all GPUs together, if none waits for another; minutes and cost of so many tokens."""
    seconds = tokens / (speed * processes)
    return {
        "tokens_per_second": round(speed * processes, 1),
        "minutes": round(seconds / 60, 1),
        "usd": round(seconds / 3600 * gpu.usd_per_hour * processes, 2),
    }


def preflight(
    recipe: Recipe, data: list[Path], pricing: Path = ROOT / PRICING, *, pieces: int = 1
) -> dict[str, Any]:
    """Memory, tokens, minutes and cost of a training, and a verdict for each GPU type.

    Args:
        recipe: what would be trained.
        data: on what.
        pricing: GPU types, prices and measured speeds.
        pieces: over how many GPUs FSDP or ZeRO stage 3 lays the network; memory is that of each.

    Returns:
        A document of `configs/schemas/preflight.json`.

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
    peak = max(needed.loading, needed.training, needed.evaluation) + CONTEXT_BYTES
    total = work_tokens(training, encoded)
    gpus = []
    for name, entry in prices["gpus"].items():
        gpu = Gpu(name, **entry)
        speed, basis = throughput(recipe, training, shape_of(recipe), gpu, prices)
        share = peak / (gpu.memory_gib * _GIB)
        gpus.append(
            {
                "gpu": name,
                "verdict": "fits" if share <= _TIGHT else "tight" if share <= 1 else "does not fit",
                "memory_share": round(share, 3),
                "speed_from": basis,
                **_course(total, speed, gpu, pieces),
            }
        )
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
        "memory_gib": {
            **{
                part: round(value / _GIB, 3)
                for part, value in vars(needed).items()
                if part != "pieces"
            },
            "context": round(CONTEXT_BYTES / _GIB, 3),
            "peak_loading": round((needed.loading + CONTEXT_BYTES) / _GIB, 2),
            "peak_training": round((needed.training + CONTEXT_BYTES) / _GIB, 2),
            "peak_evaluation": round((needed.evaluation + CONTEXT_BYTES) / _GIB, 2),
        },
        "gpus": gpus,
        "hints": hints(recipe, len(encoded.input_ids)),
    }


def throughput(
    recipe: Recipe, training: dict[str, Any], shape: Shape, gpu: Gpu, prices: dict[str, Any]
) -> tuple[float, str]:
    """Real tokens a second of one GPU, and what the figure rests on.

    The measurement with the most settings in common counts; another GPU is scaled by its bf16 rate,
    another model by the weights that a token passes through. Both are guesses that ignore memory
    bandwidth: they are called scaled. One with other settings on the same GPU and model is taken as
    it is, and called like.
    """
    mine = {**training, "r": recipe.lora["r"]}

    def alike(row: dict[str, Any], settings: tuple[str, ...]) -> int:
        return sum(row[setting] == mine[setting] for setting in settings)

    def likeness(row: dict[str, Any]) -> tuple[bool, int, int, bool]:
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
        return (
            best["tokens_per_second"],
            f"{'measured' if alike(best, every) == len(every) else 'like'} {what}",
        )
    factor = (
        gpu.bf16_tflops
        / prices["gpus"][best["gpu"]]["bf16_tflops"]
        * best["parameters"]
        / shape.passed_parameters
    )
    return best["tokens_per_second"] * factor, f"scaled from {what}"


def milder_settings(training: dict[str, Any]) -> Iterator[str]:
    """What would need less memory, in the order of the ladder."""
    while rung := next_rung(training):
        training, words = rung
        yield words


def too_large(document: dict[str, Any], chosen: dict[str, Any]) -> str | None:
    """Why a training cannot run on a GPU type, and what to do; None if it can.

    Args:
        document: what `preflight` returned.
        chosen: the verdict on that type.
    """
    if chosen["verdict"] != "does not fit":
        return None
    milder = (
        f"as far as it takes: {'; then '.join(document['milder'])}. Or "
        if document["milder"]
        else ""
    )
    return (
        f"the training needs {chosen['memory_share']:.0%} of the memory of {chosen['gpu']}. In"
        f" {document['recipe']}, {milder}lower max_length or lora.r, or take another GPU:"
        " --preflight says which."
    )


def choose(document: dict[str, Any], gpu: str) -> dict[str, Any]:
    """The verdict on one GPU type.

    Raises:
        UsageError: there is none of that name in the pricing.
    """
    known = [entry["gpu"] for entry in document["gpus"]]
    for entry in document["gpus"]:
        if entry["gpu"] == gpu:
            return dict(entry)
    raise UsageError(
        f"--gpu {gpu} is not in {PRICING}.{did_you_mean(gpu, known)} Known: {', '.join(known)}."
    )


def show(document: dict[str, Any], console: Console) -> None:
    """Print the document for people."""
    parts = document["memory_gib"]
    answers = f"{document['truncated_supervised_tokens']:,} of them of answers"
    lost = (
        f"{document['truncated_rows']} rows would be cut, losing {document['truncated_tokens']:,}"
        f" tokens, {answers}"
    )
    supervised = f"{document['supervised_tokens']:,} supervised"
    console.print(
        f"{document['rows']} rows, {document['tokens']:,} tokens ({supervised}),"
        f" {document['epochs']} epochs; {lost}",
        soft_wrap=True,
    )
    console.print(
        f"peak GiB: loading {parts['peak_loading']} · training {parts['peak_training']} ·"
        f" evaluation {parts['peak_evaluation']}\n  of it: weights {parts['weights']}, quantisation"
        f" constants {parts['quantisation_constants']}, embeddings {parts['embeddings']}, LoRA"
        f" {parts['lora']}, gradients {parts['gradients']}, optimiser {parts['optimiser']},"
        f" activations {parts['activations']}, working {parts['working']}, logits"
        f" {parts['logits']}, context {parts['context']}; while loading, staging"
        f" {parts['staging']}; while evaluating, forward {parts['forward']}",
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
