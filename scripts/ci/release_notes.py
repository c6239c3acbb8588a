"""Write the notes of a release."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

import click

from adapterops.command import command, console


@command()
@click.option("--adapter", required=True, help="An adapter of adapters/, by name.")
@click.option("--version", required=True, help="Digest of a release.")
@click.option("--repository", "name", help="owner/name. Default: $GITHUB_REPOSITORY.")
@click.option("--bucket", help="S3 bucket. Default: $ADAPTER_BUCKET.")
def main(adapter: str, version: str, name: str | None, bucket: str | None) -> None:
    """Make the GitHub release `<adapter>-<first 12 digits>` with the manifest's facts; one that is
    there is left as it is.

    \b
    Example:
      python scripts/ci/release_notes.py --adapter support-demo --version 1a2b3c… \\
          --repository your-org/qlora-gitops
    """
    from github import UnknownObjectException

    from adapterops.errors import RejectedError
    from adapterops.git_tree import resolve
    from adapterops.gitops.github import repository
    from adapterops.gitops.notes import notes
    from adapterops.schemas import ROOT
    from adapterops.store.objects import open_store
    from adapterops.store.releases import find_release, find_version

    store = open_store(bucket)
    digest = find_version(store, adapter, version)
    manifest = find_release(store, adapter, digest)
    if manifest is None:
        raise RejectedError(f"{adapter}: version {digest[:12]} is not published.")
    tag = f"{adapter}-{digest[:12]}"
    with repository(name) as repo:
        try:
            console.print(f"{repo.get_release(tag).html_url}: there already")
            return
        except UnknownObjectException:
            pass
        release = repo.create_git_release(
            tag, tag, notes(manifest, store.bucket), target_commitish=resolve("HEAD", ROOT)
        )
        console.print(release.html_url, soft_wrap=True)


if __name__ == "__main__":
    main()
