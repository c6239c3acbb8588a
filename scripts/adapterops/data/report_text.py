"""The data report for people: a terminal, GitHub annotations, a job summary."""

from __future__ import annotations

import collections
import os
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from adapterops.data.codes import CODES
from adapterops.data.validate import Validation
from adapterops.diagnostics import Finding
from adapterops.escape import inline, line, terminal

_SHOWN_PER_CODE = 20
_ANNOTATIONS = 10  # GitHub shows ten of each level a step, and drops the rest without a word
_SUMMARY_ROWS = 200
_LONGEST = 500  # characters of a line; what data brought in may be of any length


def print_report(report: Validation, console: Console) -> None:
    """Findings, at most 20 a code, each code with its remedy; a line a file; the verdict."""
    by_code: dict[str, list[Finding]] = collections.defaultdict(list)
    for finding in report.findings:
        by_code[finding.code].append(finding)
    for code in sorted(by_code, key=lambda code: (by_code[code][0].severity == "hint", code)):
        total = report.document["counts"][code]
        colour = "red" if code.startswith("E") else "yellow"
        console.print(
            f"[bold {colour}]{code}[/] {CODES[code].title} ({total})."
            f" [dim]{terminal(CODES[code].fix)} docs/errors.md#{code.lower()}[/]",
            soft_wrap=True,
        )
        for finding in by_code[code][:_SHOWN_PER_CODE]:
            console.out(
                "  " + line(f"{finding.file}:{finding.line}: {finding.message}", _LONGEST),
                highlight=False,
            )
        if total > _SHOWN_PER_CODE:
            console.print(f"  … and {total - _SHOWN_PER_CODE} more; --output REPORT lists them")
    for described in file_lines(report):
        console.out(line(described, _LONGEST), highlight=False)
    verdict = "[bold green]PASS[/]" if report.passed else "[bold red]FAIL[/]"
    console.print(f"{verdict}: {verdict_line(report)}")


def verdict_line(report: Validation) -> str:
    """`3 errors, 2 hints; 12,345 rows/s`."""
    counts = report.document["counts"]
    errors = sum(count for code, count in counts.items() if code.startswith("E"))
    hints = sum(counts.values()) - errors
    timing = report.document["timing"]
    speed = (
        f" ({timing['checks_s']:.1f} s, {timing['rows_per_second']:,} rows/s)"
        if timing["checks_s"] > 1
        else ""
    )
    return f"{errors} error{'s' * (errors != 1)}, {hints} hint{'s' * (hints != 1)}{speed}"


def file_lines(report: Validation) -> list[str]:
    """One line a file: rows, tokens, tasks, languages, what changed."""
    lines, base = [], report.document["base"]
    for file in report.document["files"]:
        parts = [f"{file['path']}: {file['rows']:,} rows"]
        if file["rejected_rows"]:
            parts.append(f"{file['rejected_rows']:,} unreadable")
        if tokens := file["row_tokens"]:
            about = "about " if "sampled_rows" in tokens else ""
            parts.append(
                f"{about}{tokens['total']:,} tokens (mean {tokens['mean']:g}, longest"
                f" {tokens['max']:,})"
            )
        if file["tags"]:
            parts.append(
                " ".join(f"{tag} {count:,}" for tag, count in list(file["tags"].items())[:6])
            )
        if (change := file["drift"]) and base:
            parts.append(
                f"+{change['added']:,} -{change['removed']:,} ~{change['changed']:,} since"
                f" {base['revision']}"
            )
        lines.append("; ".join(parts))
    return lines


def print_annotations(report: Validation, console: Console) -> None:
    """Workflow commands: the ten errors and hints that tell most; the job summary has them all."""
    for severity in ("error", "hint"):
        for finding in _telling(
            [finding for finding in report.findings if finding.severity == severity]
        ):
            console.out(
                replace(finding, message=line(finding.message, _LONGEST)).annotation(),
                highlight=False,
            )
    for described in file_lines(report):
        console.out(line(described, _LONGEST), highlight=False)
    console.out(f"{'PASS' if report.passed else 'FAIL'}: {verdict_line(report)}", highlight=False)
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(summary(report))


def _telling(findings: list[Finding]) -> list[Finding]:
    """At most ten: in turn one of each code, so that no code hides another."""
    queues: dict[str, collections.deque[Finding]] = collections.defaultdict(collections.deque)
    for finding in findings:
        queues[finding.code].append(finding)
    chosen: list[Finding] = []
    while queues and len(chosen) < _ANNOTATIONS:
        for code in list(queues):
            chosen.append(queues[code].popleft())
            if not queues[code]:
                del queues[code]
    return chosen[:_ANNOTATIONS]


def summary(report: Validation) -> str:
    """The report as Markdown, at most 200 findings (a job summary holds 1 MiB)."""
    lines = [f"## Data: {'PASS' if report.passed else 'FAIL'}", "", f"{verdict_line(report)}.", ""]
    lines += [f"- {inline(described, _LONGEST)}" for described in file_lines(report)]
    if report.findings:
        lines += ["", "| place | code | finding |", "|---|---|---|"]
        lines += [
            f"| {inline(f'{finding.file}:{finding.line}', _LONGEST)} | {finding.code}"
            f" {CODES[finding.code].title} | {inline(finding.message, _LONGEST)} |"
            for finding in report.findings[:_SUMMARY_ROWS]
        ]
        more = sum(report.document["counts"].values()) - min(len(report.findings), _SUMMARY_ROWS)
        if more:
            lines += ["", f"… and {more:,} more in the report."]
    return "\n".join(lines) + "\n"
