"""Open the pull request that takes a release back."""

from __future__ import annotations

import click

from adapterops.command import command, console


@command()
@click.option("--adapter", required=True, help="An adapter of adapters/, by name.")
@click.option("--repository", "name", help="owner/name. Default: $GITHUB_REPOSITORY.")
def main(adapter: str, name: str | None) -> None:
    """Revert the newest commit that changed an adapter, on a branch of its own, and open its pull request; once, however often asked.

    \b
    Example:
      python scripts/open_revert.py --adapter support-demo --repository your-org/qlora-gitops
    """
    from adapterops.gitops.github import repository
    from adapterops.gitops.revert import open_revert, push_revert, releasing_commit
    from adapterops.schemas import ROOT

    commit = releasing_commit(adapter, ROOT)
    branch = push_revert(adapter, commit, ROOT)
    with repository(name) as repo:
        console.print(f"{open_revert(adapter, commit, branch, repo).html_url}: reverts {commit[:12]}", soft_wrap=True)


if __name__ == "__main__":
    main()
