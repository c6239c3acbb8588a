"""What a step tells GitHub: outputs, environment, annotations, summary. Elsewhere it is silent."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from adapterops.command import to_runner
from adapterops.escape import workflow_command


def set_outputs(**values: str) -> None:
    """Outputs of the step."""
    _append("GITHUB_OUTPUT", values)


def set_environment(**values: str) -> None:
    """Environment variables of the job's later steps."""
    _append("GITHUB_ENV", values)


def _append(file: str, values: dict[str, str]) -> None:
    if path := os.environ.get(file):
        with Path(path).open("a", encoding="utf-8") as out:
            for name, value in values.items():
                # A random delimiter: a value with line ends cannot set another variable.
                mark = f"end-{uuid.uuid4().hex}"
                out.write(f"{name}<<{mark}\n{value}\n{mark}\n")


def summarize(markdown: str) -> None:
    """Append to the job summary."""
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as out:
            out.write(markdown + "\n")


def run_url() -> str | None:
    """Where this run of GitHub Actions is seen; None outside of it."""
    names = ("SERVER_URL", "REPOSITORY", "RUN_ID")
    server, repository, run = (os.environ.get(f"GITHUB_{name}") for name in names)
    return f"{server}/{repository}/actions/runs/{run}" if server and repository and run else None


def annotate(level: str, title: str, message: str) -> None:
    """An annotation on the run: `error`, `warning` or `notice`. The message was printed already."""
    if os.environ.get("GITHUB_ACTIONS"):
        to_runner.out(workflow_command(level, message, title=title), highlight=False)
