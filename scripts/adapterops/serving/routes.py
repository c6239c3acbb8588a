"""Which engine name answers a request for an adapter."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SESSION = re.compile(r"[ -~]{1,256}")


@dataclass(frozen=True)
class Version:
    """A version that is loaded, checked and may be asked.

    Args:
        adapter: name that clients ask for.
        digest: 64 hex digits.
        trained_at: ISO 8601.
    """

    adapter: str
    digest: str
    trained_at: str

    @property
    def engine_name(self) -> str:
        """Its name in vLLM: new for each version, so that no cache keyed by name can serve old
        weights.
        """
        return engine_name(self.adapter, self.digest)


@dataclass(frozen=True)
class Route:
    """Where requests for one adapter go; replaced as a whole, never changed.

    Args:
        stable: answers all that the canary does not get.
        canary: under trial.
        weight: percent of requests that the canary gets.
    """

    stable: Version | None = None
    canary: Version | None = None
    weight: int = 0


def engine_name(adapter: str, digest: str) -> str:
    """`<adapter>-<first 12 digits>`."""
    return f"{adapter}-{digest[:12]}"


def choose(route: Route, session: str | None) -> Version | None:
    """The version for one request: by weight, and the same one for the same session while the
    weight stays.

    A session's place between 0 and 100 comes from a hash, so a growing weight only ever moves
    sessions to the canary.
    """
    if route.canary is None or route.weight == 0:
        return route.stable
    if route.stable is None:
        return route.canary
    if session is None:
        place = random.uniform(0, 100)  # a load balancer, not a secret  # noqa: S311
    else:
        digest = hashlib.sha256(f"{route.canary.digest}\0{session}".encode()).digest()
        place = int.from_bytes(digest[:8]) / 2**64 * 100
    return route.canary if place < route.weight else route.stable


def session_of(key: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> str | None:
    """What makes a session sticky: the header `x-session-id`, else the request's `user`.

    The key is part of it, so that a session that was found to meet the canary does so for one key
    alone.

    Args:
        key: name of the API key.
        headers: of the request.
        body: of the request, checked.

    Raises:
        ValueError: the header is not one to 256 printable ASCII characters.
    """
    session = headers.get("x-session-id")
    if session and not _SESSION.fullmatch(session):
        raise ValueError("The header `x-session-id` is not one to 256 printable ASCII characters.")
    session = session or body.get("user")
    return f"{key}\0{session}" if isinstance(session, str) and session else None
