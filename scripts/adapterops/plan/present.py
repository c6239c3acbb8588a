"""The plan for people: a terminal, and Markdown for the job summary and the pull request."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console
from rich.table import Table

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_MARKUP = str.maketrans({character: f"&#{ord(character)};" for character in "&\\`*_{}[]<>#|~!@"})


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """What is affected, what is done about it, and the verdict."""
    if plan["adapters"]:
        table = Table("adapter", "changes", "training key", "known", "action", "GPU minutes", "cost", box=None, pad_edge=False)
        for row in plan["adapters"]:
            table.add_row(*_cells(row))
        console.print(table)
    for row in plan["adapters"]:
        for hint in row["hints"]:
            console.print(f"hint: {row['name']}: {hint}", markup=False, soft_wrap=True)
        for line in row.get("power", []):
            console.print(f"power: {row['name']}: {line}", markup=False, soft_wrap=True)
    for change in plan["rules"]:
        console.out(f"rule {change['file']}: {change['setting']}: {change['old']} → {change['new']}", highlight=False)
    for problem in plan["problems"]:
        console.print(problem, markup=False, soft_wrap=True)
    colour = "green" if plan["verdict"] == "PROCEED" else "red"
    console.print(f"[bold {colour}]{plan['verdict']}[/]: ", end="")
    console.print(plan["reason"], markup=False, soft_wrap=True)


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
            old, new = (text(change[side]) if change[side] is not None else "*none*" for side in ("old", "new"))
            lines.append(f"| {text(change['file'])} | {text(change['setting'])} | {old} → {new} | {effect} |")
        lines.append("")
    if plan["problems"]:
        lines += ["### Refused", "", *(f"- {text(problem)}" for problem in plan["problems"]), ""]
    else:
        lines += [f"**Plan:** {text(plan['reason'])}", ""]
    if plan["changes"]["code"]:
        count = len(plan["changes"]["code"])
        lines += [f"Code changes ({count} files): CPU tests, no GPU. The scripts that judge are those of the default branch.", ""]
    if plan["adapters"]:
        lines += ["| adapter | changes | training key | known | action | GPU minutes | cost |", "|---|---|---|---|---|---|---|"]
        lines += ["| " + " | ".join(text(cell) for cell in _cells(row)) + " |" for row in plan["adapters"]]
        lines += ["", *sorted({f"{text(row['basis'])}." for row in plan["adapters"] if row["minutes"] is None})]
        lines += [f"- Hint for {text(row['name'])}: {text(hint)}" for row in plan["adapters"] for hint in row["hints"]]
        for row in plan["adapters"]:
            if row.get("power"):
                lines += ["", f"<details><summary>What the gates of {text(row['name'])} can decide on its rows</summary>", ""]
                lines += [*(f"- {text(line)}" for line in row["power"]), "", "</details>"]
    return "\n".join(lines).rstrip() + "\n"


def text(value: Any) -> str:
    """Text that cannot become markup, a link, a mention or a new cell: what a pull request brings is not trusted."""
    return " ".join(_UNSEEN.sub(" ", str(value)).translate(_MARKUP).split())


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
