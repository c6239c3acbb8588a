"""Renderings for a terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

_COLOURS = {"PASS": "green", "FAIL": "red", "ERROR": "red", "INCONCLUSIVE": "yellow"}


def number(value: float | None) -> str:
    """Four significant digits below a thousand, none of them lost above; `-` where nothing was measured."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def metrics_table(results: dict[str, Any]) -> Table:
    """Metrics of adapter and base model side by side."""
    table = Table("metric", box=box.SIMPLE_HEAD)
    for header in ("adapter", "base model", "n"):
        table.add_column(header, justify="right")
    for metric, measured in results["metrics"].items():
        base = results["base_metrics"].get(metric, {})
        table.add_row(metric, number(measured["value"]), number(base.get("value")), str(measured["n"]))
    return table


def gate_table(report: dict[str, Any]) -> Table:
    """Every gate with its threshold, both values and the verdict, in words and colour."""
    base = {(gate["metric"], gate["relation"]): gate for gate in report["base"]["gates"]}
    table = Table("gate", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for header in ("threshold", "base model", "adapter", "n"):
        table.add_column(header, justify="right")
    table.add_column("verdict")
    for gate in report["gates"]:
        sign = "≥" if gate["relation"] == "min" else "≤"
        other = base.get((gate["metric"], gate["relation"]))
        table.add_row(
            gate["metric"],
            f"{sign} {number(gate['threshold'])}",
            number(other["value"]) if other else "-",
            number(gate["value"]),
            str(gate["n"]) if gate["n"] else "-",
            f"[{_COLOURS[gate['verdict']]}]{gate['verdict']}[/]",
        )
    return table


def answers(question: str, base_model: str, base_answer: str, adapter: str, adapter_answer: str) -> RenderableType:
    """One question and both answers side by side."""
    panels = [
        Panel(escape(text) or "[dim](empty)[/]", title=escape(name), width=62)
        for name, text in ((base_model, base_answer), (adapter, adapter_answer))
    ]
    return Group(Panel(escape(question), title="question", width=126), Columns(panels))
