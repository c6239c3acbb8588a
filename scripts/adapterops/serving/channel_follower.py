"""Follow the channels: what should be served, as the store says it, or said it last; never a former
state, never what is withdrawn.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TypeVar

from adapterops.documents import write_json
from adapterops.errors import AdapterOpsError, InfrastructureError, RejectedError
from adapterops.schemas import schema_of, schema_problems
from adapterops.serving.state import Followed
from adapterops.shapes.channel import Channel as ChannelDocument
from adapterops.shapes.withdrawn import Withdrawn as WithdrawnDocument
from adapterops.signing import Trust
from adapterops.store.channels import Channel, channel_document, channel_from, read_channel, without
from adapterops.store.objects import ObjectStore
from adapterops.store.withdrawn import Withdrawn, from_document, read_list

T = TypeVar("T")  # a shape: one of the TypedDicts of `adapterops.shapes`


class Follower:
    """Reads the channels of some adapters; touches no engine, so that a change of routes waits for
    none.

    Who writes channels may put a former one back, and who writes the list of withdrawn releases a
    former one, or none. Generations therefore only grow here, and so does what is withdrawn; both
    are on disk before they count, also for the next process.

    Args:
        store: where channels and lists lie.
        directory: where the last seen ones are kept.
        trust: whose signature a list of withdrawn releases must carry; None asks for none.
    """

    def __init__(self, store: ObjectStore, directory: Path, trust: Trust | None = None) -> None:
        self._store = store
        self._directory = directory
        self._trust = trust
        self._last: dict[str, Channel] = {}
        self._withdrawn: dict[str, Withdrawn] = {}
        self._unkept: set[str] = set()
        self._lists: dict[
            str, tuple[bytes | None, str]
        ] = {}  # the last one that was judged, and what is wrong with it

    def look(self, adapter: str) -> Followed:
        """The channel now; where the store does not say, or says something older, the one seen
        last, also by an earlier process.
        """
        errors: list[str] = []
        channel, refused = self._read_channel(adapter, errors)
        self._read_list(adapter, errors)
        self._keep(adapter, errors)
        return self._followed(adapter, channel, tuple(errors), refused)

    def remembered(self, adapter: str) -> Followed:
        """What was seen last, also by an earlier process, before the first look."""
        return self._followed(adapter, self.last(adapter), ("not looked at yet",), refused=False)

    def last(self, adapter: str) -> Channel:
        """The channel as it was seen last, also by an earlier process; an empty one if it never
        was.
        """
        if adapter not in self._last:
            document = self._recorded(f"{adapter}.json", ChannelDocument)
            self._last[adapter] = channel_from(document) if document else Channel(adapter)
        return self._last[adapter]

    def withdrawn(self, adapter: str) -> Withdrawn:
        """All that was ever seen on its list of withdrawn releases, also by an earlier process."""
        if adapter not in self._withdrawn:
            document = self._recorded(f"{adapter}.withdrawn.json", WithdrawnDocument)
            content = json.dumps(document).encode() if document else b""
            self._withdrawn[adapter] = (
                from_document(content, "", adapter, None) if document else Withdrawn()
            )
        return self._withdrawn[adapter]

    def _read_channel(self, adapter: str, errors: list[str]) -> tuple[Channel, bool]:
        """The channel that counts, and whether the store has one that does not."""
        last = self.last(adapter)
        try:
            found = read_channel(self._store, adapter)
        except InfrastructureError as error:
            errors.append(f"serving what was seen last: {error}")
            return last, False
        if found is None:
            if last.generation:
                errors.append(
                    f"the channel is gone from bucket {self._store.bucket}; serving what was seen"
                    " last."
                )
            return last, False
        channel = found[0]
        if channel.generation < last.generation or (
            channel.generation == last.generation and channel != last
        ):
            what = "another" if channel.generation == last.generation else "a former"
            errors.append(
                f"refused: bucket {self._store.bucket} has {what} generation {channel.generation}"
                f" of the channel, and this host has seen {last.generation}; serving what was seen"
                " last. If the bucket was restored on purpose: python scripts/adapters.py renumber"
                f" {adapter} --above {last.generation}. See docs/runbooks/channel-refused.md"
            )
            return last, True
        if channel != last:
            self._last[adapter] = channel
            self._unkept.add(adapter)
        return channel, False

    def _read_list(self, adapter: str, errors: list[str]) -> None:
        """Add to what is withdrawn what the store's list says, if its signature holds; it takes
        nothing away.
        """
        known = self.withdrawn(adapter)
        try:
            found = read_list(self._store, adapter)
        except InfrastructureError as error:
            errors.append(
                "the list of withdrawn releases cannot be read; what was on it stays withdrawn:"
                f" {error}"
            )
            return
        if found is None:
            if known.number:
                errors.append(
                    f"the list of withdrawn releases is gone from bucket {self._store.bucket}; what"
                    " was on it stays withdrawn."
                )
            return
        judged, problem = self._lists.get(adapter, (None, ""))
        if judged != found.content:
            try:
                listed, problem = (
                    from_document(found.content, self._store.bucket, adapter, self._trust),
                    "",
                )
            except RejectedError as error:
                listed, problem = Withdrawn(), str(error)
            except (
                AdapterOpsError
            ) as error:  # Sigstore, or a public key that is not there: it is judged again
                errors.append(f"the list of withdrawn releases cannot be judged: {error}")
                return
            if not problem and listed.number < known.number:
                problem = (
                    f"bucket {self._store.bucket} has list {listed.number} of withdrawn releases,"
                    f" and this host has seen {known.number}; what was on it stays withdrawn. See"
                    " docs/runbooks/withdraw-release.md"
                )
            self._lists[adapter] = (found.content, problem)
            joined = known.joined(listed)
            if joined != known:
                self._withdrawn[adapter] = joined
                self._unkept.add(adapter)
        if problem:
            errors.append(problem)

    def _keep(self, adapter: str, errors: list[str]) -> None:
        """Write down what is new, again at every look: a full disk must not leave a version there
        that was rolled back since.
        """
        if adapter not in self._unkept:
            return
        try:
            if (channel := self.last(adapter)).generation:
                self._write(f"{adapter}.json", channel_document(channel), ChannelDocument)
            if (withdrawn := self.withdrawn(adapter)).number:
                document = withdrawn.document(adapter)
                self._write(f"{adapter}.withdrawn.json", document, WithdrawnDocument)
            self._unkept.discard(adapter)
        except OSError as error:
            errors.append(f"the channel cannot be kept for a restart without the store: {error}")

    def _write(self, name: str, document: T, shape: type[T]) -> None:
        write_json(self._directory / name, document, shape)
        handle = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)  # the new name too, or a power cut brings the former generation back
        finally:
            os.close(handle)

    def _followed(
        self, adapter: str, channel: Channel, errors: tuple[str, ...], refused: bool
    ) -> Followed:
        entries = self.withdrawn(adapter).releases
        named = {
            digest: entries[digest]["reason"] for digest in channel.versions if digest in entries
        }
        instead = without(channel, entries).stable
        served = (
            f"{instead[:12]} is served"
            if instead and instead not in entries
            else "nothing is served"
        )
        notes = tuple(
            f"{digest[:12]} is withdrawn ({reason})"
            + (f"; instead of it {served}" if digest == channel.stable else "")
            for digest, reason in named.items()
        )
        return Followed(channel, errors, notes, frozenset(entries), refused)

    def _recorded(self, name: str, shape: type[T]) -> T | None:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            document: T = json.loads((self._directory / name).read_bytes())
            if not schema_problems(document, schema_of(shape)):
                return document
        return None
