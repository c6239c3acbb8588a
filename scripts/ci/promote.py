"""Find and fetch what main wants released."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterops.command import OUTPUT_PATH, SIGNED_BY, command, console

if TYPE_CHECKING:
    from adapterops.candidates.promotion import Promotion
    from adapterops.signing import Trust
    from adapterops.store.objects import ObjectStore


@command()
@click.option(
    "--before",
    help="Commit of main before the push: adapters whose training key changed since are released.",
)
@click.option(
    "--adapter",
    "names",
    multiple=True,
    help="This adapter, whether it changed or not; may be given several times.",
)
@click.option(
    "--into",
    type=OUTPUT_PATH,
    help="Fetch the candidate of the one --adapter into this run directory, verified.",
)
@click.option("--bucket", help="S3 bucket. Default: $ADAPTER_BUCKET.")
@SIGNED_BY
def main(
    before: str | None,
    names: tuple[str, ...],
    into: Path | None,
    bucket: str | None,
    signed_by: str | None,
) -> int:
    """Say which candidates main wants released, by the keys that main has now; exit 1 where one is
    missing, unsigned or not PASS.

    Nothing is trained: a merge releases what its pull request judged, a revert finds the older
    candidate. With --into the candidate and its verdict are fetched for publish_adapter.py, every
    digest verified, and the signature if --signed-by asks for one.

    \b
    Example:
      python scripts/ci/promote.py --before HEAD~1
      python scripts/ci/promote.py --adapter support-demo --into runs/promoted
    """
    from adapterops.candidates.kept import trust_from
    from adapterops.candidates.promotion import find_promotion
    from adapterops.errors import UsageError
    from adapterops.schemas import ROOT
    from adapterops.store.objects import open_store

    store, trust = open_store(bucket), trust_from(signed_by)
    if into and len(names) != 1:
        raise UsageError("--into takes the candidate of one --adapter.")
    promotions = [
        promotion
        for name in names or _changed_since(before)
        if (promotion := find_promotion(store, name, ROOT, trust))
    ]
    _report(promotions)
    if into:
        for promotion in promotions:
            _fetch(store, promotion, into, trust)
    return 1 if any(promotion.problem for promotion in promotions) else 0


def _changed_since(before: str | None) -> list[str]:
    """Adapters whose training key differs from that of the former commit of main."""
    from adapterops.candidates.promotion import changed_adapters
    from adapterops.git_tree import resolve
    from adapterops.schemas import ROOT

    former = None if not before or set(before) == {"0"} else resolve(before, ROOT)
    with tempfile.TemporaryDirectory(prefix="promote-") as scratch:
        return changed_adapters(former, resolve("HEAD", ROOT), ROOT, Path(scratch).resolve())


def _report(promotions: list[Promotion]) -> None:
    """Say what is released and what is refused, to people and to the jobs that follow."""
    from adapterops.escape import inline
    from adapterops.gitops.outputs import annotate, set_outputs, summarize

    ready = [promotion for promotion in promotions if not promotion.problem]
    refused = [promotion for promotion in promotions if promotion.problem]
    lines = ["## Release", ""]
    for promotion in ready:
        digest = str(promotion.digest)[:12]
        how = "released before, is served again" if promotion.released else "is released"
        console.print(f"{promotion.adapter}: candidate {digest} {how}", soft_wrap=True)
        lines.append(f"- {inline(f'{promotion.adapter}: {digest}')}")
    for promotion in refused:
        console.print(promotion.problem, markup=False, soft_wrap=True)
        annotate("error", "release", promotion.problem)
        lines.append(f"- {inline(promotion.problem)}")
    if not promotions:
        console.print("Nothing to release: no adapter's weights differ from what is served.")
        lines.append("Nothing to release.")
    summarize("\n".join(lines) + "\n")
    adapters = [{"adapter": promotion.adapter, "digest": promotion.digest} for promotion in ready]
    set_outputs(adapters=json.dumps(adapters))


def _fetch(store: ObjectStore, promotion: Promotion, into: Path, trust: Trust | None) -> None:
    from adapterops.candidates.promotion import fetch_promotion
    from adapterops.gitops.outputs import set_outputs
    from adapterops.schemas import ROOT

    judgement = fetch_promotion(store, promotion, ROOT, into, trust)
    pr = judgement["source"]["pr"] if judgement else None
    # What is a release already is not published again; where its rules changed since, there may be
    # no verdict at hand.
    set_outputs(publish=json.dumps(not promotion.released), pr=pr or "")


if __name__ == "__main__":
    main()
