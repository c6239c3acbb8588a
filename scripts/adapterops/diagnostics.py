"""Findings in files: one shape, printed for people or as GitHub annotations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
        return f"{self.file}:{self.line}: {self.code} {self.message} See docs/errors.md#{self.code.lower()}."

    def annotation(self) -> str:
        """A GitHub workflow command; `%`, carriage return and line feed must be escaped in it."""
        level = "error" if self.severity == "error" else "notice"
        where = escape_command(self.file).replace(":", "%3A").replace(",", "%2C")
        return f"::{level} file={where},line={self.line},title={self.code}::{escape_command(self.message)}"


def escape_command(text: str) -> str:
    """A text for a GitHub workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
