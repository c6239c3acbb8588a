"""How much of a host one API key holds right now, so that it leaves the others theirs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from adapterops.serving.api_keys import ApiKey

_BODIES = 32  # of the largest size, which all keys together may have under way


class SlotsFullError(Exception):
    """The key has its share under way; the message says of what."""


class Slots:
    """Counts requests, sequences and bytes under way by key.

    A share never keeps a key from its first request, so a host with few slots serves everybody in
    turn.

    Args:
        requests: that the gateway has under way at most.
        body_bytes: of the largest request.
    """

    def __init__(self, requests: int, body_bytes: int) -> None:
        self._requests = requests
        self._bytes = _BODIES * body_bytes
        self._held: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def request(self, key: ApiKey) -> Iterator[None]:
        """A request of this key is under way.

        Raises:
            SlotsFullError: it has its share of them already.
        """
        with self._hold(key, "requests", 1, self._requests):
            yield

    @contextmanager
    def sequences(self, key: ApiKey, count: int, room: int) -> Iterator[None]:
        """Sequences of this key are in the engines.

        Args:
            key: whose.
            count: sequences that its request takes.
            room: sequences that the engines batch, all together.

        Raises:
            SlotsFullError: they are beyond its share.
        """
        with self._hold(key, "sequences", count, room):
            yield

    @contextmanager
    def body(self, key: ApiKey, size: int) -> Iterator[None]:
        """A question of so many bytes of this key is with an engine.

        An engine reads questions one after another, 3 s for a megabyte, however long its queue of
        them is.

        Raises:
            SlotsFullError: they are beyond its share.
        """
        with self._hold(key, "bytes", size, self._bytes):
            yield

    @contextmanager
    def _hold(self, key: ApiKey, what: str, count: int, room: int) -> Iterator[None]:
        share, held = key.limits.share, self._held[key.name, what]
        most = None if share is None else max(1, int(share * room))
        if most is not None and held and held + count > most:
            raise SlotsFullError(
                f"Key {key.name} has {held} {what} under way. Its share is {most}; this would be"
                f" {count} more."
            )
        self._held[key.name, what] += count
        try:
            yield
        finally:
            self._held[key.name, what] -= count
            if not self._held[key.name, what]:
                del self._held[key.name, what]
