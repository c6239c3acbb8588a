"""Post the gate's reports of a pull request."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterops.command import OUTPUT_PATH, SIGNED_BY, command, console, error_console

if TYPE_CHECKING:
    from adapterops.signing import Trust
    from adapterops.store.objects import ObjectStore


@command()
@click.option(
    "--plan", "plan_path", type=OUTPUT_PATH, required=True, help="Plan document that plan.py wrote."
)
@click.option("--pull-request", type=int, required=True, help="Its number.")
@click.option("--repository", help="owner/name. Default: $GITHUB_REPOSITORY.")
@click.option("--bucket", help="S3 bucket with candidates. Default: $ADAPTER_BUCKET.")
@click.option(
    "--output",
    type=OUTPUT_PATH,
    default=Path("reports"),
    show_default=True,
    help="Where documents, comments and pages are kept.",
)
@SIGNED_BY
def main(
    plan_path: Path,
    pull_request: int,
    repository: str | None,
    bucket: str | None,
    output: Path,
    signed_by: str | None,
) -> int:
    """Fetch the verdicts of a plan's adapters from the store and have `report.py post` comment
    them.

    One adapter's trouble keeps no other's comment back: it is printed, and is the exit code in the
    end.

    \b
    Example:
      python scripts/ci/post_reports.py --plan plan.json --pull-request 12 \\
          --repository your-org/qlora-gitops
    """
    from adapterops.candidates.kept import trust_from
    from adapterops.documents import read_json
    from adapterops.errors import AdapterOpsError, UsageError
    from adapterops.schemas import ROOT
    from adapterops.store.objects import open_store

    plan = read_json(plan_path, "plan")
    name = repository or os.environ.get("GITHUB_REPOSITORY")
    if not name:
        raise UsageError(
            "no repository. Name one with --repository owner/name or in GITHUB_REPOSITORY."
        )
    wanted = [row for row in plan["adapters"] if row["training_key"]]
    if not wanted:
        console.print("no adapter is affected: nothing to report")
        return 0
    store, trust = open_store(bucket), trust_from(signed_by)
    reports, code = [], 0
    for row in wanted:
        run = output / row["name"] / row["training_key"][:12]
        try:
            if not _fetch(store, row, run, trust):
                continue
            shutil.copy(
                plan_path, run / "plan.json"
            )  # what was predicted stands beside what it took
            reports.append(run / "gate_report.json")
            _judge(run, row["name"])
        except AdapterOpsError as error:
            error_console.print(f"{row['name']}: {error}", markup=False, soft_wrap=True)
            code = max(code, error.exit_code)
    if reports:
        # The one place that knows this command line.
        post = [
            sys.executable,
            str(ROOT / "scripts" / "report.py"),
            "post",
            "--repository",
            name,
            "--pull-request",
            str(pull_request),
        ]
        for report in reports:
            post += ["--report", str(report)]
        code = max(code, subprocess.run(post, check=False).returncode)
    return code


def _fetch(store: ObjectStore, row: dict[str, Any], run: Path, trust: Trust | None) -> bool:
    """Bring the documents of an adapter's verdict to `run`; False where there is none, and that is
    printed.

    Raises:
        RejectedError: it is not signed by whom we trust.
        InfrastructureError: the store.
    """
    from adapterops.candidates.kept import fetch_judgement, fetch_train_manifest, find_judged

    shutil.rmtree(run, ignore_errors=True)  # what an earlier call left is of another verdict
    known = find_judged(store, row["name"], row["training_key"], row["judgement_key"], trust)
    if known.judgement is None:
        console.print(
            f"{row['name']}: {known.distrust or 'no verdict yet'}", markup=False, soft_wrap=True
        )
        return False
    fetch_train_manifest(
        store, row["training_key"], run / "model", trust
    )  # the report needs no weights
    fetch_judgement(store, known.judgement, run)
    return True


def _judge(run: Path, adapter: str) -> None:
    """Have today's rules say what they say; where they cannot, the report says why.

    Raises:
        AdapterOpsError: they could not be applied.
    """
    from adapterops.documents import write_bytes
    from adapterops.errors import AdapterOpsError
    from adapterops.gate.todays_rules import judge_by_todays_rules
    from adapterops.report.collect import MAIN_PROBLEM

    try:
        judge_by_todays_rules(run, adapter)
    except AdapterOpsError as error:
        write_bytes(run / MAIN_PROBLEM, str(error).encode())
        raise


if __name__ == "__main__":
    main()
