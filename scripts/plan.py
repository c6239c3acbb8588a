"""Plan what a pull request needs."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterops.command import OUTPUT_PATH, SIGNED_BY, command, console

if TYPE_CHECKING:
    from adapterops.shapes.plan import Plan


@command()
@click.option(
    "--base",
    default="HEAD",
    show_default=True,
    help="Commit of the default branch: the checkout whose code runs.",
)
@click.option(
    "--head",
    required=True,
    help="Exact head commit of the pull request (40 hex digits); fetched from origin if missing.",
)
@click.option("--output", type=OUTPUT_PATH, help="Write the plan (JSON) here.")
@click.option("--bucket", help="S3 bucket with candidates. Default: $ADAPTER_BUCKET.")
@click.option(
    "--no-store",
    is_flag=True,
    help="Do not ask the store what is computed already (a fork's run has no access).",
)
@click.option("--fork", is_flag=True, help="The pull request comes from a fork.")
@click.option(
    "--pull-request",
    type=int,
    help="Its number: a label may approve a budget (needs $GITHUB_TOKEN, $GITHUB_REPOSITORY).",
)
@click.option(
    "--gpu-for", help="Exit 1 unless this adapter gets a GPU job: the last check before one starts."
)
@SIGNED_BY
def main(
    base: str,
    head: str,
    output: Path | None,
    bucket: str | None,
    no_store: bool,
    fork: bool,
    pull_request: int | None,
    gpu_for: str | None,
    signed_by: str | None,
) -> int:
    """Plan what a pull request needs: adapters by key, what was computed before, minutes and cost.

    Exit 0 if it may proceed, 1 if it is refused; the plan says why and what to do.

    \b
    Example:
      python scripts/plan.py --base origin/main --head $(git rev-parse HEAD) --no-store
    """
    from adapterops.documents import write_json
    from adapterops.gitops.pull_request_plan import Asked, plan_pull_request
    from adapterops.schemas import ROOT
    from adapterops.shapes.plan import Plan

    asked = Asked(head, base, pull_request, fork, no_store, bucket, signed_by)
    plan = plan_pull_request(asked, ROOT)
    if output:
        write_json(output, plan, Plan)
    _tell(plan)
    if gpu_for and not _gets_a_gpu(plan, gpu_for):
        return 1
    return 0 if plan["verdict"] == "PROCEED" else 1


def _tell(plan: Plan) -> None:
    """Print the plan, and hand it to GitHub: summary, annotations, outputs."""
    from adapterops.gitops.outputs import annotate, set_outputs, summarize
    from adapterops.plan.plan_text import plan_markdown, print_plan

    print_plan(plan, console)
    summarize(plan_markdown(plan))
    for problem in plan["problems"]:
        annotate("error", "plan", problem)
    set_outputs(
        base=plan["base"],
        validate=json.dumps(plan["validate"]),
        train=json.dumps(plan["train"]),
        judged=json.dumps([row["name"] for row in plan["adapters"] if row["action"] == "reuse"]),
        code=json.dumps(bool(plan["changes"]["code"])),
        rules=json.dumps(bool(plan["rules"])),
    )


def _gets_a_gpu(plan: Plan, adapter: str) -> bool:
    """Whether a GPU job of this adapter may start: it is to be computed, and its cost is known."""
    for row in plan["adapters"]:
        # Data that cannot be priced is left to the validation; what gets here has passed it, and
        # has a price.
        if row["name"] == adapter and row["usd"] is None and not plan["budget"]["approved"]:
            console.print(
                f"{adapter} gets no GPU: its cost is unknown, and nobody has approved it.",
                markup=False,
            )
            return False
    known = {row["name"] for row in plan["adapters"] if row["action"] == "reuse"}
    return adapter in plan["train"] or adapter in known


if __name__ == "__main__":
    main()
