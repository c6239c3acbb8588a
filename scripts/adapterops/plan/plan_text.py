"""The plan for people: a terminal, and Markdown for the job summary and the pull request."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from adapterops import escape
from adapterops.escape import inline
from adapterops.shapes.plan import ChangedRule, Plan, PlannedAdapter

_CELL = 120  # characters of a setting and its two values, as escaped, beyond which they are folded
_COLUMNS = ("adapter", "changes", "training key", "known", "action", "GPU minutes", "cost")
_RULES_LONGEST = 30_000  # characters of a comment's 65,536 that changed rules may take


def print_plan(plan: Plan, console: Console) -> None:
    """What is affected, what is done about it, and the verdict."""
    if plan["adapters"]:
        table = Table(*_COLUMNS, box=None, pad_edge=False)
        for row in plan["adapters"]:
            table.add_row(*_cells(row))
        console.print(table)
    for row in plan["adapters"]:
        said = [f"hint: {row['name']}: {hint}" for hint in row["hints"]]
        said += [f"power: {row['name']}: {line}" for line in row.get("power", [])]
        for line in said:
            console.print(escape.visible(line), markup=False, soft_wrap=True)
    for change in by_weight(plan["rules"]):
        rule = f"rule {change['file']}: {change['setting']}: {change['old']} → {change['new']}"
        console.out(escape.line(rule), highlight=False)
    for problem in plan["problems"]:
        console.print(escape.visible(problem), markup=False, soft_wrap=True)
    colour = "green" if plan["verdict"] == "PROCEED" else "red"
    console.print(f"[bold {colour}]{plan['verdict']}[/]: ", end="")
    console.print(escape.visible(plan["reason"]), markup=False, soft_wrap=True)


def plan_markdown(plan: Plan) -> str:
    """Rules that change, old → new; what is refused and how to mend it; what is computed."""
    lines = _rules(by_weight(plan["rules"])) if plan["rules"] else []
    if plan["problems"]:
        lines += ["### Refused", "", *(f"- {inline(problem)}" for problem in plan["problems"]), ""]
    else:
        lines += [f"**Plan:** {inline(plan['reason'])}", ""]
    if plan["changes"]["code"]:
        count = len(plan["changes"]["code"])
        lines.append(
            f"Code changes ({count} files): CPU tests, no GPU."
            " The scripts that judge are those of the default branch."
        )
        lines.append("")
    if plan["adapters"]:
        lines += _adapters(plan["adapters"])
    return "\n".join(lines).rstrip() + "\n"


def _adapters(rows: list[PlannedAdapter]) -> list[str]:
    """A table; why a cost is unknown; hints; folded, what the gates can decide."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    lines += [f"| {' | '.join(map(inline, _cells(row)))} |" for row in rows]
    lines += ["", *sorted({f"{inline(row['basis'])}." for row in rows if row["minutes"] is None})]
    for row in rows:
        name = inline(row["name"])
        lines += [f"- Hint for {name}: {inline(hint)}" for hint in row["hints"]]
    for row in rows:
        if power := row.get("power"):
            title = f"What the gates of {inline(row['name'])} can decide on its rows"
            lines += ["", f"<details><summary>{title}</summary>", ""]
            lines += [*(f"- {inline(line)}" for line in power), "", "</details>"]
    return lines


def by_weight(rules: list[ChangedRule]) -> list[ChangedRule]:
    """Lower bars first, so that none is left out for others; higher ones last."""
    return sorted(rules, key=lambda change: (True, None, False).index(change["weaker"]))


def _rules(rules: list[ChangedRule]) -> list[str]:
    """A table, and long values whole below it; what does not fit is counted at the top."""
    rows: list[str] = []
    folded: list[str] = []
    left: list[ChangedRule] = []
    room = _RULES_LONGEST
    for change in rules:
        row, below = _rule(change, len(folded) + 1)
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
        opening.append(
            f"**{len(left)} of {len(rules)} changes do not fit here, {lower} of them a lower bar.**"
            " `plan.json` among the run's artifacts and the log of the job `plan` have them all;"
            " do not approve before you have read them."
        )
        opening.append("")
    return [*opening, "| file | setting | old → new | |", "|---|---|---|---|", *rows, "", *folded]


def _rule(change: ChangedRule, number: int) -> tuple[str, list[str]]:
    """A row of the table and, where its values are too long for a cell, what is folded below."""
    effect = {True: "**lower bar**", False: "higher bar", None: ""}[change["weaker"]]
    old, new = (
        "*none*" if value is None else inline(value, None)
        for value in (change["old"], change["new"])
    )
    file, setting = inline(change["file"]), inline(change["setting"], None)
    if len(old) + len(new) + len(setting) <= _CELL:
        return f"| {file} | {setting} | {old} → {new} | {effect} |", []
    short = setting if len(setting) <= _CELL else "see below"
    below = [
        f"<details><summary>{number}. {file}: {setting}</summary>",
        "",
        f"old: {old}",
        "",
        f"new: {new}",
        "",
        "</details>",
        "",
    ]
    return f"| {file} | {short} | see {number} below | {effect} |", below


def _cells(row: PlannedAdapter) -> list[str]:
    return [
        row["name"],
        row["change"],
        (row["training_key"] or "-")[:12],
        "released" if row["released"] else row["verdict"] or ("trained" if row["digest"] else "-"),
        row["action"],
        "unknown" if row["minutes"] is None else f"{row['minutes']:.0f}",
        "unknown" if row["usd"] is None else f"${row['usd']:.2f}",
    ]
