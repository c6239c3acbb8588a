"""Channels: one small document an adapter says what should be served; it changes by compare-and-swap alone."""

from __future__ import annotations

import dataclasses
import datetime
import getpass
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from adapterops.errors import InfrastructureError, RejectedError
from adapterops.schemas import schema_problems
from adapterops.store.objects import ConflictError, ObjectStore, json_or_none

_ATTEMPTS = 20


@dataclass(frozen=True)
class Channel:
    """Desired state of one adapter.

    Args:
        adapter: its name.
        generation: counts changes; the audit log has one entry a generation.
        stable: digest that is served to all that the canary does not get.
        canary: digest under trial.
        weight: percent of requests that the canary gets.
        previous: digest that was stable before.
        updated_at: ISO 8601, UTC.
        updated_by: who asked for it.
        reason: why.
    """

    adapter: str
    generation: int = 0
    stable: str | None = None
    canary: str | None = None
    weight: int = 0
    previous: str | None = None
    updated_at: str = ""
    updated_by: str = ""
    reason: str = ""

    @property
    def versions(self) -> tuple[str, ...]:
        """Digests that a serving host holds ready, the stable one first."""
        return tuple(dict.fromkeys(version for version in (self.stable, self.canary, self.previous) if version))


def start_canary(channel: Channel, digest: str, weight: int) -> Channel:
    """Put a version on trial, or change the weight of the one that is.

    Raises:
        RejectedError: another canary is under way.
    """
    if channel.canary not in (None, digest):
        raise RejectedError(
            f"{channel.adapter}: canary {str(channel.canary)[:12]} is under way. Wait for its end, or abort it with --abort."
        )
    return replace(channel, canary=digest, weight=weight)


def promote(channel: Channel, digest: str) -> Channel:
    """Make a version the stable one; the former one is kept as `previous`."""
    previous = channel.previous if channel.stable == digest else channel.stable
    return replace(channel, stable=digest, previous=previous, canary=None, weight=0)


def abort_canary(channel: Channel) -> Channel:
    """End the trial; everything goes to the stable version again."""
    return replace(channel, canary=None, weight=0)


def roll_back(channel: Channel) -> Channel:
    """Serve the previous version again; the one that was stable becomes `previous`.

    Raises:
        RejectedError: there is no previous version.
    """
    if channel.previous is None:
        raise RejectedError(f"{channel.adapter}: there is no previous version to roll back to.")
    return replace(channel, stable=channel.previous, previous=channel.stable, canary=None, weight=0)


def read_channel(store: ObjectStore, name: str) -> tuple[Channel, str] | None:
    """The channel and its entity tag, or None if the adapter has none yet.

    Raises:
        InfrastructureError: the store, or a document that breaks its schema.
    """
    fetched = store.get(f"channels/{name}.json")
    if fetched is None:
        return None
    document = json_or_none(fetched)
    problems = schema_problems(document, "channel")
    if problems or document["adapter"] != name:
        raise InfrastructureError(
            f"s3://{store.bucket}/channels/{name}.json is not a valid channel: {problems[0] if problems else 'it is of another adapter'}"
        )
    return channel_from(document), fetched.etag


def channel_from(document: dict[str, Any]) -> Channel:
    """A channel from its (valid) document."""
    return Channel(**{field.name: document[field.name] for field in dataclasses.fields(Channel)})


def channel_document(channel: Channel) -> dict[str, Any]:
    """`configs/schemas/channel.json`."""
    return {"schema": "channel/v1", **dataclasses.asdict(channel)}


def change_channel(
    store: ObjectStore, name: str, change: Callable[[Channel], Channel], *, reason: str, actor: str | None = None
) -> Channel:
    """Read, change, compare-and-swap; after a lost race read and change again.

    A change that alters nothing writes nothing. Each generation gets an audit entry; one that a process left unwritten when it
    died is written by the next change.

    Args:
        store: where the channel lies.
        name: adapter name.
        change: from the present channel (empty at first) to the wanted one; may raise to give up.
        reason: why, for the audit log.
        actor: who; None takes the GitHub actor or the user.

    Raises:
        InfrastructureError: the store, or a race lost 20 times.
    """
    for _ in range(_ATTEMPTS):
        found = read_channel(store, name)
        present, etag = found if found else (Channel(name), None)
        wanted = change(present)
        if wanted == present:
            return present
        if etag:
            _audit(store, present)
        new = replace(
            wanted,
            generation=present.generation + 1,
            updated_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            updated_by=actor or os.environ.get("GITHUB_ACTOR") or getpass.getuser(),
            reason=reason,
        )
        try:
            store.swap(f"channels/{name}.json", _content(new), etag)
        except ConflictError:
            continue
        _audit(store, new)
        return new
    raise InfrastructureError(f"channel {name}: lost the race for the write {_ATTEMPTS} times. Is another deployment running?")


def history(store: ObjectStore, name: str) -> Iterator[Channel]:
    """Every generation, the oldest first."""
    for key in sorted(store.keys(f"audit/{name}/")):
        document = json_or_none(store.get(key))
        if not schema_problems(document, "channel"):
            yield channel_from(document)


def _audit(store: ObjectStore, channel: Channel) -> None:
    # The channel document carries who, when and why, so that its entry can be written by anyone, and is the same each time.
    store.put_new(f"audit/{channel.adapter}/{channel.generation:09d}.json", _content(channel), "application/json")


def _content(channel: Channel) -> bytes:
    return (json.dumps(channel_document(channel), indent=2, ensure_ascii=False) + "\n").encode()
