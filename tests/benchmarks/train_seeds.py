"""Do the fast settings learn the same on a GPU? One training of SmolLM2-135M, judged on others.

    for s in 1 2 3; do for v in plain packed fast; do
      python tests/benchmarks/train_seeds.py --variant $v --seed $s --steps 300
    done; done

- plain: four rows a step, padded; peft's LoRA layers, SDPA, no Liger: what others would call QLoRA.
- packed: packs of 256 tokens (about four rows), the rest as plain. Other batches than plain's.
- fast: the same packs in the same order; varlen attention, Liger, fused LoRA layers.

`fast` against `packed` is the kernels alone: same weights at the start, same batches. `packed`
against `plain` is packing. Each prints one line of JSON, with a digest of the trained weights.
"""

import hashlib
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

PLAIN = {
    "fused_lora": False, "keep_dequantized": False, "liger": False, "packing": False,
    "attn_implementation": "sdpa", "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1, "train_sampling_strategy": "random",
}  # fmt: skip
PACKED = {**PLAIN, "packing": True, "per_device_train_batch_size": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "packed": PACKED,
    "fast": {**PACKED, "fused_lora": True, "liger": True, "attn_implementation": "varlen"},
}
TRAINING = ("data/training/support.jsonl", "data/training/general-en.jsonl")
EVALUATION = ("data/eval/support.jsonl", "data/eval/general-en.jsonl")


def digest(weights: dict[str, Any]) -> str:
    """SHA-256 of the trained weights, in the order of their names."""
    import torch

    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        found.update(name.encode() + tensor.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@click.command()
@click.option("--variant", type=click.Choice(list(VARIANTS)), required=True)
@click.option("--seed", type=int, required=True)
@click.option("--steps", default=300, show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Append to it too.")
def main(variant: str, seed: int, steps: int, output: Path | None) -> None:
    """Train once and print losses."""
    import torch

    from adapterops.basemodels.materialize import load_tokenizer
    from adapterops.data.reader import load_rows
    from adapterops.data.rows import training_messages
    from adapterops.schemas import ROOT
    from adapterops.specs.recipe import load_recipe
    from adapterops.train.build import build_trainer, mean_loss
    from adapterops.train.encode import encode_files, encode_messages

    recipe = load_recipe(ROOT / "configs/qlora/smollm2-135m.yaml")
    lora = {name: value for name, value in recipe.lora.items() if name != "last_layers"}
    recipe = replace(recipe, seed=seed, lora=lora)
    tokenizer = load_tokenizer(recipe.base_model)
    files = [ROOT / name for name in TRAINING]
    longest = recipe.training["max_length"]
    rows = encode_files(files, tokenizer, recipe.base_model, longest, "error").rows()
    judged = []
    for name in EVALUATION:
        for row in load_rows(ROOT / name, "eval"):
            messages = training_messages(row.value)
            ids, labels = encode_messages(messages, tokenizer, recipe.base_model)
            judged.append({"input_ids": ids, "labels": labels})
    training = {**recipe.training, **VARIANTS[variant], "report_to": "none"}
    with tempfile.TemporaryDirectory() as scratch:
        trainer = build_trainer(recipe, training, rows, tokenizer, Path(scratch))
        trainer.args.max_steps = steps
        collate = trainer.data_collator
        size = 8 if training["packing"] else 16
        if collate.capacity:  # evaluation rows may be longer than a training pack
            longest = max(len(row["input_ids"]) for row in judged)
            collate = replace(collate, capacity=max(collate.capacity, longest))
        before = mean_loss(trainer.model, judged, collate, size)
        began = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - began
        after = mean_loss(trainer.model, judged, collate, size)
    curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = {
        "variant": variant,
        "seed": seed,
        "steps": len(curve),
        "last_20_steps": round(sum(curve[-20:]) / 20, 4),
        "unseen_before": round(before, 4),
        "unseen": round(after, 4),
        "unseen_rows": len(judged),
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "weights_sha256": digest(trainer.adapter_weights())[:16],
        "curve": [round(loss, 4) for loss in curve],
    }
    line = json.dumps(found)
    print(line)
    if output:
        with output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
