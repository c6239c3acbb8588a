"""The files of a trained adapter: weights, configuration, loss curve, model card."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from adapterops.errors import RejectedError
from adapterops.shapes.train_manifest import Quantisation, Training, TrainManifest
from adapterops.specs.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel


def save_adapter(
    trained: dict[str, torch.Tensor], lora: LoraConfig, recipe: Recipe, directory: Path
) -> None:
    """Write config and bf16 safetensors so that equal weights give equal bytes on any machine.

    Raises:
        RejectedError: a weight is not finite.
        ValueError: there are other tensors than the A and B matrices of LoRA: embeddings that came
            along would be megabytes of it.
    """
    import torch
    from safetensors.torch import save_file

    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in sorted(trained.items())
    }
    others = [name for name in weights if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if others:
        raise ValueError(
            f"the adapter would hold {', '.join(others[:3])}, which vLLM does not serve. Only"
            " LoRA's matrices belong in it."
        )
    if broken := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise RejectedError(
            f"training diverged: {broken[0]} and {len(broken) - 1} more of the adapter's"
            f" {len(weights)} matrices hold what is no number. In {recipe.path}: lower"
            f" training.learning_rate {recipe.training['learning_rate']} or raise warmup_ratio."
        )
    path = directory / "adapter_model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    _check_written(path, weights)
    source = recipe.base_model.source
    # peft records a path of this machine and sets in arbitrary order; both would change the digest.
    config = {
        **{
            key: sorted(value) if isinstance(value, set) else value
            for key, value in lora.to_dict().items()
        },
        "inference_mode": True,
        "base_model_name_or_path": recipe.base_model.source_id,
        "revision": source["revision"] if source["type"] == "hub" else None,
        "target_modules": sorted(lora.target_modules),
    }
    text = json.dumps(config, indent=2, sort_keys=True, default=str) + "\n"
    (directory / "adapter_config.json").write_text(text, encoding="utf-8")


def _check_written(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Hold the file to its size: its header, and two bytes a number."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    types = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    expected = 8 + length + 2 * sum(tensor.numel() for tensor in weights.values())
    if types != {"BF16"} or path.stat().st_size != expected:
        raise ValueError(
            f"{path}: {path.stat().st_size} bytes of {', '.join(sorted(types))}. Expected"
            f" {expected} of BF16."
        )


def lora_digest(model: PeftModel) -> str:
    """SHA-256 over the initial LoRA A matrices: it shows whether the seed had an effect."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if "lora_A" in name:
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def peak_memory_gib() -> float:
    """Peak of this process: allocated on the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 2**20 if sys.platform == "linux" else 2**30
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2)


def loss_curve(manifest: TrainManifest) -> str:
    """The training loss, and that of held-back rows if there are any, as an SVG of its own."""
    width, height, left, bottom = 640, 320, 52, 36
    points = [(entry["step"], entry["loss"]) for entry in manifest["training"]["loss_history"]]
    held = [(entry["step"], entry["loss"]) for entry in manifest["run"]["held_back"]]
    last = max(step for step, _ in points + held)
    first = min(step for step, _ in points)
    top = max(loss for _, loss in points + held) or 1.0

    def place(step: float, loss: float) -> str:
        x = left + (width - left - 12) * (step - first) / max(1, last - first)
        return f"{x:.1f},{12 + (height - bottom - 12) * (1 - loss / top):.1f}"

    def line(curve: list[tuple[int, float]], colour: str) -> str:
        return (
            f'<polyline fill="none" stroke="{colour}" stroke-width="2"'
            f' points="{" ".join(place(*point) for point in curve)}"/>'
        )

    ticks = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = place(first, top * share).split(",")
        ticks.append(f'<line x1="{x}" y1="{y}" x2="{width - 12}" y2="{y}" stroke="#8884"/>')
        ticks.append(
            f'<text x="{left - 6}" y="{float(y) + 4:.1f}"'
            f' text-anchor="end">{top * share:.2f}</text>'
        )
        step = first + (last - first) * share
        ticks.append(
            f'<text x="{place(step, 0).split(",")[0]}" y="{height - bottom + 18}"'
            f' text-anchor="middle">{step:.0f}</text>'
        )
    legend = "loss (nats per supervised token) over steps"
    if held:
        legend += "; red: held-back rows"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="11" fill="#888">',
        f"<title>Training loss from {points[0][1]:.3f} to {points[-1][1]:.3f} in {last} steps"
        "</title>",
        *ticks,
        line(points, "#2f6fdf"),
        line(held, "#d33") if held else "",
        f'<text x="{left}" y="{height - 4}">{legend}</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _carried_over(found: Quantisation | None) -> str:
    if not found:
        return "not measured: the weights were in pieces on several GPUs"
    of = "held-back" if found["from"] == "held_back" else "training"
    return (
        f"loss {found['adapter_nf4']:.4f} on NF4 → {found['adapter_bf16']:.4f}, over"
        f" {found['rows']} {of} rows; base model perplexity {math.exp(found['base_nf4']):.2f} →"
        f" {math.exp(found['base_bf16']):.2f}"
    )


def _final_loss(training: Training) -> str:
    return f"{training['final_loss']:.4f} nats per supervised token after {training['steps']} steps"


def _hardware(manifest: TrainManifest) -> str:
    training = manifest["training"]
    speed, memory = training["tokens_per_second"], training["peak_memory_gib"]
    return f"{manifest['environment']['device']}, {speed:,.0f} tokens/s, peak {memory} GiB"


def _listed(licences: dict[str, int]) -> str:
    return ", ".join(f"{licence} ({rows:,})" for licence, rows in licences.items())


def model_card(manifest: TrainManifest, recipe: Recipe) -> str:
    """What this adapter is, for whoever finds it (Hugging Face model card)."""
    base, tokens, lora = manifest["base_model"], manifest["tokens"], recipe.lora
    layers = f" of the last {lora['last_layers']} layers" if "last_layers" in lora else ""
    files = "\n".join(f"| `{file['path']}` | `{file['sha256']}` |" for file in manifest["data"])
    packages = ", ".join(
        f"{name} {version}" for name, version in manifest["environment"]["packages"].items()
    )
    return f"""---
base_model: {base["source_id"]}
library_name: peft
license: {base["license"].lower()}
pipeline_tag: text-generation
tags: [lora, qlora]
---

# QLoRA adapter for {base["source_id"]}

Trained on the answers of {tokens["rows"]:,} rows ({tokens["total"]:,} tokens,
{tokens["supervised"]:,} of them supervised, {tokens["truncated_rows"]} rows cut, losing
{tokens["truncated_supervised"]:,} tokens of answers) with NF4 base weights and LoRA of
rank {lora["r"]}, alpha {lora["alpha"]}, dropout {lora["dropout"]}, on
{", ".join(lora["target_modules"])}{layers}. It is under the base model's licence,
{base["license"]}; rows: {_listed(manifest["licenses"])}.

![training loss](loss.svg)

| | |
|---|---|
| final training loss | {_final_loss(manifest["training"])} |
| on the bf16 weights, which are served | {_carried_over(manifest["run"].get("quantisation"))} |
| base revision | `{base["revision"]}` |
| recipe | `{manifest["recipe"]}`, seed {recipe.seed} |
| training key | `{manifest["training_key"]}` |
| adapter digest | `{manifest["adapter"]["digest"]}` |
| hardware | {_hardware(manifest)} |
| software | {packages} |

| data | SHA-256 |
|---|---|
{files}

How good it is, and at what, is in the gate report of the same training key; what it lost of the
base model is below once it was judged. Load it with the base revision above and the
`chat_template.jinja` beside this file: with another template it was not trained.
"""
