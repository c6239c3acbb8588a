"""JSON Schema checks for people: all problems at once, each with key, value and remedy."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from adapterops import escape

JsonSchema = Mapping[str, Any]

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "configs" / "schemas"
_UNKNOWN_KEYS = 20  # named in full; a hostile file can have as many as it has bytes
_LONGEST_MESSAGE = 300
_TYPE_NAMES = {
    "object": "a mapping",
    "array": "a list",
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}
_RELATIONS = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}


def repository_path(path: Path) -> str:
    """The path from the repository's root if it lies inside, else as it is, for documents."""
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else str(path)


@dataclass(frozen=True)
class SchemaProblem:
    """One violation.

    Args:
        path: keys and list positions from the top of the document to the value.
        message: fact and expectation, in one sentence or two.
        key: the key at fault where the problem is a key itself (unknown key), else None.
    """

    path: tuple[str | int, ...]
    message: str
    key: str | None = None

    def __str__(self) -> str:
        where = dotted(self.path)
        return escape.line(f"`{where}`: {self.message}" if where else self.message)


def dotted(path: tuple[str | int, ...]) -> str:
    """`("gates", 0, "min")` → `gates[0].min`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def did_you_mean(word: str, known: list[str]) -> str:
    """` Did you mean `x`?` or an empty string."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.55)
    return f" Did you mean `{close[0]}`?" if close else ""


@functools.cache
def load_schema(name: str) -> JsonSchema:
    """The schema `configs/schemas/<name>.json` (draft 2020-12)."""
    schema: JsonSchema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


@functools.cache
def validator(name: str) -> Any:
    """A validator of the named schema, made once."""
    return _Validator(load_schema(name))


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """`$` is the end, as JSON Schema means it; Python's would let a line end follow."""
    return re.compile(re.sub(r"(?<!\\)\$(?=$|[|)])", r"\\Z", pattern))


def _pattern(
    asked: Any, pattern: str, instance: Any, _: Any
) -> Iterator[jsonschema.ValidationError]:
    if asked.is_type(instance, "string") and not _compiled(pattern).search(instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def _unique(
    asked: Any, wanted: bool, instance: Any, _: Any
) -> Iterator[jsonschema.ValidationError]:
    """In linear time: jsonschema compares each element of a mixed list with each other one."""
    if wanted and asked.is_type(instance, "array"):
        seen: set[str] = set()
        for item in instance:
            said = json.dumps(item, sort_keys=True, default=str)
            if said in seen:
                yield jsonschema.ValidationError(
                    f"{escape.line(said)[:80]} stands twice. Expected each element once."
                )
                return
            seen.add(said)


_Validator: Any = jsonschema.validators.extend(
    jsonschema.Draft202012Validator, {"pattern": _pattern, "uniqueItems": _unique}
)  # type: ignore[no-untyped-call]


def schema_of(shape: type) -> str:
    """The name of the schema that a shape of `adapterops.shapes` was written from: its module."""
    return shape.__module__.rpartition(".")[2]


def schema_problems(value: Any, schema: str) -> list[SchemaProblem]:
    """Every violation of the schema `configs/schemas/<schema>.json`, in document order."""
    problems: list[SchemaProblem] = []
    for error in validator(schema).iter_errors(value):
        problems.extend(_explain(error))
    return sorted(problems, key=lambda problem: [str(part) for part in problem.path])


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "…"


def _reason(schema: object) -> str:
    if isinstance(schema, Mapping) and "description" in schema:
        return f" {schema['description']}"
    return ""


def _as_number(found: Any, names: list[str]) -> str:
    """How to write a number that YAML took for text: `2e-3` lacks the point, `2.0e3` the sign, and
    `"0.5"` has quotes.
    """
    if not isinstance(found, str) or not {"number", "integer"} & set(names):
        return ""
    match = re.fullmatch(r"\s*([-+]?\d+)(\.\d*)?(?:[eE]([-+]?)(\d+))?\s*", found)
    if not match:
        return ""
    whole, fraction, sign, exponent = match.groups()
    return (
        f" Write {whole}{fraction or '.0'}e{sign or '+'}{exponent}."
        if exponent
        else f" Write {found.strip()}, without quotes."
    )


def _explain(error: jsonschema.ValidationError) -> list[SchemaProblem]:
    """One violation in words; an unknown key or a choice of alternatives gives several."""
    path = tuple(error.absolute_path)
    match error.validator:
        case "additionalProperties" if isinstance(error.instance, dict):
            return _unknown_keys(path, error)
        case "anyOf" | "oneOf" if error.context:
            return _closest_alternative(error.context)
        case _:
            return [SchemaProblem(path, _said_of(error))]


def _said_of(error: jsonschema.ValidationError) -> str:
    # A violation always carries these; its stubs allow for one that was never filled in.
    schema: Any = error.schema
    expected: Any = error.validator_value
    found: Any = error.instance
    shown, reason = _shown(found), _reason(schema)
    match error.validator:
        case "required":
            # jsonschema reports one error per missing key and names it only in the message.
            missing = error.message.split("'")[1]
            return f"missing key `{missing}`."
        case "enum":
            words = [str(option) for option in expected]
            meant = did_you_mean(str(found), words)
            return f"{shown} is not one of {', '.join(words)}.{meant}{reason}"
        case "const":
            return f"{shown} is not allowed here. Expected {json.dumps(expected)}.{reason}"
        case "type":
            names = [expected] if isinstance(expected, str) else expected
            wanted = " or ".join(_TYPE_NAMES[name] for name in names)
            return f"{shown} is not {wanted}.{_as_number(found, names)}"
        case "pattern":
            wanted = schema.get("description", f"Expected it to match {expected}.")
            return f"{shown} is not allowed here. {wanted}"
        case "not":
            return f"this key is not allowed here.{reason}"
        case "contains":
            return f"{shown} lacks something, or has it twice.{reason}"
        case "minItems":
            return f"it has {len(found)} entries. Expected at least {expected}.{reason}"
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" as bound:
            return f"{shown} is out of range. Expected {_RELATIONS[bound]} {expected}."
        case _:
            text = error.message
            said = text if len(text) <= _LONGEST_MESSAGE else f"…{text[-_LONGEST_MESSAGE:]}"
            return said.rstrip(".") + f".{reason}"


def _unknown_keys(
    path: tuple[str | int, ...], error: jsonschema.ValidationError
) -> list[SchemaProblem]:
    # A violation always carries these; its stubs allow for one that was never filled in.
    schema: Any = error.schema
    found: Any = error.instance
    known = list(schema.get("properties", {}))
    unknown = [str(key) for key in found if key not in known]
    named = [
        SchemaProblem(
            path,
            f"unknown key `{_cut(key)}`.{did_you_mean(key, known)} Known keys: {', '.join(known)}.",
            key,
        )
        for key in unknown[:_UNKNOWN_KEYS]
    ]
    more = len(unknown) - len(named)
    return [*named, SchemaProblem(path, f"{more} more unknown keys.")] if more else named


def _closest_alternative(errors: Sequence[jsonschema.ValidationError]) -> list[SchemaProblem]:
    """The alternative with the fewest violations explains what the author meant to write."""
    by_branch: dict[int, list[jsonschema.ValidationError]] = {}
    for inner in errors:
        by_branch.setdefault(int(inner.schema_path[0]), []).append(inner)
    closest = min(by_branch.values(), key=len)
    return [problem for inner in closest for problem in _explain(inner)]


def _shown(found: object) -> str:
    try:
        return _cut(json.dumps(found, ensure_ascii=False, default=str))
    except TypeError:  # YAML has keys that JSON has not: dates
        return _cut(str(found))
