"""The shape of `configs/schemas/channel.json`; `make types`."""

from __future__ import annotations

from typing import Literal, TypeAlias, TypedDict

Version: TypeAlias = str | None


Line: TypeAlias = str


class Channel(TypedDict):
    schema: Literal["channel/v1"]
    adapter: str
    generation: int
    stable: Version
    canary: Version
    weight: int
    previous: Version
    rolled_back: Version
    updated_at: Line
    updated_by: Line
    reason: Line
