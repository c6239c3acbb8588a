"""Findings in files: one shape, printed for people or as GitHub annotations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adapterops.escape import workflow_command


@dataclass(frozen=True, order=True)
class Finding:
    """One problem at one place.

    Args:
        file: path as the user gave it.
        line: 1-based.
        code: stable code of `docs/errors.md`.
        message: fact and expectation.
        severity: an `error` blocks, a `hint` advises.
        row_id: the row's own id, if it has one.
    """

    file: str
    line: int
    code: str
    message: str
    severity: Literal["error", "hint"] = "error"
    row_id: str | None = None

    def text(self) -> str:
        """`file:line: code message`, for people and editors."""
        return (
            f"{self.file}:{self.line}: {self.code} {self.message} See"
            f" docs/errors.md#{self.code.lower()}."
        )

    def annotation(self) -> str:
        """A GitHub workflow command."""
        level = "error" if self.severity == "error" else "notice"
        return workflow_command(
            level, self.message, file=self.file, line=self.line, title=self.code
        )
