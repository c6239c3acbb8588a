"""What an engine says of its queue and its cache, handed to anyone who asks, at a cost that does
not grow with how many ask.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import aiohttp

_FRESH_S = 0.1  # a scheduler looks some times a second
_OLDEST_S = 5.0  # and does better with what was true a moment ago than with nothing
_TIMEOUT_S = 5.0
_WAITING = 8  # who asks without a key must not hold connections while an engine hangs


@dataclass(frozen=True)
class Said:
    """An engine's answer, and when it came."""

    status: int
    content: bytes
    kind: str
    at: float


class EngineMetrics:
    """One question to the engine at a time, whose answer all askers share.

    Args:
        url: root of the engine.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._asking: asyncio.Task[Said] | None = None
        self._last: Said | None = None
        self._waiting = 0

    async def read(self, client: aiohttp.ClientSession) -> Said:
        """The engine's metrics of the last moments.

        Args:
            client: for the engine.

        Raises:
            aiohttp.ClientError or TimeoutError: it does not answer.
        """
        now = asyncio.get_running_loop().time()
        age = now - self._last.at if self._last else _OLDEST_S
        if age < _FRESH_S and self._last:
            return self._last
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(client))
            self._asking.add_done_callback(
                lambda task: task.cancelled() or task.exception()
            )  # nobody may be left to hear it
        if age < _OLDEST_S and self._last:
            return self._last
        if self._waiting >= _WAITING:
            raise TimeoutError
        self._waiting += 1
        try:
            return await asyncio.shield(self._asking)  # who leaves takes it from nobody
        finally:
            self._waiting -= 1

    async def _ask(self, client: aiohttp.ClientSession) -> Said:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        async with client.get(f"{self._url}/metrics", timeout=timeout) as answer:
            content, kind = await answer.read(), answer.headers.get("content-type", "text/plain")
        self._last = Said(answer.status, content, kind, asyncio.get_running_loop().time())
        return self._last
