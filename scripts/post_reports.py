"""Post the gate's reports of a pull request."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from adapterops.command import OUTPUT_PATH, SIGNED_BY, command, console


@command()
@click.option("--plan", "plan_path", type=OUTPUT_PATH, required=True, help="Plan document that plan.py wrote.")
@click.option("--pull-request", type=int, required=True, help="Its number.")
@click.option("--repository", help="owner/name. Default: $GITHUB_REPOSITORY.")
@click.option("--bucket", help="S3 bucket with candidates. Default: $ADAPTER_BUCKET.")
@SIGNED_BY
def main(plan_path: Path, pull_request: int, repository: str | None, bucket: str | None, signed_by: str | None) -> int:
    """Fetch the verdicts of a plan's adapters from the store and have `report.py post` comment them.

    \b
    Example:
      python scripts/post_reports.py --plan plan.json --pull-request 12 --repository your-org/qlora-gitops
    """
    from adapterops.documents import read_json
    from adapterops.errors import UsageError
    from adapterops.gitops.candidates import fetch_adapter, fetch_judgement, find_judged, trust_from
    from adapterops.gitops.todays_rules import judge_by_todays_rules
    from adapterops.schemas import ROOT
    from adapterops.store.objects import open_store

    plan = read_json(plan_path, "plan")
    name = repository or os.environ.get("GITHUB_REPOSITORY")
    if not name:
        raise UsageError("no repository. Name one with --repository owner/name or in GITHUB_REPOSITORY.")
    wanted = [row for row in plan["adapters"] if row["training_key"]]
    if not wanted:
        console.print("no adapter is affected: nothing to report")
        return 0
    store, trust = open_store(bucket), trust_from(signed_by)
    with tempfile.TemporaryDirectory(prefix="reports-") as scratch:
        reports = []
        for row in wanted:
            known = find_judged(store, row["name"], row["training_key"], row["judgement_key"], trust)
            if known.judgement is None:
                console.print(f"{row['name']}: {known.distrust or 'no verdict yet'}", markup=False, soft_wrap=True)
                continue
            run = Path(scratch) / row["name"] / row["training_key"][:12]
            fetch_adapter(store, row["training_key"], run / "model", None if known.released else trust)
            fetch_judgement(store, known.judgement, run)
            judge_by_todays_rules(run, row["name"])
            shutil.copy(plan_path, run / "plan.json")  # what was predicted stands beside what it took
            reports.append(run / "gate_report.json")
        if not reports:
            return 0
        # The one place that knows this command line.
        post = [sys.executable, str(ROOT / "scripts" / "report.py"), "post", "--repository", name, "--pull-request", str(pull_request)]
        for report in reports:
            post += ["--report", str(report)]
        return subprocess.run(post, check=False).returncode


if __name__ == "__main__":
    main()
