"""The part of an adapter's card that its evaluation knows: what it lost of the base model."""

from __future__ import annotations

from pathlib import Path

from adapterops.report.words import change, gate_name, lost, number
from adapterops.shapes.gate_report import GateReport
from adapterops.specs.metric_catalogue import METRICS

_HEADING = "\n## What it lost of the base model\n"


def add_losses(card: Path, gate_report: GateReport) -> None:
    """Write the section into a model card, if there is one, in place of an earlier verdict's."""
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8").partition(_HEADING)[0]
    card.write_text(text + losses(gate_report), encoding="utf-8")


def losses(gate_report: GateReport) -> str:
    """The section as Markdown: each general metric of both, and the difference."""
    rows = lost(gate_report)
    if not rows:
        said = "Not measured: its evaluation asked no general rows and no general texts."
        return f"{_HEADING}\n{said}\n"
    lines = [
        "| metric | base model | adapter | difference [interval] | n |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        unit = "texts" if METRICS[row["metric"]].kind == "loss" else "rows"
        values = f"{number(row['reference'])} | {number(row['candidate'])} | {change(row)}"
        lines.append(f"| {gate_name(row)} | {values} | {row['n']} {unit} |")
    confidence = f"Each bound of an interval is one-sided at {rows[0]['confidence']:g}."
    note = f"`general_loss` is in nats per token. {confidence}"
    return "\n".join([_HEADING, *lines, "", note, ""])
