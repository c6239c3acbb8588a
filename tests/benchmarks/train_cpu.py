"""What the processor computes the demo's training in, and what that costs: steps in float32 and in bf16 on the same rows.

python tests/benchmarks/train_cpu.py
"""

import sys
import tempfile
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))


@click.command()
@click.option("--steps", default=3, show_default=True, help="Timed steps, after one of warm-up.")
@click.option("--rows", default=8, show_default=True, help="Rows a step.")
def main(steps: int, rows: int) -> None:
    """Time forward and backward passes of the demo's recipe in both formats."""
    import torch

    from adapterops.processor import cpu_dtype
    from adapterops.train import network

    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}; a training here takes {cpu_dtype()}")
    speeds = {}
    for dtype in (torch.float32, torch.bfloat16):
        network.compute_dtype = lambda _, dtype=dtype: dtype  # what the processor would decide
        speeds[dtype], loss = timed_steps(steps, rows)
        print(f"{dtype!s:16} {speeds[dtype]:8.1f} tok/s   loss {loss:.3f}", flush=True)
    print(f"float32 by bfloat16: {speeds[torch.float32] / speeds[torch.bfloat16]:.2f} ×")


def timed_steps(steps: int, rows: int) -> tuple[float, float]:
    """Tokens a second of forward and backward passes over rows of middling length, after one of warm-up, and the last loss in nats."""
    from adapterops.basemodels import load_tokenizer
    from adapterops.schemas import ROOT
    from adapterops.train.build import build_trainer
    from adapterops.train.encode import encode_files
    from adapterops.train.recipe import load_recipe

    recipe = load_recipe(ROOT / "configs/qlora/smollm2-135m.yaml")
    tokenizer = load_tokenizer(recipe.base_model)
    encoded = encode_files([ROOT / "data/training/support.jsonl"], tokenizer, recipe.base_model, recipe.training["max_length"], "error")
    middle = sorted(encoded.rows(), key=lambda row: len(row["input_ids"]))[len(encoded.input_ids) // 2 :][: rows * (steps + 1)]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = build_trainer(recipe, recipe.training, encoded.rows(), tokenizer, Path(scratch))
    tokens = seconds = 0.0
    for step in range(steps + 1):
        batch = trainer.data_collator(middle[rows * step : rows * (step + 1)])
        began = time.perf_counter()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        if step:
            tokens, seconds = tokens + int(batch["attention_mask"].sum()), seconds + time.perf_counter() - began
    return tokens / seconds, loss.item()


if __name__ == "__main__":
    main()
