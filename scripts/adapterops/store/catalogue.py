"""What is released and served, since when and by whom; and what of it nobody needs any more."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from adapterops.shapes.release_manifest import Source
from adapterops.store.channels import Channel, history, last_generations, read_channel
from adapterops.store.objects import ObjectStore
from adapterops.store.releases import MANIFEST, find_release

_CHANNEL = re.compile(r"channels/([a-z0-9][a-z0-9-]{0,62})\.json")
_OBJECT = re.compile(r"adapters/([a-z0-9][a-z0-9-]{0,62})/sha256-([0-9a-f]{64})/([^/]+)")


@dataclass(frozen=True)
class Garbage:
    """Objects of one version that nothing names.

    Args:
        adapter: whose.
        digest: of the version.
        keys: the manifest first: without it there is no release.
        why: in a few words.
    """

    adapter: str
    digest: str
    keys: tuple[str, ...]
    why: str


def adapter_names(store: ObjectStore) -> list[str]:
    """Every adapter that has a channel or a release."""
    names = {match[1] for key in store.keys("channels/") if (match := _CHANNEL.fullmatch(key))}
    names |= {match[1] for key in store.keys("adapters/") if (match := _OBJECT.fullmatch(key))}
    return sorted(names)


@dataclass(frozen=True)
class Served:
    """One adapter's present state.

    Args:
        adapter: its name.
        channel: what is served, None if nothing ever was.
        since: the generation since which the stable version is stable.
        source: where the stable version came from.
    """

    adapter: str
    channel: Channel | None = None
    since: Channel | None = None
    source: Source | None = None


def served(store: ObjectStore, name: str) -> Served:
    """What an adapter's channel names, since when, and where that came from."""
    found = read_channel(store, name)
    if found is None:
        return Served(name)
    channel = found[0]
    since = None
    for entry in history(store, name):
        since = since if since and since.stable == entry.stable else entry
    manifest = find_release(store, name, channel.stable) if channel.stable else None
    return Served(name, channel, since or channel, manifest["source"] if manifest else None)


def garbage(
    store: ObjectStore,
    name: str | None = None,
    *,
    generations: int,
    min_age_days: float,
    now: datetime.datetime | None = None,
) -> list[Garbage]:
    """Versions that neither a channel nor its last generations name, and unfinished uploads.

    Args:
        store: where.
        name: of the only adapter to look at; None looks at all.
        generations: how many of the audit log's last entries of each adapter keep what they name.
        min_age_days: nothing with an object younger than this is garbage: it may be about to be
            deployed.
        now: for tests.

    Raises:
        InfrastructureError: the store, or a damaged channel or audit entry: then nothing is known
            to be garbage.
    """
    limit = (now or datetime.datetime.now(datetime.UTC)) - datetime.timedelta(days=min_age_days)
    objects: dict[tuple[str, str], list[tuple[str, datetime.datetime]]] = {}
    for key, written in store.entries(f"adapters/{name}/" if name else "adapters/"):
        if match := _OBJECT.fullmatch(key):
            objects.setdefault((match[1], match[2]), []).append((key, written))
    kept = {
        (owner, digest)
        for owner in {owner for owner, _ in objects}
        for digest in _named(store, owner, generations)
    }
    found = []
    for (owner, digest), entries in sorted(objects.items()):
        if (owner, digest) in kept or any(written > limit for _, written in entries):
            continue
        keys = sorted((key for key, _ in entries), key=lambda key: not key.endswith(f"/{MANIFEST}"))
        whole = keys[0].endswith(f"/{MANIFEST}")
        found.append(
            Garbage(
                owner,
                digest,
                tuple(keys),
                "named by no generation that is kept" if whole else "an upload without a manifest",
            )
        )
    return found


def _named(store: ObjectStore, name: str, generations: int) -> set[str]:
    """Digests that the channel or its last generations name."""
    found = read_channel(store, name)
    entries = [*last_generations(store, name, generations), *([found[0]] if found else [])]
    return {
        digest for entry in entries for digest in (*entry.versions, entry.rolled_back) if digest
    }


def remove(store: ObjectStore, item: Garbage) -> None:
    """Delete a version's objects, the manifest first: what is left of an interrupted removal is no
    release, and garbage next time.
    """
    for key in item.keys:
        store.delete(key)
