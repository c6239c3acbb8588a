"""Open the pull request that takes a release back."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

import os

import click

from adapterops.command import command, console


@command()
@click.option("--adapter", required=True, help="An adapter of adapters/, by name.")
@click.option("--repository", "name", help="owner/name. Default: $GITHUB_REPOSITORY.")
def main(adapter: str, name: str | None) -> None:
    """Revert the newest commit that changed an adapter, on a branch of its own, and open its pull
    request; once, however often asked.

    In GitHub Actions the pull request is a GitHub App's ($REVERT_APP_ID, $REVERT_APP_KEY); without
    one an issue says what to run.

    \b
    Example:
      python scripts/ci/open_revert.py --adapter support-demo --repository your-org/qlora-gitops
    """
    from adapterops.gitops.github import repository
    from adapterops.gitops.revert import (
        app_token,
        ask_for_revert,
        open_revert,
        push_revert,
        releasing_commit,
    )
    from adapterops.schemas import ROOT

    commit = releasing_commit(adapter, ROOT)
    app_id, key = os.environ.get("REVERT_APP_ID"), os.environ.pop("REVERT_APP_KEY", None)
    if os.environ.get("GITHUB_ACTIONS") and not (app_id and key):
        with repository(name) as repo:
            console.print(
                f"{ask_for_revert(adapter, commit, repo).html_url}: says how to revert"
                f" {commit[:12]}",
                soft_wrap=True,
            )
        return
    if app_id and key:
        os.environ["GITHUB_TOKEN"] = app_token(app_id, key, name or os.environ["GITHUB_REPOSITORY"])
    branch = push_revert(adapter, commit, ROOT)
    with repository(name) as repo:
        console.print(
            f"{open_revert(adapter, commit, branch, repo).html_url}: reverts {commit[:12]}",
            soft_wrap=True,
        )


if __name__ == "__main__":
    main()
