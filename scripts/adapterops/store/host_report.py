"""What a serving host's `/health` tells operators of one adapter."""

from __future__ import annotations

from typing import TypedDict


class HostReport(TypedDict, total=False):
    """Of one adapter; a host that does not follow it reports nothing.

    Versions are digests, and ready where every engine that answers has them. `unfit` says by digest
    why a version must not be served.
    """

    generation: int
    stable: str | None
    stable_ready: bool
    canary: str | None
    canary_ready: bool
    weight: int
    previous: str | None
    previous_ready: bool
    errors: list[str]
    unfit: dict[str, str]
