"""The shape of `configs/schemas/eval_row.json`; `make types`."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

Tag: TypeAlias = str


Count: TypeAlias = int


Text: TypeAlias = str


Texts: TypeAlias = list[Text]


class CountCheck(TypedDict):
    check: Literal["words", "sentences", "lines", "bullets"]
    min: NotRequired[Count]
    max: NotRequired[Count]


class WordsCheck(TypedDict):
    check: Literal["contains", "not_contains", "answer"]
    any: Texts


class EdgeCheck(TypedDict):
    check: Literal["starts_with", "ends_with"]
    text: Text


class JsonCheck(TypedDict):
    check: Literal["json"]
    keys: NotRequired[list[Text]]


class LanguageCheck(TypedDict):
    check: Literal["language"]
    language: Literal["en", "ko"]


class CaseCheck(TypedDict):
    check: Literal["upper_case", "lower_case"]


Check: TypeAlias = CountCheck | WordsCheck | EdgeCheck | JsonCheck | LanguageCheck | CaseCheck


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
