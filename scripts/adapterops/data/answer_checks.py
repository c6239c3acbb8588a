"""What a row asks of its answer's form: a closed set of checks; no pattern or code of a row's.

A check is an object of `configs/schemas/eval_row.json`, such as `{"check": "sentences", "max": 1}`.
All of a row's checks must hold.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence

from adapterops.shapes.eval_row import Check

# Reasoning models think before they answer; what they think is not their answer.
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?。]+[\"'”’)\]]*(?=\s|$)")
_BULLET = re.compile(r"[-*•–·] +\S")
# A full stop after one of these ends no sentence; nor does one after the number of a list.
_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|st|vs|etc|prof|no|e\.g|i\.e|a\.m|p\.m)|^\s*\d+)\.$", re.IGNORECASE
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WRAPPING = " \t\r\n\"'“”‘’`*_()[]."
_SCRIPTS = {"ko": "HANGUL", "en": "LATIN"}
_LEAST_SHARE = 0.5  # of the letters; an answer in Korean may name things in English
# What holds of the beginning of an answer holds of the whole. Everything else can only be told from
# an answer that has ended.
_OF_A_BEGINNING = frozenset({"contains", "starts_with", "language"})


def broken_checks(checks: Sequence[Check], answer: str, *, ended: bool = True) -> list[str]:
    """What an answer breaks, in words; empty where every check holds.

    Args:
        checks: of one row, valid against the schema.
        answer: the text as it was generated.
        ended: whether it ended by itself; one that was cut off has no last word, no number of
            sentences and no JSON.
    """
    text = answer_text(answer)
    return [
        _described(check)
        for check in checks
        if not (ended or check["check"] in _OF_A_BEGINNING) or not _holds(check, text)
    ]


def answer_text(answer: str) -> str:
    """The answer without what was thought before it, in composed characters."""
    return unicodedata.normalize("NFC", _THOUGHT.sub("", answer)).strip()


def plain_answer(text: str) -> str:
    """A short answer without its wrapping: case, quotes, emphasis, closing marks."""
    return _folded(text).strip(_WRAPPING + "!?。")


def _holds(check: Check, text: str) -> bool:
    match check["check"]:
        case "words" | "sentences" | "lines" | "bullets" as unit:
            return bool(check.get("min", 0) <= _count(unit, text) <= check.get("max", float("inf")))
        case "contains":
            return any(_contains(text, wanted) for wanted in check["any"])
        case "not_contains":
            return bool(text) and not any(_contains(text, unwanted) for unwanted in check["any"])
        case "starts_with":
            return _folded(text).startswith(_folded(check["text"]))
        case "ends_with":
            return _folded(text).endswith(_folded(check["text"]))
        case "answer":
            return plain_answer(text) in {plain_answer(right) for right in check["any"]}
        case "json":
            return _is_json(text, check.get("keys"))
        case "language":
            return _share(text, _SCRIPTS[check["language"]]) >= _LEAST_SHARE
        case "upper_case":
            return text.isupper()
        case "lower_case":
            return text.islower()
        case unknown:
            raise ValueError(f"check {unknown!r} is not in the schema")


def _count(unit: str, text: str) -> int:
    match unit:
        case "words":
            return _words(text)
        case "sentences":
            return sum(map(_sentences, text.split("\n")))
        case "lines":
            return sum(bool(line.strip()) for line in text.split("\n"))
        case _:
            return sum(_BULLET.match(line.strip()) is not None for line in text.split("\n"))


def _sentences(line: str) -> int:
    """Sentences of one line; what follows the last mark is one too."""
    count, start = 0, 0
    for end in _SENTENCE_END.finditer(line):
        if _ABBREVIATION.search(line[max(start, end.start() - 8) : end.end()]):
            continue
        count, start = count + 1, end.end()
    return count + bool(_words(line[start:]))


def _words(text: str) -> int:
    """What stands between spaces and is not punctuation alone."""
    return sum(any(map(str.isalnum, word)) for word in text.split())


def _contains(text: str, wanted: str) -> bool:
    """Whether the text has it whole: `12` is not in `120` or `1.12`, nor `cat` in `catalogue`.

    Hangul may stand next to more Hangul, because particles are written onto words.
    """
    folded, sought = _folded(text), _folded(wanted)
    place = folded.find(sought)
    while place >= 0:
        end = place + len(sought)
        if not (
            _goes_on(folded[max(place - 2, 0) : place][::-1], sought[0])
            or _goes_on(folded[end : end + 2], sought[-1])
        ):
            return True
        place = folded.find(sought, place + 1)
    return False


def _goes_on(beside: str, edge: str) -> bool:
    """Whether what stands beside the edge (nearest first) belongs to the same number or word."""
    if edge.isdigit():
        return beside[:1].isdigit() or (beside[:1] in {".", ","} and beside[1:].isdigit())
    return edge.isascii() and edge.isalpha() and beside[:1].isascii() and beside[:1].isalpha()


def _folded(text: str) -> str:
    composed = (
        unicodedata.normalize("NFKC", answer_text(text))
        .replace("’", "'")
        .replace("“", '"')
        .replace("”", '"')
    )
    return _THOUSANDS.sub("", " ".join(composed.casefold().split()))


def _is_json(text: str, keys: list[str] | None) -> bool:
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return keys is None or (isinstance(value, dict) and set(value) == set(keys))


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands twice")
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _share(text: str, script: str) -> float:
    prose = " ".join(text.split("```")[::2])
    letters = [character for character in " ".join(prose.split("`")[::2]) if character.isalpha()]
    return (
        sum(unicodedata.name(letter, "").startswith(script) for letter in letters) / len(letters)
        if letters
        else 0.0
    )


def _described(check: Check) -> str:
    return ", ".join(
        f"{key} {value}" if key != "check" else str(value) for key, value in check.items()
    )
