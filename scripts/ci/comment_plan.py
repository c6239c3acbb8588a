"""Say on the pull request what its plan says."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

import json
import os
from pathlib import Path

import click

from adapterops.command import OUTPUT_PATH, command, console


@command()
@click.option(
    "--plan", "plan_path", type=OUTPUT_PATH, required=True, help="Plan document that plan.py wrote."
)
@click.option(
    "--data-reports",
    type=OUTPUT_PATH,
    help="Directory with data-report-<adapter>/<adapter>.json of validate_data.py.",
)
@click.option("--pull-request", type=int, required=True, help="Its number.")
@click.option("--repository", "name", help="owner/name. Default: $GITHUB_REPOSITORY.")
def main(plan_path: Path, data_reports: Path | None, pull_request: int, name: str | None) -> None:
    """Keep one comment with the plan: changed rules first, then what is refused and how to mend it,
    then what is computed.

    \b
    Example:
      python scripts/ci/comment_plan.py --plan plan.json --pull-request 12 \\
          --repository your-org/qlora-gitops
    """
    from adapterops.documents import read_json
    from adapterops.gitops.github import own_comments, repository, upsert_comment
    from adapterops.gitops.plan_comment import MARKER, comment

    plan = read_json(plan_path, "plan")
    reports = (
        [
            read_json(path, "data_report")
            for path in sorted(data_reports.glob("data-report-*/*.json"))
        ]
        if data_reports
        else []
    )
    results = {
        job: facts["result"] for job, facts in json.loads(os.environ.get("NEEDS", "{}")).items()
    }
    with repository(name) as repo:
        issue = repo.get_issue(pull_request)
        body = comment(plan, reports, results)
        if body is None and own_comments(issue, MARKER):
            body = "Nothing to mend any more: see the checks below."
        said = f"comment {upsert_comment(issue, MARKER, body)[0].id}" if body else "nothing to say"
    console.print(said)


if __name__ == "__main__":
    main()
