"""Look back on the week."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

import datetime
from pathlib import Path

import click

from adapterops.command import EXISTING_DIRECTORY, OUTPUT_PATH, command, console


@command()
@click.option("--bucket", help="S3 bucket. Default: $ADAPTER_BUCKET.")
@click.option(
    "--days",
    type=click.IntRange(1, 366),
    default=7,
    show_default=True,
    help="How long the week was.",
)
@click.option(
    "--until",
    type=click.DateTime(["%Y-%m-%d"]),
    help="The day after its last one, UTC. Default: now.",
)
@click.option(
    "--runs",
    type=EXISTING_DIRECTORY,
    help="Runs of the week: gate reports and train manifests at any depth.",
)
@click.option(
    "--prometheus", help="Root of a Prometheus server, for requests, errors, latency and thumbs."
)
@click.option(
    "--usd-per-gpu-hour",
    type=click.FloatRange(0),
    help="Cost of training. Default: by device, configs/pricing.yaml.",
)
@click.option(
    "--output",
    type=OUTPUT_PATH,
    help="Write FILE.md and FILE.html beside each other instead of printing Markdown.",
)
def main(
    bucket: str | None,
    days: int,
    until: datetime.datetime | None,
    runs: Path | None,
    prometheus: str | None,
    usd_per_gpu_hour: float | None,
    output: Path | None,
) -> None:
    """Look back on the week: deployments, lead time, change-failure rate, time to restore, gate
    failures, cost, data, open risks.

    \b
    Example:
      python scripts/retrospective.py --bucket qlora-adapters --runs runs \\
          --prometheus http://127.0.0.1:9090 --output week
    """
    from adapterops.documents import write_bytes
    from adapterops.retrospective.render import markdown, page
    from adapterops.retrospective.week import collect
    from adapterops.store.objects import open_store

    end = until.replace(tzinfo=datetime.UTC) if until else datetime.datetime.now(datetime.UTC)
    sections = collect(
        open_store(bucket),
        until=end,
        days=days,
        runs=runs,
        prometheus=prometheus,
        usd_per_gpu_hour=usd_per_gpu_hour,
    )
    title = f"Adapters, {end - datetime.timedelta(days=days):%Y-%m-%d} to {end:%Y-%m-%d}"
    if output is None:
        click.echo(markdown(title, sections), nl=False)
        return
    for suffix, text in ((".md", markdown(title, sections)), (".html", page(title, sections))):
        write_bytes(output.with_suffix(suffix), text.encode())
        console.print(str(output.with_suffix(suffix)), soft_wrap=True)


if __name__ == "__main__":
    main()
