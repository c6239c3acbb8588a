"""How soon a refusal is answered: a few at once, the others later and later.

The gateway has one core, and a refusal takes more of it than its sender spends. Who waits for one
sends nothing meanwhile, and who is waited for costs nothing.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable

from aiohttp import web

from adapterops.serving.api_keys import ApiKey

# Of an application: the key of an `Authorization` header.
FIND: web.AppKey[Callable[[str | None], ApiKey | None]] = web.AppKey("find")

LONGEST_S = 5.0  # that a refusal is kept back
_OPEN_LONGEST_S = 0.5  # that an answer which needs no key is: Kubernetes waits 1 s for /health
_AT_ONCE_S = 1.0  # a sender may save up this many seconds of its rate
_STRANGERS = 10  # rates of one address, for all addresses together
_SENDERS = 4096  # that are remembered; of IPv6 alone there are more than any memory holds
_AUTHORIZATION = re.compile(rb"\r\nauthorization:[ \t]*([^\r\n]+)", re.IGNORECASE)
_OPEN = (b"GET /health ", b"GET /engine/metrics ")


class Refusals:
    """Whose refusals wait, and how long.

    They count for the key, and for the address if there is no valid one: behind a load balancer all
    clients have its address. So who has a key waits for no stranger's refusals.

    Args:
        per_second: refusals of one address or key that are answered at once.
        find: the key of an `Authorization` header.
    """

    def __init__(self, per_second: float, find: Callable[[str | None], ApiKey | None]) -> None:
        self._find = find
        self._turns, self._strangers = Turns(per_second), Turns(_STRANGERS * per_second)

    def wait(self, address: str, authorization: str | None, status: int) -> float:
        """Take a turn for an answer; seconds to keep it back.

        Answers to a key are kept back if they refuse: 503 is the host's own fault, and a load
        balancer must hear it at once.
        """
        key, refused, now = self._find(authorization), 400 <= status < 500, time.monotonic()
        if key:
            return self._turns.take(f"key {key.name}", now) if refused else 0.0
        if not refused:
            return min(self._turns.take(f"open {address}", now), _OPEN_LONGEST_S)
        if self.flooded(address):
            return LONGEST_S
        return max(self._turns.take(address, now), self._strangers.take("", now))

    def flooded(self, address: str) -> bool:
        """True if there is no turn left for a stranger of this address."""
        now = time.monotonic()
        return max(self._turns.wait(address, now), self._strangers.wait("", now)) >= LONGEST_S

    def may_pass(self, head: bytes) -> bool:
        """True for a head that has a valid key, or needs none; far cheaper than to parse it."""
        return head.startswith(_OPEN) or any(
            self._find(found[1].decode(errors="surrogateescape"))
            for found in _AUTHORIZATION.finditer(head)
        )


class Turns:
    """Each sender has a turn now and then, and its next request waits for it (GCRA, ITU-T I.371).

    A turn that would be later than the longest wait is not taken, so a flood leaves no debt: after
    the longest wait, whoever shares the sender's address is answered at once again.

    Args:
        per_second: turns of one sender.
    """

    def __init__(self, per_second: float) -> None:
        self._every = 1 / per_second
        self._next: OrderedDict[str, float] = OrderedDict()

    def wait(self, sender: str, now: float) -> float:
        """Seconds until the sender's next turn, 0 to `LONGEST_S`; nothing is taken."""
        wait = self._next.get(sender, now) - now - _AT_ONCE_S
        return min(max(0.0, wait), LONGEST_S)

    def take(self, sender: str, now: float) -> float:
        """Take the next turn, unless it is too far away; seconds until then."""
        wait = self.wait(sender, now)
        if wait < LONGEST_S:
            self._next[sender] = max(now, self._next.get(sender, now)) + self._every
            self._next.move_to_end(sender)
            if len(self._next) > _SENDERS:
                self._next.popitem(last=False)
        return wait
