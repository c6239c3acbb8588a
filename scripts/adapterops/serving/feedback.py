"""Thumbs on answers: which version gave an answer is remembered for a while, each answer counts
once, and a key has so many a minute.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

from adapterops.serving.api_keys import ApiKey
from adapterops.serving.routes import Version

_REMEMBERED = 65_536  # answers, of all keys together


class TooManyThumbsError(Exception):
    """The key has cast what counts of its votes in this minute."""


@dataclass
class _OfKey:
    """The answers that one key was given and may rate, oldest first; None is one that was rated."""

    answers: OrderedDict[str, Version | None] = field(default_factory=OrderedDict)
    minute: int = 0
    thumbs: int = 0


class Feedback:
    """The last answers, by key and request id; memory is bounded, and one key's answers push out
    its own first.
    """

    def __init__(self) -> None:
        self._keys: dict[str, _OfKey] = {}
        self._count = 0

    def remember(self, key: str, request_id: str, version: Version) -> None:
        """An answer that can be rated; the same id again is the new answer."""
        answers = self._keys.setdefault(key, _OfKey()).answers
        self._count += request_id not in answers
        answers[request_id] = version
        answers.move_to_end(request_id)
        if self._count > _REMEMBERED:
            most = max(self._keys.values(), key=lambda known: len(known.answers))
            most.answers.popitem(last=False)
            self._count -= 1

    def forget(self, key: str, request_id: str) -> None:
        """It was no answer after all."""
        if key in self._keys and request_id in self._keys[key].answers:
            del self._keys[key].answers[request_id]
            self._count -= 1

    def rate(self, key: ApiKey, response_id: str) -> tuple[bool, Version | None]:
        """Take the answer's one vote.

        Args:
            key: that the answer was given to.
            response_id: `id` of the response, or its `x-request-id`; the engine makes the former
                from the latter.

        Returns:
            Whether the answer is known, and its version if it had not been rated yet.

        Raises:
            TooManyThumbsError: the vote is beyond the key's `thumbs_per_minute`; the answer keeps
                it.
        """
        known = self._keys.get(key.name, _OfKey())
        request_id = response_id.removeprefix("chatcmpl-").removeprefix("cmpl-")
        found = next(
            (name for name in (request_id, request_id.rpartition("-")[0]) if name in known.answers),
            None,
        )
        if found is None:
            return False, None
        version = known.answers[found]
        if version is None:
            return True, None
        minute = int(time.monotonic() // 60)
        known.minute, known.thumbs = minute, known.thumbs if known.minute == minute else 0
        if known.thumbs >= key.limits.thumbs_per_minute:
            raise TooManyThumbsError
        known.thumbs += 1
        known.answers[found] = None
        return True, version
