"""Equal inputs are not trained twice."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from adapterops.candidates.checkpoints import Remote
from adapterops.documents import read_json
from adapterops.errors import UsageError
from adapterops.shapes.train_manifest import TrainManifest
from adapterops.specs.recipe import Recipe, training_key
from adapterops.store.releases import adapter_digest
from adapterops.train.judgement import judge_again


def find_trained(output: Path, key: str) -> TrainManifest | None:
    """The manifest of the intact adapter in `output` if it has this training key, else None."""
    try:
        manifest = read_json(output / "train_manifest.json", TrainManifest)
        intact = adapter_digest(output) == manifest["adapter"]["digest"]
    except (UsageError, OSError):
        return None
    return manifest if intact and manifest["training_key"] == key else None


def train_once(
    recipe: Recipe,
    data: list[Path],
    output: Path,
    console: Console,
    *,
    force: bool = False,
    remote: Remote | None = None,
) -> tuple[TrainManifest | None, bool]:
    """Train into `output` unless it holds the adapter of this very key.

    Returns:
        The train manifest (None in processes of rank above 0), and whether it was there already.

    Raises:
        RejectedError: it holds that adapter, and today's recipe does not allow it
            (`judgement.judge_again`).
        UsageError: `output` exists and is not an adapter directory, which would be lost; see also
            `train`.
    """
    empty = output.is_dir() and not any(output.iterdir())
    if output.exists() and not empty and not (output / "train_manifest.json").is_file():
        raise UsageError(
            f"--output {output} exists and is not an adapter directory. Choose another path or"
            " remove it."
        )
    manifest = None if force else find_trained(output, training_key(recipe, data))
    if manifest:
        judge_again(manifest, recipe)
        return manifest, True
    from adapterops.train.training import train

    return train(recipe, data, output, console, remote=remote), False
