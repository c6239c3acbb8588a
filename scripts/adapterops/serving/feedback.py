"""Thumbs on answers: which version gave an answer is remembered for a while, and each answer is counted once."""

from __future__ import annotations

from collections import OrderedDict

from adapterops.serving.routes import Version

_REMEMBERED = 65_536


class Feedback:
    """The last answers, by key and request id; memory is bounded."""

    def __init__(self) -> None:
        self._answers: OrderedDict[tuple[str, str], Version | None] = OrderedDict()

    def remember(self, key: str, request_id: str, version: Version) -> None:
        """An answer that can be rated; the same id again is the new answer."""
        self._answers[key, request_id] = version
        self._answers.move_to_end((key, request_id))
        if len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)

    def forget(self, key: str, request_id: str) -> None:
        """It was no answer after all."""
        self._answers.pop((key, request_id), None)

    def rate(self, key: str, response_id: str) -> tuple[bool, Version | None]:
        """Take the answer's one vote.

        Args:
            key: name of the API key that the answer was given to.
            response_id: `id` of the response, or its `x-request-id`; the engine makes the former from the latter.

        Returns:
            Whether the answer is known, and its version if it had not been rated yet.
        """
        request_id = response_id.removeprefix("chatcmpl-").removeprefix("cmpl-")
        found = next((name for name in (request_id, request_id.rpartition("-")[0]) if (key, name) in self._answers), None)
        if found is None:
            return False, None
        version = self._answers[key, found]
        self._answers[key, found] = None
        return True, version
