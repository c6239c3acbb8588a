"""Judge an evaluation."""

from __future__ import annotations

from pathlib import Path

import click

from adapterops.command import EXISTING_FILE, OUTPUT_PATH, command, console


@command()
@click.option("--results", type=EXISTING_FILE, required=True, help="Results document that evaluate.py wrote.")
@click.option("--gates", type=EXISTING_FILE, required=True, help="Gate file: thresholds by metric.")
@click.option("--output", type=OUTPUT_PATH, help="Gate report to write. Default: gate_report.json beside RESULTS.")
@click.option("--adapter", "adapter_name", help="Adapter name to record in the report.")
def main(results: Path, gates: Path, output: Path | None, adapter_name: str | None) -> int:
    """Judge an evaluation: exit 0 if every gate is passed, 1 if not.

    A metric that is missing or not a number is an error, never a pass.

    \b
    Example:
      python scripts/quality_gate.py --results results/eval_support.json --gates configs/quality_gate.yaml
    """
    from adapterops.gate.judge import judge
    from adapterops.report.console import gate_table

    report = judge(results, gates, output or results.with_name("gate_report.json"), adapter_name=adapter_name)
    console.print(gate_table(report))
    colour = "green" if report["verdict"] == "PASS" else "red"
    console.print(f"[bold {colour}]{report['verdict']}[/]: {report['reason']}")
    return 0 if report["verdict"] == "PASS" else 1


if __name__ == "__main__":
    main()
