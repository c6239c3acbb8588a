"""Compare main, channels and serving hosts."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

import os

import click

from adapterops.command import command, console

TITLE = "Drift: main, channels and serving hosts differ"


@command()
@click.option("--repository", "name", help="owner/name. Default: $GITHUB_REPOSITORY.")
@click.option("--bucket", help="S3 bucket. Default: $ADAPTER_BUCKET.")
def main(name: str | None, bucket: str | None) -> None:
    """Compare what main says with the channels and with the hosts of $GATEWAYS; keep one issue open
    while they differ.

    \b
    Example:
      GATEWAYS=http://10.0.0.7:8080 python scripts/ci/reconcile.py \\
          --repository your-org/qlora-gitops
    """
    from adapterops.gitops.channel_drift import find_drift
    from adapterops.gitops.github import is_by, repository
    from adapterops.gitops.notes import drift_issue
    from adapterops.schemas import ROOT
    from adapterops.store.objects import open_store

    differences = find_drift(open_store(bucket), ROOT, os.environ.get("GATEWAYS", "").split())
    for difference in differences:
        console.print(difference, markup=False, soft_wrap=True)
    with repository(name) as repo:
        issues = [
            issue
            for issue in repo.get_issues(state="open")
            if is_by(issue.user) and issue.title == TITLE
        ]
        if differences and not issues:
            console.print(repo.create_issue(title=TITLE, body=drift_issue(differences)).html_url)
        for issue in issues:
            if not differences:
                issue.create_comment("They agree again.")
                issue.edit(state="closed")
            elif issue.body != drift_issue(differences):
                issue.edit(body=drift_issue(differences))
    if not differences:
        console.print("main, channels and serving hosts agree")


if __name__ == "__main__":
    main()
