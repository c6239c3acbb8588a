"""The shape of `configs/schemas/eval_row.json`; `make types`."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

Tag: TypeAlias = str


Count: TypeAlias = int


Text: TypeAlias = str


Texts: TypeAlias = list[Text]


class Check1(TypedDict):
    check: Literal["words", "sentences", "lines", "bullets"]
    min: NotRequired[Count]
    max: NotRequired[Count]


class Check2(TypedDict):
    check: Literal["contains", "not_contains", "answer"]
    any: Texts


class Check3(TypedDict):
    check: Literal["starts_with", "ends_with"]
    text: Text


class Check4(TypedDict):
    check: Literal["json"]
    keys: NotRequired[list[Text]]


class Check5(TypedDict):
    check: Literal["language"]
    language: Literal["en", "ko"]


class Check6(TypedDict):
    check: Literal["upper_case", "lower_case"]


Check: TypeAlias = Check1 | Check2 | Check3 | Check4 | Check5 | Check6


class EvalRow(TypedDict):
    id: str
    instruction: str
    input: NotRequired[str]
    system: NotRequired[str]
    expected_output: str
    expected_format: NotRequired[Literal["json"] | dict[str, Any]]
    should_refuse: NotRequired[bool]
    checks: NotRequired[list[Check]]
    language: str
    license: str
    source: str
    group: NotRequired[str]
    tags: NotRequired[list[Tag]]
