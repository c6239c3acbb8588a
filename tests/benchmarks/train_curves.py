"""Do the fast settings learn the same? Loss curves of plain, fused and packed training on the
demo's data and base model.

python tests/benchmarks/train_curves.py

Every training sees the demo's rows for the same number of steps, without dropout, and is judged on
the demo's evaluation rows:

- plain: the recipe with peft's LoRA layers.
- other order: the same in another order of rows; how far it is from plain is the noise of any such
  curve.
- fused: `fused_lora: true`, plain's order. Nothing but rounding should differ.
- packed: rows back to back, each seeing itself alone, fused; about as many rows a step. Other
  batches, so the curve can only agree as well as another order does.
"""

import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"fused_lora": False, "keep_dequantized": False},
    "other order": {"fused_lora": False, "keep_dequantized": False},
    "fused": {"fused_lora": True},
    "packed": {"fused_lora": True, "packing": True, "per_device_train_batch_size": 1},
}


@click.command()
@click.option("--steps", default=100, show_default=True)
@click.option("--rows", default=4, show_default=True, help="Rows a step.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the curves here as JSON.",
)
def main(steps: int, rows: int, output: Path | None) -> None:
    """Train each variant and print how far its losses are from plain's."""
    from adapterops.basemodels.materialize import load_tokenizer
    from adapterops.data.reader import load_rows
    from adapterops.data.rows import training_messages
    from adapterops.schemas import ROOT
    from adapterops.specs.recipe import load_recipe
    from adapterops.train.build import build_trainer, mean_loss
    from adapterops.train.encode import encode_files, encode_messages
    from adapterops.train.packing import Collator

    recipe = load_recipe(ROOT / "configs/qlora/smollm2-135m.yaml")
    tokenizer = load_tokenizer(recipe.base_model)
    longest = recipe.training["max_length"]
    given = encode_files(
        [ROOT / "data/training/support.jsonl"], tokenizer, recipe.base_model, longest, "error"
    ).rows()
    judged = []
    for row in load_rows(ROOT / "data/eval/support.jsonl", "eval")[::5]:
        ids, labels = encode_messages(training_messages(row.value), tokenizer, recipe.base_model)
        judged.append({"input_ids": ids, "labels": labels})
    common = {
        "per_device_train_batch_size": rows,
        "packing": False,
        "train_sampling_strategy": "random",
        "logging_steps": 1,
    }
    found: dict[str, dict[str, Any]] = {}
    for name, changes in VARIANTS.items():
        ordered = list(given)
        if name == "other order":
            random.Random(7).shuffle(ordered)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = build_trainer(
                recipe, {**recipe.training, **common, **changes}, ordered, tokenizer, Path(scratch)
            )
            trainer.args.max_steps = steps
            trainer.train()
        curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        unseen = mean_loss(trainer.model, judged, Collator(tokenizer.pad_token_id, None), 8)
        found[name] = {"curve": curve, "unseen": unseen}
        print(
            f"{name}: {len(curve)} steps, last loss {curve[-1]:.3f}, on {len(judged)} rows not seen"
            f" {unseen:.4f}",
            flush=True,
        )
        if output:
            output.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(
        "\n| | mean loss of the last 20 steps | a step's distance from plain: median | largest |"
        " loss on rows not seen |"
    )
    print("|---|---|---|---|---|")
    for name, one in found.items():
        distances = [abs(a - b) for a, b in zip(one["curve"], found["plain"]["curve"], strict=True)]
        median, largest = statistics.median(distances), max(distances)
        print(
            f"| {name} | {statistics.mean(one['curve'][-20:]):.4f} | {median:.5f} | {largest:.5f} |"
            f" {one['unseen']:.4f} |"
        )


if __name__ == "__main__":
    main()
