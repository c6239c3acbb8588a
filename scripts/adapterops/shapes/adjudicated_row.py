"""The shape of `configs/schemas/adjudicated_row.json`; `make types`."""

from __future__ import annotations

from typing import Literal, TypedDict


class AdjudicatedRow(TypedDict):
    prompt: str
    answer: str
    label: Literal["refused", "complied"]
    reason: str
    by: str
