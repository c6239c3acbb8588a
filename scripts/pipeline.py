"""All stages in one go on one machine."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

from pathlib import Path

import click

from adapterops.command import OUTPUT_PATH, command, console


@command()
@click.option("--adapter", "name", required=True, help="An adapter of adapters/, by name.")
@click.option(
    "--runs",
    type=OUTPUT_PATH,
    default=Path("runs"),
    show_default=True,
    help="Where runs are kept, by training key.",
)
@click.option(
    "--server-url",
    help="Evaluate through this running vLLM (root, without /v1) instead of starting one.",
)
@click.option(
    "--gateway",
    multiple=True,
    help="A gateway to deploy to; may be given several times. None: stop after publishing.",
)
@click.option(
    "--bucket",
    help=(
        "S3 bucket. Default: $ADAPTER_BUCKET, else the one in the adapter's serving configuration."
    ),
)
@click.option(
    "--checkpoint-bucket",
    help="S3 bucket in which a training's checkpoints lie too, so that another machine can resume.",
)
@click.option(
    "--from",
    "begin",
    type=click.Choice(["validate", "train", "evaluate"]),
    default="validate",
    help="The first stage to run.",
)
@click.option(
    "--until",
    type=click.Choice(["validate", "train", "evaluate", "gate", "publish", "deploy"]),
    default="deploy",
    help="The last one.",
)
def main(
    name: str,
    runs: Path,
    server_url: str | None,
    gateway: tuple[str, ...],
    bucket: str | None,
    checkpoint_bucket: str | None,
    begin: str,
    until: str,
) -> int:
    """Validate, train, evaluate, gate, publish and deploy one adapter.

    A stage whose document for the same inputs exists is not run again; an interrupted run goes on
    where it stopped. Checkpoints in a bucket are signed and asked for as candidates are
    (CANDIDATE_SIGNING_KEY, CANDIDATE_SIGNED_BY), and stay until candidate.py has kept the adapter.

    \b
    Example:
      python scripts/pipeline.py --adapter support-demo --until train
      python scripts/pipeline.py --adapter support-demo --from evaluate --until gate
    """
    from adapterops.pipeline import run_pipeline

    return run_pipeline(
        name,
        runs,
        console,
        server_url=server_url,
        gateways=list(gateway),
        bucket=bucket,
        checkpoint_bucket=checkpoint_bucket,
        begin=begin,
        until=until,
    )


if __name__ == "__main__":
    main()
