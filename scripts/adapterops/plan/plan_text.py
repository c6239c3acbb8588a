"""The plan for people: a terminal, and Markdown for the job summary and the pull request."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from adapterops import escape
from adapterops.escape import inline

_CELL = 120  # characters of a setting and its two values, as escaped, beyond which they are folded
_RULES_LONGEST = 30_000  # characters of a comment's 65,536 that changed rules may take


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """What is affected, what is done about it, and the verdict."""
    if plan["adapters"]:
        table = Table(
            "adapter",
            "changes",
            "training key",
            "known",
            "action",
            "GPU minutes",
            "cost",
            box=None,
            pad_edge=False,
        )
        for row in plan["adapters"]:
            table.add_row(*_cells(row))
        console.print(table)
    for row in plan["adapters"]:
        for hint in row["hints"]:
            console.print(
                escape.visible(f"hint: {row['name']}: {hint}"), markup=False, soft_wrap=True
            )
        for line in row.get("power", []):
            console.print(
                escape.visible(f"power: {row['name']}: {line}"), markup=False, soft_wrap=True
            )
    for change in by_weight(plan["rules"]):
        console.out(
            escape.line(
                f"rule {change['file']}: {change['setting']}: {change['old']} → {change['new']}"
            ),
            highlight=False,
        )
    for problem in plan["problems"]:
        console.print(escape.visible(problem), markup=False, soft_wrap=True)
    colour = "green" if plan["verdict"] == "PROCEED" else "red"
    console.print(f"[bold {colour}]{plan['verdict']}[/]: ", end="")
    console.print(escape.visible(plan["reason"]), markup=False, soft_wrap=True)


def plan_markdown(plan: dict[str, Any]) -> str:
    """Rules that change first: old → new; then what is refused and how to mend it; then what is
    computed.
    """
    lines = _rules(by_weight(plan["rules"])) if plan["rules"] else []
    if plan["problems"]:
        lines += ["### Refused", "", *(f"- {inline(problem)}" for problem in plan["problems"]), ""]
    else:
        lines += [f"**Plan:** {inline(plan['reason'])}", ""]
    if plan["changes"]["code"]:
        count = len(plan["changes"]["code"])
        lines += [
            (
                f"Code changes ({count} files): CPU tests, no GPU. The scripts that judge are those"
                " of the default branch."
            ),
            "",
        ]
    if plan["adapters"]:
        lines += [
            "| adapter | changes | training key | known | action | GPU minutes | cost |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            "| " + " | ".join(inline(cell) for cell in _cells(row)) + " |"
            for row in plan["adapters"]
        ]
        lines += [
            "",
            *sorted(
                {f"{inline(row['basis'])}." for row in plan["adapters"] if row["minutes"] is None}
            ),
        ]
        lines += [
            f"- Hint for {inline(row['name'])}: {inline(hint)}"
            for row in plan["adapters"]
            for hint in row["hints"]
        ]
        for row in plan["adapters"]:
            if row.get("power"):
                lines += [
                    "",
                    (
                        f"<details><summary>What the gates of {inline(row['name'])} can decide on"
                        " its rows</summary>"
                    ),
                    "",
                ]
                lines += [*(f"- {inline(line)}" for line in row["power"]), "", "</details>"]
    return "\n".join(lines).rstrip() + "\n"


def by_weight(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lower bars first, then what cannot be told, then higher ones: no lower bar is left out for
    others.
    """
    return sorted(rules, key=lambda change: (True, None, False).index(change["weaker"]))


def _rules(rules: list[dict[str, Any]]) -> list[str]:
    """A table; values that are too long for a cell stand whole below it, folded. What does not fit
    is counted at the top.
    """
    rows: list[str] = []
    folded: list[str] = []
    left: list[dict[str, Any]] = []
    room = _RULES_LONGEST
    for change in rules:
        effect = {True: "**lower bar**", False: "higher bar", None: ""}[change["weaker"]]
        old, new = (
            inline(change[side], None) if change[side] is not None else "*none*"
            for side in ("old", "new")
        )
        file, setting = inline(change["file"]), inline(change["setting"], None)
        if len(old) + len(new) + len(setting) <= _CELL:
            row, below = f"| {file} | {setting} | {old} → {new} | {effect} |", []
        else:
            name = f"{file}: {setting}"
            number = len(folded) + 1
            row = (
                f"| {file} | {setting if len(setting) <= _CELL else 'see below'} | see {number}"
                f" below | {effect} |"
            )
            below = [
                f"<details><summary>{number}. {name}</summary>",
                "",
                f"old: {old}",
                "",
                f"new: {new}",
                "",
                "</details>",
                "",
            ]
        size = len(row) + sum(map(len, below)) + 10
        if size > room:
            left.append(change)
            continue
        room -= size
        rows.append(row)
        if below:
            folded.append("\n".join(below))
    opening = ["### ⚠️ This pull request changes the rules that it is judged by", ""]
    if left:
        lower = sum(change["weaker"] is True for change in left)
        opening += [
            (
                f"**{len(left)} of {len(rules)} changes do not fit here, {lower} of them a lower"
                " bar.** `plan.json` among the run's artifacts and the log of the job `plan` have"
                " them all; do not approve before you have read them."
            ),
            "",
        ]
    return [*opening, "| file | setting | old → new | |", "|---|---|---|---|", *rows, "", *folded]


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
