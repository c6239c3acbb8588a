"""The adapter in production: what the channel calls stable, fetched and verified."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from adapterops.errors import RejectedError
from adapterops.signing import Trust
from adapterops.specs.adapter import load_adapter
from adapterops.specs.serving import load_serving_config
from adapterops.store.channels import read_channel
from adapterops.store.objects import ObjectStore, open_store
from adapterops.store.releases import adapter_digest, fetch_release, find_release


@dataclass(frozen=True)
class Production:
    """What a candidate is compared with.

    Args:
        directory: adapter directory, or None where there is nothing to compare with.
        digest: of the adapter, likewise.
        note: where it comes from, or why there is none; shown in the report.
    """

    directory: Path | None
    digest: str | None
    note: str


NONE = Production(None, None, "No adapter in production was given to compare with.")


def production_from_directory(directory: Path, candidate: str) -> Production:
    """An adapter directory; the candidate itself is nothing to compare with.

    Raises:
        UsageError: not an adapter directory.
    """
    digest = adapter_digest(directory)
    if digest == candidate:
        return Production(None, None, "The candidate is the adapter in production.")
    return Production(directory, digest, f"Given as {directory}.")


def production_from_channel(
    store: ObjectStore,
    name: str,
    base_model: str,
    root: Path,
    candidate: str,
    trust: Trust | None = None,
) -> Production:
    """The channel's stable version, kept under `root`.

    With `trust`, whose signature it must carry, one that does not is an error and no reason to
    compare with nothing: else who rewrites its manifest, or names another version in the channel,
    takes away what candidates must not be worse than.

    Raises:
        RejectedError: it is not published, or not signed by whom we trust.
        UsageError: the public key is not on this machine.
        InfrastructureError: the store.
    """
    found = read_channel(store, name)
    stable = found[0].stable if found else None
    if stable is None:
        return Production(
            None, None, f"Nothing is in production yet: channel {name} has no stable version."
        )
    if stable == candidate:
        return Production(None, None, "The candidate is the adapter in production.")
    if trust:
        try:
            claimed = find_release(store, name, stable)
            if claimed is None:
                raise RejectedError(f"it is not published in bucket {store.bucket}.")
            fetch_release(
                store, name, stable, root, base_model=claimed["base_model"]["name"], trust=trust
            )
        except RejectedError as error:
            raise RejectedError(
                f"{name}: nothing can be compared with the stable version {stable[:12]} of its"
                f" channel: {error} Mend channel or release first."
            ) from None
    try:
        directory, _ = fetch_release(store, name, stable, root, base_model=base_model, trust=trust)
    except RejectedError as error:
        return Production(None, None, f"Not comparable: {error}")
    return Production(directory, stable, f"Stable version of channel {name}.")


def named_production(name: str, bucket: str | None, candidate: str, root: Path) -> Production:
    """The stable version of an adapter of `adapters/`.

    Args:
        name: the adapter.
        bucket: S3 bucket; None takes `$ADAPTER_BUCKET`, else the serving configuration's.
        candidate: digest of the adapter under evaluation.
        root: where releases are kept.

    Raises:
        UsageError: no such adapter.
        InfrastructureError: the store.
    """
    spec = load_adapter(name)
    config = load_serving_config(spec.serving)
    store = open_store(bucket or os.environ.get("ADAPTER_BUCKET") or config.bucket)
    return production_from_channel(store, name, config.base_model.name, root, candidate)
