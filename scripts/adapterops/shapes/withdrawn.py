"""The shape of `configs/schemas/withdrawn.json`; `make types`."""

from __future__ import annotations

from typing import Literal, TypeAlias, TypedDict

Line: TypeAlias = str


class Release(TypedDict):
    digest: str
    reason: Line
    by: Line
    at: Line


class List(TypedDict):
    """
    What is signed, as canonical JSON.
    """

    adapter: str
    number: int
    releases: list[Release]


class Withdrawn(TypedDict):
    schema: Literal["withdrawn/v1"]
    list: List
    signature: str | None
