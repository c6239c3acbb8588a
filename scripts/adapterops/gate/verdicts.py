"""What verdicts mean to each other: which is worse, and which keeps an adapter back."""

from __future__ import annotations

from collections.abc import Iterable

from adapterops.shapes.gate_report import Comparison, Gate, Verdict

SEVERITY: tuple[Verdict, ...] = ("PASS", "INCONCLUSIVE", "FAIL", "ERROR")


def worst(verdicts: Iterable[Verdict], default: Verdict) -> Verdict:
    """The worst verdict of the gates, which is that of the whole; `default` where there is none."""
    return max(verdicts, key=SEVERITY.index, default=default)


def is_missed(row: Gate | Comparison) -> bool:
    """Whether a gate or a comparison keeps the verdict of the whole from being a PASS."""
    undecided = row["verdict"] == "INCONCLUSIVE"
    return row["verdict"] in ("FAIL", "ERROR") or (undecided and row["blocking"])
