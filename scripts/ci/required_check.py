"""Decide whether a pull request may be merged."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

import json
import os

import click

from adapterops.command import SIGNED_BY, command, console
from adapterops.errors import UsageError


@command()
@click.option("--head", required=True, help="Exact head commit of the pull request.")
@click.option(
    "--base", default="HEAD", show_default=True, help="Commit of the default branch, as it is now."
)
@click.option("--bucket", help="S3 bucket with candidates. Default: $ADAPTER_BUCKET.")
@click.option("--no-store", is_flag=True, help="A fork's run, which has no access to the store.")
@click.option("--fork", is_flag=True, help="The pull request comes from a fork.")
@click.option(
    "--pull-request",
    type=int,
    help="Its number: a label may approve a budget (needs $GITHUB_TOKEN, $GITHUB_REPOSITORY).",
)
@SIGNED_BY
def main(
    head: str,
    base: str,
    bucket: str | None,
    no_store: bool,
    fork: bool,
    pull_request: int | None,
    signed_by: str | None,
) -> int:
    """Decide whether a pull request may be merged: exit 0 or 1.

    Reads the jobs' results from $NEEDS (the `needs` context as JSON). Jobs that did not run are
    accepted only where the plan said so, and verdicts are read from the store.

    \b
    Example:
      NEEDS='{"plan": {"result": "success", "outputs": {…}}, …}' python \\
          scripts/ci/required_check.py --head SHA
    """
    from adapterops.escape import inline
    from adapterops.gitops.outputs import annotate, summarize
    from adapterops.gitops.pull_request_plan import Asked, plan_pull_request
    from adapterops.gitops.required import decide
    from adapterops.plan.plan_text import plan_markdown
    from adapterops.schemas import ROOT

    try:
        needs = json.loads(os.environ["NEEDS"])
    except (KeyError, ValueError):
        raise UsageError(
            "NEEDS is not set to the `needs` context as JSON."
            " In a workflow: env: {NEEDS: ${{ toJSON(needs) }}}"
        ) from None
    asked = Asked(head, base, pull_request, fork, no_store, bucket, signed_by)
    plan = plan_pull_request(asked, ROOT)
    problems = decide(needs, plan)
    verdict = f"This pull request may {'not be merged yet' if problems else 'be merged'}."
    listed = "".join(f"- {inline(problem)}\n" for problem in problems)
    summarize(f"## {verdict}\n\n{listed}\n{plan_markdown(plan)}")
    console.print(verdict)
    for problem in problems:
        console.print(f"- {problem}", markup=False, soft_wrap=True)
        annotate("error", "required", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    main()
