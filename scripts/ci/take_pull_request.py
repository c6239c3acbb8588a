"""Take the data of a pull request."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

from pathlib import Path

import click

from adapterops.command import OUTPUT_PATH, command, console


@command()
@click.option(
    "--head",
    required=True,
    help="Exact head commit of the pull request (40 hex digits); fetched from origin if missing.",
)
@click.option(
    "--base",
    default="HEAD",
    show_default=True,
    help="Commit of the default branch that is checked out.",
)
@click.option(
    "--main-copy",
    type=OUTPUT_PATH,
    help="Also write the default branch's own data, configs and adapters here.",
)
def main(head: str, base: str, main_copy: Path | None) -> None:
    """Bring data/, configs/ and adapters/ of a pull request, merged into the default branch, into
    this checkout. Never code.

    Links, submodules, executables, odd names, unlisted kinds of files and whatever is too large are
    refused, all of them at once. Of configs/, recipes, gates and the data policy are taken;
    schemas, chat templates, the allow-list of base models, prices and what hosts serve and trust
    stay those of the default branch.

    \b
    Example:
      python scripts/ci/take_pull_request.py --head $(git rev-parse origin/my-branch)
    """
    from adapterops.git_tree import extract, fetch, resolve, take
    from adapterops.schemas import ROOT

    fetch(head, ROOT)
    trusted = resolve(base, ROOT)
    if main_copy:
        extract(trusted, trusted, ROOT, main_copy)
    tree = take(trusted, head, ROOT, ROOT)
    console.print(
        f"took data, configs and adapters of {head[:12]} merged into {trusted[:12]} (tree"
        f" {tree[:12]}); code is {trusted[:12]}'s"
    )


if __name__ == "__main__":
    main()
