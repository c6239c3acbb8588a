"""Check annotations: a missed gate at its line of the gate file, a regression at its row."""

from __future__ import annotations

import re

from adapterops.diagnostics import Finding
from adapterops.report import view
from adapterops.report.collect import Report
from adapterops.report.words import gate_name, missed_rows, remedies
from adapterops.schemas import ROOT

_SHOWN = 10  # GitHub shows ten errors and ten notices of a step


def check_annotations(report: Report) -> list[str]:
    """GitHub workflow commands, the gravest first."""
    gate = report.gate
    path = gate["gate_config"]["path"]
    missed = [Finding(path, 1, gate["verdict"], error) for error in gate["errors"]]
    to_do = dict(remedies(gate))
    for row in missed_rows(gate):
        message = f"{row['reason']} {to_do.get(gate_name(row), '')}".rstrip()
        missed.append(Finding(path, _line(path, row["metric"]), str(row["verdict"]), message))
    worst, _ = view.changes(report)
    regressions = [
        Finding(
            gate["evaluation"]["path"],
            item.line,
            "regression",
            f"{item.before_mark} → {item.after_mark}: {item.after[:300]}",
            "hint",
            item.id,
        )
        for item in worst
        # a general row has a file of its own, which no pull request for an adapter changes
        if not item.general
    ]
    return [finding.annotation() for finding in [*missed[:_SHOWN], *regressions[:_SHOWN]]]


def _line(path: str, metric: str) -> int:
    """Where a gate file names the metric; 1 where the file is not here."""
    file = ROOT / path
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next(
        (number for number, line in enumerate(lines, 1) if re.match(rf"\s+{metric}:", line)), 1
    )
