"""Train a QLoRA adapter."""

from __future__ import annotations

from pathlib import Path

import click

from adapterops.command import EXISTING_FILE, OUTPUT_PATH, command, console


@command()
@click.option("--config", type=EXISTING_FILE, required=True, help="Recipe: a YAML file under configs/qlora/.")
@click.option("--data", type=EXISTING_FILE, required=True, multiple=True, help="Training file; may be given several times.")
@click.option("--output", type=OUTPUT_PATH, required=True, help="Adapter directory to make or replace.")
@click.option("--force", is_flag=True, help="Train although OUTPUT holds an adapter with this very training key.")
def main(config: Path, data: tuple[Path, ...], output: Path, force: bool) -> None:
    """Train a QLoRA adapter: NF4 base model, LoRA, loss on the answers only.

    Writes adapter_model.safetensors (bf16), adapter_config.json, chat_template.jinja and train_manifest.json. Equal inputs
    have an equal training key and are not trained twice.

    \b
    Example:
      python scripts/train_qlora.py --config configs/qlora/smollm2-135m.yaml \\
        --data data/training/support.jsonl --output models/support
    """
    from adapterops.train.cached import train_once
    from adapterops.train.recipe import load_recipe

    manifest, cached = train_once(load_recipe(config), list(data), output, console, force=force)
    training = manifest["training"]
    how = "already trained, nothing to do" if cached else f"trained in {training['seconds']:.0f} s"
    console.print(
        f"{output}: {how}; {training['steps']} steps, final loss {training['final_loss']:.4f}, "
        f"{training['tokens_per_second']:.0f} tok/s, peak {training['peak_memory_gib']} GiB\n"
        f"training key {manifest['training_key']}\nadapter digest {manifest['adapter']['digest']}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
