"""Fetch and keep candidates."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

from pathlib import Path

import click

from adapterops.command import OUTPUT_PATH, SIGNED_BY, command, console


@command()
@click.argument("action", type=click.Choice(["fetch", "keep"]))
@click.option("--adapter", required=True, help="An adapter of adapters/, by name.")
@click.option(
    "--runs",
    type=OUTPUT_PATH,
    default=Path("runs"),
    show_default=True,
    help="Where runs are kept, by training key.",
)
@click.option("--bucket", help="S3 bucket. Default: $ADAPTER_BUCKET.")
@click.option("--commit", help="Commit that was judged, for the record.")
@click.option("--pr", help="Pull request, for the record.")
@click.option(
    "--signing-key",
    envvar="CANDIDATE_SIGNING_KEY",
    help=(
        "Private key (PEM) to keep with, or `keyless`: the workflow's identity. Default:"
        " $CANDIDATE_SIGNING_KEY, else unsigned."
    ),
)
@SIGNED_BY
def main(
    action: str,
    adapter: str,
    runs: Path,
    bucket: str | None,
    commit: str | None,
    pr: str | None,
    signing_key: str | None,
    signed_by: str | None,
) -> None:
    """Fetch what was computed before for an adapter's keys into its run directory, or keep what was
    computed now.

    What is kept first stays: equal inputs are not trained twice, and get no second verdict. With
    --signed-by an adapter or a verdict that others than train.yaml put there is refused, for this
    run would judge and sign it. That a release of that key exists excuses nothing.

    \b
    Example:
      python scripts/ci/candidate.py fetch --adapter support-demo --bucket qlora-adapters
      python scripts/pipeline.py --adapter support-demo --until gate
      python scripts/ci/candidate.py keep --adapter support-demo --bucket qlora-adapters
    """
    from adapterops.candidates.kept import (
        fetch_adapter,
        fetch_judgement,
        fetch_measurements,
        find_candidate,
        keep_adapter,
        keep_judgement,
        trust_from,
    )
    from adapterops.candidates.keys import adapter_keys
    from adapterops.errors import RejectedError
    from adapterops.gitops.outputs import run_url, set_outputs
    from adapterops.schemas import ROOT
    from adapterops.signing import signer_from
    from adapterops.specs.adapter import run_directory
    from adapterops.store.objects import open_store

    signer, trust = signer_from(signing_key), trust_from(signed_by)
    keys = adapter_keys(adapter, ROOT)
    run = run_directory(runs, keys.spec, keys.training)
    store = open_store(bucket)
    set_outputs(run=str(run))
    if action == "fetch":
        known = find_candidate(store, keys, trust)
        if known.distrust:
            raise RejectedError(f"{adapter}: {known.distrust}   # then run this again")
        if known.digest:
            fetch_adapter(store, keys.training, run / "model", trust)
        if known.judgement:
            fetch_judgement(store, known.judgement, run)
        elif known.digest:
            fetch_measurements(
                store, keys, run, trust
            )  # where only labels or gates changed, nothing is evaluated again
        found = (
            f"adapter {known.digest[:12]}, verdict {known.verdict or 'none yet'}"
            if known.digest
            else "nothing yet"
        )
        console.print(
            f"{adapter}: under training key {keys.training[:12]} is {found}", soft_wrap=True
        )
        return
    digest = keep_adapter(store, keys.training, run / "model", signer, trust)
    console.print(f"candidates/{keys.training}: adapter {digest[:12]}", soft_wrap=True)
    if (run / "gate_report.json").is_file():
        source = {"commit": commit, "pr": pr, "run": run_url()}
        judgement = keep_judgement(store, keys, run, source, signer, trust)
        if judgement:
            said = f"judgements/{judgement['judgement_key'][:12]}: verdict {judgement['verdict']}"
        else:
            said = (
                "the verdict is an ERROR, or the extension rows that it asks for were not judged."
                " It is not kept: it may be tried again"
            )
        console.print(f"candidates/{keys.training}: {said}", soft_wrap=True)


if __name__ == "__main__":
    main()
