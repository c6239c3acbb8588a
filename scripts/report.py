"""Render the report of a run."""

from __future__ import annotations

from pathlib import Path

import click

from adapterops.command import EXISTING_DIRECTORY, OUTPUT_PATH, command, console


@command()
@click.option("--run", type=EXISTING_DIRECTORY, required=True, help="Run directory of pipeline.py: runs/<adapter>/<key>.")
@click.option("--format", "style", type=click.Choice(["html", "console"]), default="html", show_default=True)
@click.option("--output", type=OUTPUT_PATH, help="HTML file to write. Default: report.html in the run directory.")
def main(run: Path, style: str, output: Path | None) -> None:
    """Render the report of a run from its documents; nothing is judged anew.

    \b
    Example:
      python scripts/report.py --run runs/support-demo/1a2b3c4d5e6f
    """
    from adapterops.documents import write_bytes
    from adapterops.report.collect import collect
    from adapterops.report.console import gate_table, metrics_table
    from adapterops.report.html import page

    report = collect(run)
    if style == "console":
        console.print(gate_table(report.gate), metrics_table(report.results))
        console.print(f"{report.gate['verdict']}: {report.gate['reason']}")
        return
    target = output or run / "report.html"
    write_bytes(target, page(report).encode())
    console.print(str(target))


if __name__ == "__main__":
    main()
