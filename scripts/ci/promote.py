"""Find and fetch what main wants released."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

import json
import tempfile
from pathlib import Path

import click

from adapterops.command import OUTPUT_PATH, SIGNED_BY, command, console


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
    from adapterops.candidates.promotion import changed_adapters, fetch_promotion, find_promotion
    from adapterops.errors import UsageError
    from adapterops.escape import inline
    from adapterops.git_tree import resolve
    from adapterops.gitops.outputs import annotate, set_outputs, summarize
    from adapterops.schemas import ROOT
    from adapterops.store.objects import open_store

    store, trust = open_store(bucket), trust_from(signed_by)
    if into and len(names) != 1:
        raise UsageError("--into takes the candidate of one --adapter.")
    wanted = list(names)
    if not wanted:
        with tempfile.TemporaryDirectory(prefix="promote-") as scratch:
            first = not before or set(before) == {"0"}
            wanted = changed_adapters(
                None if first else resolve(str(before), ROOT),
                resolve("HEAD", ROOT),
                ROOT,
                Path(scratch).resolve(),
            )
    promotions = [
        promotion for name in wanted if (promotion := find_promotion(store, name, ROOT, trust))
    ]
    ready = [promotion for promotion in promotions if not promotion.problem]
    refused = [promotion for promotion in promotions if promotion.problem]
    for promotion in ready:
        how = "released before, is served again" if promotion.released else "is released"
        console.print(
            f"{promotion.adapter}: candidate {str(promotion.digest)[:12]} {how}", soft_wrap=True
        )
    for promotion in refused:
        console.print(promotion.problem, markup=False, soft_wrap=True)
        annotate("error", "release", promotion.problem)
    if not promotions:
        console.print("Nothing to release: no adapter's weights differ from what is served.")
    summarize(
        "## Release\n\n"
        + "".join(
            f"- {inline(f'{promotion.adapter}: {str(promotion.digest)[:12]}')}\n"
            for promotion in ready
        )
        + "".join(f"- {inline(promotion.problem)}\n" for promotion in refused)
        + ("" if promotions else "Nothing to release.\n")
    )
    set_outputs(
        adapters=json.dumps(
            [{"adapter": promotion.adapter, "digest": promotion.digest} for promotion in ready]
        )
    )
    if into:
        for promotion in promotions:
            judgement = fetch_promotion(store, promotion, ROOT, into, trust)
            # What is a release already is not published again; where its rules changed since, there
            # may be no verdict at hand.
            set_outputs(
                publish=json.dumps(not promotion.released),
                pr=(judgement or {"source": {"pr": None}})["source"]["pr"] or "",
            )
    return 1 if refused else 0


if __name__ == "__main__":
    main()
