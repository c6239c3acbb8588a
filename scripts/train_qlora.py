"""Train a QLoRA adapter."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterops.command import EXISTING_FILE, OUTPUT_PATH, command, console
from adapterops.errors import RejectedError, UsageError

if TYPE_CHECKING:
    from adapterops.specs.recipe import Recipe


@command()
@click.option(
    "--config", type=EXISTING_FILE, required=True, help="Recipe: a YAML file under configs/qlora/."
)
@click.option(
    "--data",
    type=EXISTING_FILE,
    required=True,
    multiple=True,
    help="Training file; may be given several times.",
)
@click.option("--output", type=OUTPUT_PATH, help="Adapter directory to make or replace.")
@click.option(
    "--force",
    is_flag=True,
    help="Train although OUTPUT holds an adapter with this very training key.",
)
@click.option(
    "--checkpoint-bucket",
    help="S3 bucket in which checkpoints lie too, so that another machine can resume.",
)
@click.option(
    "--preflight",
    "only_preflight",
    is_flag=True,
    help="Predict memory, minutes and cost for each GPU type, and stop.",
)
@click.option(
    "--gpu",
    help=(
        "With --preflight: the GPU type that will be used; exit code 1 if the training does not fit"
        " on it."
    ),
)
@click.option(
    "--report", type=OUTPUT_PATH, help="With --preflight: write the prediction here as JSON."
)
@click.option(
    "--pieces",
    type=click.IntRange(1, 1024),
    default=1,
    help="With --preflight: GPUs over which FSDP or ZeRO 3 lays the network.",
)
def main(
    config: Path,
    data: tuple[Path, ...],
    output: Path | None,
    force: bool,
    checkpoint_bucket: str | None,
    only_preflight: bool,
    gpu: str | None,
    report: Path | None,
    pieces: int,
) -> None:
    """Train a QLoRA adapter: NF4 base model, LoRA, loss on the answers only.

    Writes adapter_model.safetensors (bf16), adapter_config.json, chat_template.jinja,
    train_manifest.json, README.md (model card) and loss.svg. Equal inputs have an equal training
    key and are not trained twice.

    Interrupted by SIGTERM or SIGINT (a spot instance that goes, a cancelled job), it writes a
    checkpoint and exits with 3: the same command resumes, and with --checkpoint-bucket on any
    machine. Out of memory, one process tries again with smaller micro-batches, then with
    checkpointing; the effective batch stays, on however many GPUs.

    \b
    Examples:
      python scripts/train_qlora.py --config configs/qlora/smollm2-135m.yaml \\
        --data data/training/support.jsonl --output models/support
      python scripts/train_qlora.py --preflight --gpu a100-40 \\
          --config configs/qlora/llama3-8b.yaml --data data/training/support-ko.jsonl
      accelerate launch --config_file configs/accelerate/ddp.yaml scripts/train_qlora.py \\
          --config … --data … --output …

    \b
    Exit codes: 0 trained · 1 the data cannot be trained on, or the loss diverged · 2 misuse ·
    3 interrupted, out of memory, network.
    Under `accelerate launch` every failure is 1: the launcher keeps no other code, and the message
    says which it was.
    """
    from adapterops.specs.recipe import load_recipe

    recipe = load_recipe(config)
    if only_preflight:
        _preflight(recipe, list(data), gpu, report, pieces)
        return
    if gpu or report or pieces > 1:
        raise UsageError(
            "--gpu, --report and --pieces belong to --preflight. Add it, or leave them out."
        )
    if output is None:
        raise UsageError(
            "--output is missing: the adapter directory to make. Only --preflight does without."
        )
    from adapterops.train.cached import train_once

    remote = None
    if checkpoint_bucket:
        from adapterops.candidates.checkpoints import Remote
        from adapterops.store.objects import open_store

        remote = Remote(open_store(checkpoint_bucket))
    manifest, cached = train_once(recipe, list(data), output, console, force=force, remote=remote)
    if not manifest:  # a process of rank above 0
        return
    training = manifest["training"]
    how = "already trained, nothing to do" if cached else f"trained in {training['seconds']:.0f} s"
    console.print(
        f"{output}: {how}; {training['steps']} steps, final loss {training['final_loss']:.4f}, "
        f"{training['tokens_per_second']:.0f} tok/s, peak {training['peak_memory_gib']} GiB\n"
        f"training key {manifest['training_key']}\nadapter digest {manifest['adapter']['digest']}",
        soft_wrap=True,
    )


def _preflight(
    recipe: Recipe, data: list[Path], gpu: str | None, report: Path | None, pieces: int
) -> None:
    from adapterops.documents import write_json
    from adapterops.train.preflight import choose, preflight, show, too_large

    document = preflight(recipe, data, pieces=pieces)
    show(document, console)
    if report:
        write_json(report, document, "preflight")
    if gpu:
        problem = too_large(document, choose(document, gpu))
        if problem:
            raise RejectedError(problem)


if __name__ == "__main__":
    main()
