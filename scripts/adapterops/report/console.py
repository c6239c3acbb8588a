"""Renderings for a terminal."""

from __future__ import annotations

from typing import Literal

from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table

from adapterops.escape import terminal, visible
from adapterops.report import view
from adapterops.report.collect import Report
from adapterops.report.words import (
    adjudicated_line,
    belief_lines,
    change,
    forgetting_lines,
    gate_name,
    interval,
    margin,
    number,
    remedies,
    speed_line,
    threshold,
)
from adapterops.shapes.eval_results import EvalResults, Metric
from adapterops.shapes.gate_report import GateReport

_COLOURS = {"PASS": "green", "FAIL": "red", "ERROR": "red", "INCONCLUSIVE": "yellow"}


def print_metrics(results: EvalResults, console: Console) -> None:
    """Metrics of every side, and how far those who judged answers are to be believed."""
    console.print(metrics_table(results))
    for line in [*belief_lines(results), speed_line(results)]:
        _say(line, console)


def metrics_table(results: EvalResults) -> Table:
    """Metrics of adapter, production and base model side by side."""
    sides = [
        ("adapter", results["metrics"]),
        ("production", results["production_metrics"]),
        ("base model", results["base_metrics"]),
    ]
    shown = [(title, metrics) for title, metrics in sides if metrics is not None]
    table = Table("metric", box=box.SIMPLE_HEAD)
    for header in (*(title for title, _ in shown), "n"):
        table.add_column(header, justify="right")
    for metric, measured in results["metrics"].items():
        table.add_row(
            metric,
            *(number(_figure(metrics.get(metric), "value")) for _, metrics in shown),
            str(measured["n"]),
        )
        if "floor" in measured:
            table.add_row(
                "  shuffled references",
                *(number(_figure(metrics.get(metric), "floor")) for _, metrics in shown),
                "",
                style="dim",
            )
    return table


def _figure(metric: Metric | None, name: Literal["value", "floor"]) -> float | None:
    return metric.get(name) if metric else None


def gate_table(report: GateReport, *, intervals: bool = True) -> Table:
    """Every gate with its threshold, values, interval and verdict, in words and colour."""
    base = {(gate_name(gate), gate["relation"]): gate for gate in report["base"]["gates"]}
    table = Table("gate", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    for header in ("threshold", "base", "adapter", *(["interval"] if intervals else []), "n"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for gate in report["gates"]:
        other = base.get((gate_name(gate), gate["relation"]))
        table.add_row(
            gate_name(gate),
            threshold(gate),
            number(other["value"]) if other else "-",
            number(gate["value"]),
            *([interval(gate["interval"])] if intervals else []),
            str(gate["n"]) if gate["n"] else "-",
            f"[{_COLOURS[gate['verdict']]}]{gate['verdict']}[/]",
        )
    return table


def gates_that_fit(report: GateReport, console: Console) -> Table:
    """The table of gates; without intervals where they would cut every other number."""
    table = gate_table(report)
    needed = Measurement.get(console, console.options.update_width(500), table).maximum
    return table if needed <= console.width else gate_table(report, intervals=False)


def comparison_table(report: GateReport) -> Table:
    """Every metric against production, in pairs."""
    table = Table("against production", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("production", "adapter", "change", "margin", "pairs"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in (row for row in report["comparisons"] if row["against"] == "production"):
        verdict = (
            f"[{_COLOURS[row['verdict']]}]{row['verdict']}[/]"
            if row["verdict"]
            else row["superiority"]
        )
        table.add_row(
            gate_name(row),
            number(row["reference"]),
            number(row["candidate"]),
            change(row),
            margin(row),
            str(row["n"]),
            verdict,
        )
    return table


def print_verdict(report: GateReport, console: Console, run: Report | None = None) -> None:
    """The verdict, its reason and what to do now; then gates and the comparison with production.

    Args:
        report: `gate_report.json`.
        console: where to print.
        run: what else is known of the run that was judged.
    """
    run = run or Report(report)
    console.print(
        f"[bold {_COLOURS[report['verdict']]}]{report['verdict']}[/]: {terminal(report['reason'])}",
        soft_wrap=True,
    )
    if report["former_verdicts"]:
        console.print(
            f"Judged {len(report['former_verdicts']) + 1} times; before:"
            f" {', '.join(report['former_verdicts'])}."
        )
    _say(view.by_main(run), console)
    _say(f"Now: {view.next_step(run)}", console)
    for metric, to_do in remedies(report):
        _say(f"  {metric}: {to_do}", console)
    console.print(gates_that_fit(report, console))
    if report["production"]["digest"]:
        console.print(comparison_table(report))
    _say(adjudicated_line(report), console)
    if count := len(report["adjudicated"]["open"]):
        _say(
            f"{count} answers count against the candidate by the refusal detector's word;"
            " scripts/adjudicate.py lists them.",
            console,
        )
    for line in forgetting_lines(report):
        _say(f"lost: {line}", console)
    for warning in report["warnings"]:
        console.print(f"[yellow]warning[/]: {terminal(warning)}", soft_wrap=True)
    if report["base"]["gates"]:
        console.print(f"The base model alone: {report['base']['verdict']}.")


def print_report(report: Report, console: Console) -> None:
    """The whole report in the order of the comment; of changed answers only which and how."""
    print_verdict(report.gate, console, report)
    if report.results:
        print_metrics(report.results, console)
    for line in view.data_lines(report):
        _say(f"data: {line}", console)
    for title, changed in zip(("worse", "better"), view.changes(report), strict=True):
        for item in changed:
            _say(
                f"{title}: {item.id} ({item.delta:+.2f}; {item.before_mark} → {item.after_mark})",
                console,
            )
    training = view.training_line(report)
    merging = view.merging(report).replace("`", "")
    for line in [
        f"training: {training}" if training else "",
        *view.cost_lines(report),
        f"merging: {merging}",
    ]:
        _say(line, console)


def _say(line: str, console: Console) -> None:
    if line:
        console.print(visible(line), soft_wrap=True, markup=False, emoji=False)


def answers(
    question: str, base_model: str, base_answer: str, adapter: str, adapter_answer: str
) -> RenderableType:
    """One question and both answers side by side."""
    panels = [
        Panel(terminal(text) or "[dim](empty)[/]", title=terminal(name), width=62)
        for name, text in ((base_model, base_answer), (adapter, adapter_answer))
    ]
    return Group(Panel(terminal(question), title="question", width=126), Columns(panels))
