"""What the processor computes the demo's training in, and what that costs: steps in float32 and in
bf16 on the same packs.

python tests/benchmarks/train_cpu.py
"""

import sys
import tempfile
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))


@click.command()
@click.option("--steps", default=8, show_default=True, help="Timed steps, after one of warm-up.")
def main(steps: int) -> None:
    """Time forward and backward passes of the demo's recipe in both formats."""
    import torch

    from adapterops.cpu_number_format import cpu_dtype
    from adapterops.train import network

    print(
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}; a training"
        f" here takes {cpu_dtype()}"
    )
    speeds = {}
    for dtype in (torch.float32, torch.bfloat16):
        network.compute_dtype = lambda _, dtype=dtype: dtype  # what the processor would decide
        speeds[dtype], loss = timed_steps(steps)
        print(f"{dtype!s:16} {speeds[dtype]:8.1f} tok/s   loss {loss:.3f}", flush=True)
    print(f"float32 by bfloat16: {speeds[torch.float32] / speeds[torch.bfloat16]:.2f} ×")


def timed_steps(steps: int) -> tuple[float, float]:
    """Tokens a second of forward and backward passes over packs, after one of warm-up, and the last
    loss in nats."""
    from adapterops.basemodels.materialize import load_tokenizer
    from adapterops.schemas import ROOT
    from adapterops.specs.recipe import load_recipe
    from adapterops.train.build import build_trainer
    from adapterops.train.encode import encode_files

    recipe = load_recipe(ROOT / "configs/qlora/smollm2-135m.yaml")
    tokenizer = load_tokenizer(recipe.base_model)
    encoded = encode_files(
        [ROOT / "data/training/support.jsonl"],
        tokenizer,
        recipe.base_model,
        recipe.training["max_length"],
        "error",
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = build_trainer(recipe, recipe.training, encoded.rows(), tokenizer, Path(scratch))
    tokens = seconds = 0.0
    for step, pack in enumerate(trainer.train_dataset.take(steps + 1)):
        batch = trainer.data_collator([pack])
        began = time.perf_counter()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        if step:
            tokens, seconds = tokens + len(pack["input_ids"]), seconds + time.perf_counter() - began
    return tokens / seconds, loss.item()


if __name__ == "__main__":
    main()
