"""The part of an adapter's card that only its evaluation knows: what it lost of what the base model
could.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapterops.report.words import change, gate_name, lost, number
from adapterops.specs.metric_catalogue import METRICS

_HEADING = "\n## What it lost of the base model\n"


def add_losses(card: Path, gate_report: dict[str, Any]) -> None:
    """Write the section into a model card, in place of the one of an earlier verdict; nothing where
    there is no card.
    """
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8").partition(_HEADING)[0]
    card.write_text(text + losses(gate_report), encoding="utf-8")


def losses(gate_report: dict[str, Any]) -> str:
    """The section as Markdown: each general metric of base model and adapter, their difference with
    its interval, and on how many.
    """
    rows = lost(gate_report)
    if not rows:
        return (
            f"{_HEADING}\nNot measured: its evaluation asked no general rows and no general"
            " texts.\n"
        )
    lines = [
        "| metric | base model | adapter | difference [interval] | n |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        unit = "texts" if METRICS[row["metric"]].kind == "loss" else "rows"
        values = f"{number(row['reference'])} | {number(row['candidate'])} | {change(row)}"
        lines.append(f"| {gate_name(row)} | {values} | {row['n']} {unit} |")
    confidence = f"Each bound of an interval is one-sided at {rows[0]['confidence']:g}."
    return (
        f"{_HEADING}\n"
        + "\n".join(lines)
        + f"\n\n`general_loss` is in nats per token. {confidence}\n"
    )
