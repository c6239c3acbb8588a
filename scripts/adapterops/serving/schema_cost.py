"""What a client's JSON Schema may be, so that an engine compiles it within half a second.

Measured with xgrammar 0.2.8 (`tests/benchmarks/schema_compile.py`; 130,000 tokens, two busy cores):
256 properties take 0.2 s, 64 levels 0.2 s, 2,000 values of an `enum` 0.1 s, 30 references doubled
one by one 0.3 s. But one `"maxLength": 100` takes 5 s, one of 8 takes 0.2 s, 32 different ones more
than 20 s, 64 `"format": "email"` 13 s, and so does a nested repetition in a `pattern`. Those are
for keys with `grammars`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

from adapterops.serving.body import BodyError, shown
from adapterops.specs.limits import Limits

_DEPTH = 32  # levels of objects and lists; vLLM itself refuses more than 64
_BYTES_PER_NODE = 128  # of all schemas as JSON, beside 4 KiB
_VALUES = 1000  # of all `enum`s together
_REFERENCES = 64
_TEXT = 1000  # characters of a name or value that is compiled
_PATTERNS = 8  # for keys with `grammars`; of so many characters each
_PATTERN = 256
_LONGEST_NUMBER = 10**15
_CHARACTERS = 16_384  # of names and values, all schemas together
_COSTLY = (
    "pattern",
    "patternProperties",
    "propertyNames",
    "minLength",
    "maxLength",
    "minProperties",
    "maxProperties",
)
_CHEAP_FORMATS = ("date-time", "date", "time", "duration", "uuid", "ipv4", "ipv6")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")  # a schema for each name
_REFERENCE = re.compile(r"#(/(\$defs|definitions)/[A-Za-z0-9_.-]+)?")
# Is read by people, compiled by nobody.
_PROSE = ("title", "description", "$comment", "examples", "default")


class SchemaCost:
    """Adds up the schemas of one request.

    Args:
        limits: of the key.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._counted: Counter[str] = Counter()

    def add(self, schema: Any, field: str) -> None:
        """Take up a schema.

        Args:
            schema: what the client sent.
            field: where, for messages.

        Raises:
            BodyError: it is no schema, or the schemas so far are too much.
        """
        if not isinstance(schema, dict):
            raise BodyError(f"`{field}` is not a JSON Schema. Expected an object.", field)
        self._field = field
        self._schema(schema, 1)
        if name := _circle(schema):
            self._refuse(f"has definitions that lead back to `{shown(name)}` and to nothing else")
        room = 4096 + _BYTES_PER_NODE * self._limits.schema_nodes
        self._count("bytes", room, len(json.dumps(schema, ensure_ascii=False).encode()))

    def _schema(self, schema: Any, depth: int) -> None:
        if not isinstance(schema, dict):
            return self._data(schema, depth)
        self._node(depth)
        for keyword, value in schema.items():
            if keyword in _PROSE:
                if isinstance(value, dict | list):
                    self._data(value, depth + 1)
                continue
            if keyword in _COSTLY or (keyword == "format" and value not in _CHEAP_FORMATS):
                self._costly(keyword, value)
            if keyword == "$ref":
                self._reference(value)
            elif keyword in ("enum", "const"):
                self._count(
                    "values of an `enum`", _VALUES, len(value) if isinstance(value, list) else 1
                )
                self._data(value, depth + 1)
            elif keyword in _NAMED and isinstance(value, dict):
                self._node(depth + 1)
                for name, inner in value.items():
                    self._text(name)
                    self._schema(inner, depth + 2)
            elif isinstance(value, list):
                self._node(depth + 1)
                for inner in value:
                    self._schema(inner, depth + 2)
            else:
                self._schema(value, depth + 1)
        return None

    def _data(self, value: Any, depth: int) -> None:
        """What is no schema: a number, a text, a value of an `enum`."""
        if isinstance(value, dict | list):
            self._node(depth)
            for inner in value.values() if isinstance(value, dict) else value:
                self._data(inner, depth + 1)
            for name in value if isinstance(value, dict) else ():
                self._text(name)
        elif isinstance(value, str):
            self._text(value)
        elif isinstance(value, int | float) and abs(value) > _LONGEST_NUMBER:
            self._refuse(
                f"has the number {shown(str(value))}. Expected at most {_LONGEST_NUMBER:.0e}"
            )

    def _costly(self, keyword: str, value: Any) -> None:
        if not self._limits.grammars:
            what = f'{keyword}": "{shown(value)}' if keyword == "format" else keyword
            self._refuse(
                f'has `"{what}"`, which can take an engine seconds to compile. This key may not'
                " send it: leave it out"
            )
        self._count(
            "regular expressions and lengths",
            _PATTERNS,
            len(value) if isinstance(value, dict) else 1,
        )
        for text in value if isinstance(value, dict) else [value]:
            size = len(text) if isinstance(text, str) else text if isinstance(text, int) else 0
            if size > _PATTERN:
                self._refuse(f"has `{keyword}` with {shown(size)}. Expected at most {_PATTERN}")

    def _reference(self, value: Any) -> None:
        self._count("references", _REFERENCES)
        if not isinstance(value, str) or not _REFERENCE.fullmatch(value):
            self._refuse(f"has the `$ref` {shown(value)}. Expected `#/$defs/NAME`")

    def _text(self, text: str) -> None:
        self._count("characters of names and values", _CHARACTERS, len(text))
        if len(text) > _TEXT:
            self._refuse(f"has a name or value of {len(text)} characters. Expected at most {_TEXT}")

    def _node(self, depth: int) -> None:
        if depth > _DEPTH:
            self._refuse(f"is nested deeper than {_DEPTH} levels")
        self._count("objects and lists", self._limits.schema_nodes)

    def _count(self, what: str, most: int, many: int = 1) -> None:
        self._counted[what] += many
        if self._counted[what] > most:
            self._refuse(f"has, with the other schemas of this request, more than {most} {what}")

    def _refuse(self, reason: str) -> NoReturn:
        raise BodyError(f"`{self._field}` {reason}.", self._field)


def _circle(schema: Mapping[str, Any]) -> str | None:
    """A definition that leads back to itself without an object or a list between, as `root ::=
    root` does; None if there is none.

    Engines answer such a schema with 500.
    """
    definitions = {
        f"#/{table}/{name}": inner
        for table in ("$defs", "definitions")
        for name, inner in _entries(schema.get(table))
    }
    leads = {name: _leads(inner) for name, inner in {"#": schema, **definitions}.items()}
    for name, first in leads.items():
        seen: set[str] = set()
        ahead = first
        while ahead:
            if name in ahead:
                return name
            seen |= ahead
            ahead = {further for known in ahead for further in leads.get(known, ())} - seen
    return None


def _entries(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _leads(schema: Any) -> set[str]:
    """The definitions that a schema refers to at its own place."""
    if not isinstance(schema, dict):
        return set()
    found = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
    for keyword in ("anyOf", "oneOf", "allOf"):
        for inner in schema.get(keyword, ()) if isinstance(schema.get(keyword), list) else ():
            found |= _leads(inner)
    return found
