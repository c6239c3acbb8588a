"""The week's routine."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

import datetime
import json
import subprocess
import sys
from pathlib import Path

import click

from adapterops.command import OUTPUT_PATH, SIGNED_BY, command, console


@command()
@click.argument("what", type=click.Choice(["data", "plan", "review"]))
@click.option(
    "--output",
    type=OUTPUT_PATH,
    default=Path("reports"),
    show_default=True,
    help="Where `data` puts its reports.",
)
@click.option("--repository", "name", help="owner/name. Default: $GITHUB_REPOSITORY.")
@click.option("--bucket", help="S3 bucket. Default: $ADAPTER_BUCKET.")
@SIGNED_BY
def main(
    what: str, output: Path, name: str | None, bucket: str | None, signed_by: str | None
) -> int:
    """Do a day's work of the week: `data` reports on every adapter's data, `plan` names those
    without a verdict, `review` opens the issue.

    \b
    Example:
      python scripts/ci/weekly.py data --output reports
    """
    if what == "data":
        return _data(output)
    if what == "plan":
        return _plan(bucket, signed_by)
    return _review(name, bucket, signed_by)


def _data(output: Path) -> int:
    from adapterops.candidates.keys import adapter_names
    from adapterops.schemas import ROOT

    codes = []
    for adapter in adapter_names(ROOT):
        validate = [
            sys.executable,
            str(ROOT / "scripts" / "validate_data.py"),
            "--adapter",
            adapter,
            "--format",
            "github",
        ]
        codes.append(
            subprocess.run(
                [*validate, "--output", str(output / f"{adapter}.json")], check=False
            ).returncode
        )
    return max(codes, default=0)


def _waiting(bucket: str | None, signed_by: str | None) -> dict[str, str]:
    """Adapters of the checkout that were neither judged nor released with the keys that they have
    now.

    Returns:
        By name what stands in the way of training or judging them, with the commands that remove
        it; empty if nothing does.
    """
    from adapterops.candidates.kept import find_candidate, trust_from
    from adapterops.candidates.keys import adapter_keys, adapter_names
    from adapterops.schemas import ROOT
    from adapterops.store.objects import open_store

    store, trust = open_store(bucket), trust_from(signed_by)
    known = {
        adapter: find_candidate(store, adapter_keys(adapter, ROOT), trust)
        for adapter in adapter_names(ROOT)
    }
    return {
        adapter: (
            candidate.distrust
            and f"{candidate.distrust}   # then: gh workflow run retrain.yaml --ref main"
            f" -f adapter={adapter}"
        )
        for adapter, candidate in known.items()
        if candidate.judgement is None and not candidate.released
    }


def _plan(bucket: str | None, signed_by: str | None) -> int:
    from adapterops.gitops.outputs import annotate, set_outputs

    waiting = _waiting(bucket, signed_by)
    set_outputs(
        train=json.dumps([adapter for adapter, hindrance in waiting.items() if not hindrance])
    )
    console.print(f"without a verdict: {', '.join(waiting) or 'none'}")
    for adapter, hindrance in waiting.items():
        if (
            hindrance
        ):  # a run would refuse it too, and the others need not wait for an administrator
            console.print(f"{adapter}: {hindrance}", markup=False, soft_wrap=True)
            annotate("error", "weekly", f"{adapter}: {hindrance}")
    return 0


def _review(name: str | None, bucket: str | None, signed_by: str | None) -> int:
    from adapterops.candidates.keys import adapter_names
    from adapterops.gitops.github import is_by, repository
    from adapterops.gitops.notes import review_issue
    from adapterops.schemas import ROOT
    from adapterops.store.channels import history
    from adapterops.store.objects import open_store

    store, today = open_store(bucket), datetime.datetime.now(datetime.UTC)
    since = (today - datetime.timedelta(days=7)).isoformat()
    histories = {
        adapter: [one for one in history(store, adapter) if one.updated_at >= since]
        for adapter in adapter_names(ROOT)
    }
    year, week, _ = today.isocalendar()
    title = f"Weekly review {year}-W{week:02d}"
    waiting = [
        f"{adapter}: {hindrance or 'no verdict for its keys on main'}"
        for adapter, hindrance in _waiting(bucket, signed_by).items()
    ]
    with repository(name) as repo:
        present = [
            issue
            for issue in repo.get_issues(state="open")
            if is_by(issue.user) and issue.title == title
        ]
        body = review_issue(histories, waiting)
        for issue in present:
            issue.edit(body=body)
        issue = present[0] if present else repo.create_issue(title=title, body=body)
        console.print(issue.html_url)
    return 0


if __name__ == "__main__":
    main()
