"""LoRA adapters with random weights for any base model of the Llama shape, as `train_qlora.py`
would leave them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from adapterops.documents import sha256_file
from adapterops.schemas import ROOT
from adapterops.specs.base_model import BaseModel
from adapterops.store.releases import adapter_digest, adapter_files

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_adapter(
    directory: Path, base_model: BaseModel, config: Path, rank: int, seed: int, scale: float
) -> Path:
    """Write an adapter on all seven projections in bf16, 336 MB for the 8B shape at rank 64.

    Args:
        directory: where to; made.
        base_model: what it is for.
        config: the base model's config.json.
        rank: of every pair of matrices.
        seed: of the weights.
        scale: standard deviation of the B matrices; 0 is an adapter without effect, too much makes
            the model babble.

    Returns:
        The directory.
    """
    shape = json.loads(config.read_text())
    hidden, inner, heads = (
        shape["hidden_size"],
        shape["intermediate_size"],
        shape["num_attention_heads"],
    )
    width = shape.get("head_dim") or hidden // heads
    query, value = heads * width, shape["num_key_value_heads"] * width
    sizes = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, value),
        "v_proj": (hidden, value),
        "o_proj": (query, hidden),
    }
    sizes |= {
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(shape["num_hidden_layers"]):
        for name in PROJECTIONS:
            rows, columns = sizes[name]
            block = "self_attn" if name in PROJECTIONS[:4] else "mlp"
            key = f"base_model.model.model.layers.{layer}.{block}.{name}"
            first = torch.randn(rank, rows, generator=generator) * rows**-0.5
            weights[f"{key}.lora_A.weight"] = first.to(torch.bfloat16)
            weights[f"{key}.lora_B.weight"] = (
                torch.randn(columns, rank, generator=generator) * scale
            ).to(torch.bfloat16)
    directory.mkdir(parents=True)
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    describe(directory, base_model, rank)
    return directory


def describe(directory: Path, base_model: BaseModel, rank: int) -> None:
    """Put beside `adapter_model.safetensors` what evaluation and engine ask for: configuration,
    template and train manifest."""
    lora = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
    }
    lora |= {
        "target_modules": list(PROJECTIONS),
        "base_model_name_or_path": base_model.source_id,
        "inference_mode": True,
    }
    (directory / "adapter_config.json").write_text(json.dumps(lora, indent=2) + "\n")
    shutil.copy(ROOT / base_model.chat_template_path, directory / "chat_template.jinja")
    files = [
        {
            "name": name,
            "size": (directory / name).stat().st_size,
            "sha256": sha256_file(directory / name),
        }
        for name in adapter_files
    ]
    nothing = {
        "rows": 0,
        "total": 0,
        "supervised": 0,
        "longest_row": 0,
        "truncated_rows": 0,
        "truncated_tokens": 0,
        "mask_sample": "",
    }
    training = {
        "steps": 0,
        "final_loss": 0.0,
        "loss_history": [],
        "seconds": 0.0,
        "tokens_per_second": 0.0,
        "peak_memory_gib": 0.0,
    }
    run = {
        "processes": 1,
        "resumed_from_step": 0,
        "out_of_memory": [],
        "stopped": "random weights",
        "held_back": [],
        "hints": [],
    }
    manifest = {
        "schema": "train_manifest/v1",
        "training_key": "0" * 64,
        "key_inputs": {},
        "recipe": "none: random weights",
        "base_model": {
            "name": base_model.name,
            "source_id": base_model.source_id,
            "revision": base_model.revision,
            "license": base_model.license,
        },
        "data": [{"path": "none", "sha256": "0" * 64}],
        "tokens": nothing,
        "training": training | {"lora_step0_sha256": "0" * 64},
        "prediction": {"loading_gib": 0.0, "training_gib": 0.0, "evaluation_gib": 0.0},
        "run": run,
        "adapter": {
            "digest": adapter_digest(directory),
            "rank": rank,
            "dtype": "bfloat16",
            "files": files,
        },
        "environment": {"device": "none", "python": "none", "packages": {}},
        "total_seconds": 0.0,
        "finished_at": "2026-01-01T00:00:00+00:00",
    }
    (directory / "train_manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
