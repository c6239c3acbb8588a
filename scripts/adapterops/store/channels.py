"""Channels: one small document an adapter says what is served; it changes by compare-and-swap."""

from __future__ import annotations

import datetime
import getpass
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.schemas import schema_problems
from adapterops.shapes.channel import Channel as ChannelDocument
from adapterops.store.objects import ConflictError, ObjectStore
from adapterops.store.signed import parse, text_of

_ATTEMPTS = 20
_CHANNEL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Channel:
    """Desired state of one adapter.

    Args:
        adapter: its name.
        generation: counts changes; the audit log has one entry a generation.
        stable: digest that is served to all that the canary does not get.
        canary: digest under trial.
        weight: percent of requests that the canary gets.
        previous: digest that was stable before, and that a rollback leads to.
        rolled_back: digest that was left by a rollback; nothing leads back to it but a deployment.
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
    rolled_back: str | None = None
    updated_at: str = ""
    updated_by: str = ""
    reason: str = ""

    @property
    def versions(self) -> tuple[str, ...]:
        """Digests that a serving host holds ready, the stable one first."""
        return tuple(
            dict.fromkeys(
                version for version in (self.stable, self.canary, self.previous) if version
            )
        )


def start_canary(channel: Channel, digest: str, weight: int) -> Channel:
    """Put a version on trial, or change the weight of the one that is.

    Raises:
        RejectedError: another canary is under way.
    """
    if channel.canary not in (None, digest):
        raise RejectedError(
            f"{channel.adapter}: canary {str(channel.canary)[:12]} is under way. Wait for its end,"
            " or abort it with --abort."
        )
    return replace(channel, canary=digest, weight=weight)


def promote(channel: Channel, digest: str) -> Channel:
    """Make a version the stable one; the former one is kept as `previous`."""
    previous = channel.previous if channel.stable == digest else channel.stable
    return replace(
        channel, stable=digest, previous=previous, canary=None, weight=0, rolled_back=None
    )


def abort_canary(channel: Channel) -> Channel:
    """End the trial; everything goes to the stable version again."""
    return replace(channel, canary=None, weight=0)


def without(channel: Channel, withdrawn: Collection[str]) -> Channel:
    """The channel without versions that are withdrawn: a trial ends, and the previous version takes
    the stable one's place.

    Where there is no previous version the withdrawn one stays the stable one by name, and nothing
    is served.
    """
    previous = None if channel.previous in withdrawn else channel.previous
    canary = None if channel.canary in withdrawn else channel.canary
    left = replace(
        channel, previous=previous, canary=canary, weight=channel.weight if canary else 0
    )
    if previous and channel.stable in withdrawn:
        return replace(left, stable=previous, previous=None, rolled_back=channel.stable)
    return left


def roll_back(
    store: ObjectStore, name: str, *, actor: str | None = None, withdrawn: Collection[str] = ()
) -> Channel:
    """Serve the previous version again; the version that is left is noted in `rolled_back`, and no
    rollback leads back to it.

    What is rolled back to what is decided once, at the first look: a rollback that somebody else
    did meanwhile, or that is asked for again (a repeated command, a CI job run anew, another canary
    that failed in between), is done already.

    Args:
        store: where the channel lies.
        name: of the adapter.
        actor: who; None takes the GitHub actor or the user.
        withdrawn: digests that nothing goes back to.

    Returns:
        The channel, as it is where there was nothing left to do.

    Raises:
        RejectedError: there is no previous version, it is withdrawn, or another version became
            stable meanwhile.
        InfrastructureError: as `change_channel`.
    """
    found = read_channel(store, name)
    if found and found[0].rolled_back and found[0].canary is None:
        return found[0]
    if (
        found is None
        or found[0].stable is None
        or (found[0].previous is None and found[0].rolled_back is None)
    ):
        raise RejectedError(f"{name}: there is no previous version to roll back to.")
    left, target = found[0].stable, found[0].previous
    if target in withdrawn:
        raise RejectedError(
            f"{name}: the previous version {str(target)[:12]} is withdrawn. Deploy another one with"
            " --version."
        )
    if target is None:
        return change_channel(
            store, name, abort_canary, reason="rollback: the canary ends", actor=actor
        )

    def change(channel: Channel) -> Channel:
        if channel.stable == target:
            return channel
        if channel.stable != left:
            raise RejectedError(
                f"{name}: not rolled back from {left[:12]} to {target[:12]}, for"
                f" {str(channel.stable)[:12]} became stable meanwhile (generation"
                f" {channel.generation}, by {channel.updated_by}: {channel.reason})."
            )
        return replace(
            channel, stable=target, previous=None, canary=None, weight=0, rolled_back=left
        )

    return change_channel(
        store, name, change, reason=f"rollback from {left[:12]} to {target[:12]}", actor=actor
    )


def read_channel(store: ObjectStore, name: str) -> tuple[Channel, str] | None:
    """The channel and its entity tag, or None if the adapter has none yet.

    Raises:
        InfrastructureError: the store, or a document that breaks its schema.
    """
    fetched = store.get(f"channels/{name}.json", _CHANNEL_BYTES)
    if fetched is None:
        return None
    channel, problem = _parse_channel(fetched.content, name)
    if channel is None:
        raise InfrastructureError(
            f"s3://{store.bucket}/channels/{name}.json is not a valid channel: {problem}"
        )
    return channel, fetched.etag


def _parse_channel(content: bytes, name: str) -> tuple[Channel | None, str]:
    """The channel in a document, or None and why there is none."""
    document, problem = parse(content, ChannelDocument)
    if document is None:
        return None, problem
    if document["adapter"] != name:
        return None, "it is of another adapter"
    return channel_from(document), ""


def channel_from(document: ChannelDocument) -> Channel:
    """A channel from its (valid) document."""
    return Channel(
        adapter=document["adapter"],
        # JSON has no whole numbers: to a schema 1.0 is one.
        generation=int(document["generation"]),
        stable=document["stable"],
        canary=document["canary"],
        weight=int(document["weight"]),
        previous=document["previous"],
        rolled_back=document["rolled_back"],
        updated_at=document["updated_at"],
        updated_by=document["updated_by"],
        reason=document["reason"],
    )


def channel_document(channel: Channel) -> ChannelDocument:
    """The channel as its document."""
    return {
        "schema": "channel/v1",
        "adapter": channel.adapter,
        "generation": channel.generation,
        "stable": channel.stable,
        "canary": channel.canary,
        "weight": channel.weight,
        "previous": channel.previous,
        "rolled_back": channel.rolled_back,
        "updated_at": channel.updated_at,
        "updated_by": channel.updated_by,
        "reason": channel.reason,
    }


def who() -> str:
    """Who acts: the GitHub actor, else the user."""
    return os.environ.get("GITHUB_ACTOR") or getpass.getuser()


def change_channel(
    store: ObjectStore,
    name: str,
    change: Callable[[Channel], Channel],
    *,
    reason: str,
    actor: str | None = None,
    above: int = -1,
) -> Channel:
    """Read, change, compare-and-swap; after a lost race read and change again.

    A change that alters nothing writes nothing. Each generation gets an audit entry; one that a
    process left unwritten when it died is written by the next change. Where the channel was
    deleted, generations go on after the last one in the audit log.

    Args:
        store: where the channel lies.
        name: adapter name.
        change: from the present channel (empty at first) to the wanted one; may raise to give up.
        reason: why, for the audit log.
        actor: who; None takes the GitHub actor or the user.
        above: a generation that hosts have seen, of a bucket that was restored since: the new one
            is higher.

    Raises:
        UsageError: the wanted channel breaks its schema; nothing is written.
        RejectedError: an audit entry holds something else already; or from `change`.
        InfrastructureError: the store, or a race lost 20 times.
    """
    for _ in range(_ATTEMPTS):
        found = read_channel(store, name)
        present, etag = found if found else (_empty(store, name), None)
        wanted = change(present)
        if wanted == present and present.generation > above:
            return present
        if etag:
            _audit(store, present)
        new = replace(
            wanted,
            generation=max(present.generation, above) + 1,
            updated_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
            updated_by=actor or who(),
            reason=reason,
        )
        if _write(store, name, new, etag):
            _audit(store, new)
            return new
    raise InfrastructureError(
        f"channel {name}: lost the race for the write {_ATTEMPTS} times. Is another deployment"
        " running?"
    )


def _empty(store: ObjectStore, name: str) -> Channel:
    """The channel before its first change, or after somebody deleted it."""
    return Channel(name, generation=max(_audit_keys(store, name), default=0))


def _write(store: ObjectStore, name: str, channel: Channel, etag: str | None) -> bool:
    """Whether the channel is written; not if somebody else wrote since `etag`.

    Raises:
        UsageError: it breaks its schema.
    """
    problems = schema_problems(channel_document(channel), "channel")
    if problems:
        raise UsageError(f"channel {name}: {problems[0]} Nothing is written.")
    try:
        store.swap(f"channels/{name}.json", _content(channel), etag)
    except ConflictError:
        return _happened(store, channel)
    return True


def history(
    store: ObjectStore, name: str, on_damaged: Callable[[str, str], object] | None = None
) -> Iterator[Channel]:
    """Every generation, the oldest first; `on_damaged` is told of the others, by key and reason."""
    for key in _audit_keys(store, name).values():
        if fetched := store.get(key, _CHANNEL_BYTES):
            channel, problem = _parse_channel(fetched.content, name)
            if channel:
                yield channel
            elif on_damaged:
                on_damaged(key, problem.rstrip("."))


def last_generations(store: ObjectStore, name: str, count: int) -> list[Channel]:
    """The last `count` entries of the audit log, the oldest first.

    Raises:
        InfrastructureError: the store, or one of them is damaged.
    """
    entries = []
    for key in list(_audit_keys(store, name).values())[-count:]:
        if fetched := store.get(key, _CHANNEL_BYTES):
            channel, problem = _parse_channel(fetched.content, name)
            if channel is None:
                raise InfrastructureError(
                    f"s3://{store.bucket}/{key} is not a valid audit entry, so that nobody knows"
                    f" what it names: {problem.rstrip('.')}. Bring the object's former version"
                    " back."
                )
            entries.append(channel)
    return entries


def _audit(store: ObjectStore, channel: Channel) -> None:
    # The channel document carries who, when and why, so that its entry can be written by anyone,
    # and is the same each time.
    store.put_new(_audit_key(channel), _content(channel), "application/json")


def _audit_key(channel: Channel) -> str:
    return f"audit/{channel.adapter}/{channel.generation:09d}.json"


def _audit_keys(store: ObjectStore, name: str) -> dict[int, str]:
    """Keys of the audit log by generation, the oldest first."""
    entry = re.compile(rf"audit/{re.escape(name)}/([0-9]+)\.json")
    return dict(
        sorted(
            (int(match.group(1)), key)
            for key in store.keys(f"audit/{name}/")
            if (match := entry.fullmatch(key))
        )
    )


def _happened(store: ObjectStore, channel: Channel) -> bool:
    """Whether a write that lost did happen: a PUT that is repeated after its answer got lost loses
    against itself.

    Who wrote since then has first put what was there into the audit log.
    """
    keys = (f"channels/{channel.adapter}.json", _audit_key(channel))
    return any(fetched.content == _content(channel) for key in keys if (fetched := store.get(key)))


def _content(channel: Channel) -> bytes:
    return text_of(channel_document(channel))
