"""Publish an adapter."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

import os
from pathlib import Path

import click

from adapterops.command import EXISTING_DIRECTORY, EXISTING_FILE, command, console


@command()
@click.option("--adapter", required=True, help="Name to publish under.")
@click.option(
    "--model",
    type=EXISTING_DIRECTORY,
    required=True,
    help="Adapter directory that train_qlora.py wrote.",
)
@click.option(
    "--gate-report",
    type=EXISTING_FILE,
    required=True,
    help="Verdict on this very adapter, from quality_gate.py.",
)
@click.option("--bucket", help="S3 bucket. Default: $ADAPTER_BUCKET.")
@click.option(
    "--commit", help="Commit that this was made from, for the manifest. Default: $GITHUB_SHA."
)
@click.option("--pr", help="Pull request, for the manifest.")
@click.option(
    "--signing-key",
    envvar="SIGNING_KEY",
    help=(
        "Private key (PEM), or `keyless`: the identity of the GitHub Actions workflow. Default:"
        " $SIGNING_KEY, else unsigned."
    ),
)
def main(
    adapter: str,
    model: Path,
    gate_report: Path,
    bucket: str | None,
    commit: str | None,
    pr: str | None,
    signing_key: str | None,
) -> None:
    """Publish an adapter that passed its gates, as an immutable release. Serving does not change:
    deploy_adapter.py does that.

    Published again, a release gets back files that are missing or damaged in the store, and with
    --signing-key a signature if it has none.

    \b
    Example:
      python scripts/publish_adapter.py --adapter support-demo --model models/support \\
        --gate-report results/gate_report.json --bucket adapters --signing-key signing.pem
    """
    from adapterops.documents import read_json
    from adapterops.signing import signer_from
    from adapterops.specs.adapter import load_adapter
    from adapterops.store.objects import open_store
    from adapterops.store.releases import publish

    load_adapter(adapter)  # a release under a name that nobody follows would be a typo
    release = publish(
        open_store(bucket),
        adapter,
        model,
        read_json(gate_report, "gate_report"),
        read_json(model / "train_manifest.json", "train_manifest"),
        source={
            "commit": commit or os.environ.get("GITHUB_SHA"),
            "pr": pr,
            "actor": os.environ.get("GITHUB_ACTOR"),
        },
        signer=signer_from(signing_key),
    )
    console.print(f"{release.uri}: {release.outcome}", soft_wrap=True)


if __name__ == "__main__":
    main()
