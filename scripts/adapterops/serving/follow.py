"""Follow the channels: what should be served, as the store says it, or said it last."""

from __future__ import annotations

import json
from pathlib import Path

from adapterops.documents import write_json
from adapterops.errors import InfrastructureError
from adapterops.schemas import schema_problems
from adapterops.serving.state import Followed
from adapterops.store.channels import Channel, channel_document, channel_from, read_channel
from adapterops.store.objects import ObjectStore


class Follower:
    """Reads the channels of some adapters; touches no engine, so that a change of routes waits for none.

    Args:
        store: where the channels lie.
        directory: where the last seen ones are kept, for a restart without the store.
    """

    def __init__(self, store: ObjectStore, directory: Path) -> None:
        self._store = store
        self._directory = directory
        self._last: dict[str, Channel] = {}
        self._unkept: set[str] = set()

    def look(self, adapter: str) -> Followed:
        """The channel now; where the store does not say, the one seen last, also by an earlier process."""
        errors: list[str] = []
        try:
            found = read_channel(self._store, adapter)
        except InfrastructureError as error:
            found = None
            errors.append(f"serving what was seen last: {error}")
        if found is None:
            last = self.last(adapter)
            if last.generation and not errors:
                errors.append(f"the channel is gone from bucket {self._store.bucket}; serving what was seen last.")
            return Followed(last, tuple(errors))
        channel = found[0]
        if channel != self._last.get(adapter):
            self._last[adapter] = channel
            self._unkept.add(adapter)
        if adapter in self._unkept:  # again at every look: a full disk must not leave a version there that was rolled back since
            try:
                write_json(self._record(adapter), channel_document(channel), "channel")
                self._unkept.discard(adapter)
            except OSError as error:
                errors.append(f"the channel cannot be kept for a restart without the store: {error}")
        return Followed(channel, tuple(errors))

    def last(self, adapter: str) -> Channel:
        """The channel as it was seen last, also by an earlier process; an empty one if it never was."""
        return self._last.get(adapter) or self._recorded(adapter) or Channel(adapter)

    def _record(self, adapter: str) -> Path:
        return self._directory / f"{adapter}.json"

    def _recorded(self, adapter: str) -> Channel | None:
        try:
            document = json.loads(self._record(adapter).read_bytes())
        except (OSError, ValueError):
            return None
        return None if schema_problems(document, "channel") else channel_from(document)
