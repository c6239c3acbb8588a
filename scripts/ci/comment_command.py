"""Carry out a command that was written as a comment."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

import os

from adapterops.command import command, console


@command()
def main() -> None:
    """Carry out `/retrain`, `/rerun-gate` or `/rollback <adapter>` of the comment in
    $GITHUB_EVENT_PATH, and answer it.

    Only for people with write access, and only on the commit that was there when the comment was
    written.

    \b
    Example (in a workflow on `issue_comment`):
      python scripts/ci/comment_command.py
    """
    from adapterops.candidates.keys import adapter_names
    from adapterops.errors import UsageError
    from adapterops.gitops.commands import carry_out, read_event
    from adapterops.gitops.github import repository
    from adapterops.schemas import ROOT

    path = os.environ.get("GITHUB_EVENT_PATH")
    if not path:
        raise UsageError("GITHUB_EVENT_PATH is not set: this runs in a workflow.")
    with repository() as repo:
        console.print(
            carry_out(read_event(path), repo, adapter_names(ROOT)), markup=False, soft_wrap=True
        )


if __name__ == "__main__":
    main()
