"""The plan for people: a terminal, and Markdown for the job summary and the pull request."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from adapterops import escape
from adapterops.escape import inline


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """What is affected, what is done about it, and the verdict."""
    if plan["adapters"]:
        table = Table("adapter", "changes", "training key", "known", "action", "GPU minutes", "cost", box=None, pad_edge=False)
        for row in plan["adapters"]:
            table.add_row(*_cells(row))
        console.print(table)
    for row in plan["adapters"]:
        for hint in row["hints"]:
            console.print(escape.visible(f"hint: {row['name']}: {hint}"), markup=False, soft_wrap=True)
    for change in plan["rules"]:
        console.out(escape.line(f"rule {change['file']}: {change['setting']}: {change['old']} → {change['new']}"), highlight=False)
    for problem in plan["problems"]:
        console.print(escape.visible(problem), markup=False, soft_wrap=True)
    colour = "green" if plan["verdict"] == "PROCEED" else "red"
    console.print(f"[bold {colour}]{plan['verdict']}[/]: ", end="")
    console.print(escape.visible(plan["reason"]), markup=False, soft_wrap=True)


def plan_markdown(plan: dict[str, Any]) -> str:
    """Rules that change first: old → new; then what is refused and how to mend it; then what is computed."""
    lines = []
    if plan["rules"]:
        lines += [
            "### ⚠️ This pull request changes the rules that it is judged by",
            "",
            "| file | setting | old → new | |",
            "|---|---|---|---|",
        ]
        for change in plan["rules"]:
            effect = {True: "**lower bar**", False: "higher bar", None: ""}[change["weaker"]]
            old, new = (inline(change[side]) if change[side] is not None else "*none*" for side in ("old", "new"))
            lines.append(f"| {inline(change['file'])} | {inline(change['setting'])} | {old} → {new} | {effect} |")
        lines.append("")
    if plan["problems"]:
        lines += ["### Refused", "", *(f"- {inline(problem)}" for problem in plan["problems"]), ""]
    else:
        lines += [f"**Plan:** {inline(plan['reason'])}", ""]
    if plan["changes"]["code"]:
        count = len(plan["changes"]["code"])
        lines += [f"Code changes ({count} files): CPU tests, no GPU. The scripts that judge are those of the default branch.", ""]
    if plan["adapters"]:
        lines += ["| adapter | changes | training key | known | action | GPU minutes | cost |", "|---|---|---|---|---|---|---|"]
        lines += ["| " + " | ".join(inline(cell) for cell in _cells(row)) + " |" for row in plan["adapters"]]
        lines += ["", *sorted({f"{inline(row['basis'])}." for row in plan["adapters"] if row["minutes"] is None})]
        lines += [f"- Hint for {inline(row['name'])}: {inline(hint)}" for row in plan["adapters"] for hint in row["hints"]]
    return "\n".join(lines).rstrip() + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["name"],
        row["change"],
        (row["training_key"] or "-")[:12],
        "released" if row["released"] else row["verdict"] or ("trained" if row["digest"] else "-"),
        row["action"],
        "unknown" if row["minutes"] is None else f"{row['minutes']:.0f}",
        "unknown" if row["usd"] is None else f"${row['usd']:.2f}",
    ]
