"""Merge an adapter into its base model."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

from pathlib import Path

import click

from adapterops.command import EXISTING_DIRECTORY, OUTPUT_PATH, command, console


@command()
@click.option(
    "--adapter",
    type=EXISTING_DIRECTORY,
    required=True,
    help="Adapter directory that train_qlora.py wrote.",
)
@click.option(
    "--output",
    type=OUTPUT_PATH,
    required=True,
    help="Directory of the merged model to make or replace.",
)
@click.option(
    "--tolerance",
    type=float,
    default=0.05,
    show_default=True,
    help="Largest mean difference of log-probabilities, in nats.",
)
def main(adapter: Path, output: Path, tolerance: float) -> None:
    """Merge an adapter into bf16 base weights, for engines that load no adapters; vLLM serves them
    apart, and should.

    The merged weights are rounded to bf16, so the result is compared with adapter on base, in
    float32, before anything is written: exit code 1 if their log-probabilities differ by more than
    the tolerance. It takes four bytes of memory a parameter.

    \b
    Example:
      python scripts/merge_adapter.py --adapter models/support --output models/support-merged
    """
    from adapterops.train.merge import merge

    found = merge(adapter, output, tolerance)
    console.print(
        f"{output}: merged in bf16; log-probabilities differ by {found.mean:.4f} nats on average,"
        f" {found.largest:.4f} at most, over {found.tokens} tokens; {found.agreement:.1%} of the"
        " likeliest tokens are the same",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
