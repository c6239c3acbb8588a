"""`expected_format` of evaluation rows: strangers' JSON Schemas, bounded in size and in time."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapterops.errors import InfrastructureError
from adapterops.schemas import JsonSchema

SECONDS = 2.0  # for one text; a row of this project takes a tenth of a millisecond
_START_S = 60.0
_SLOW_ROWS = 3  # after so many a file is not worth waiting for
_WORKER = Path(__file__).with_name("format_worker.py")

_MAX_BYTES = 16_384
_MAX_DEPTH = 32
_MAX_VALUES = 2_000
_MAX_REFERENCES = 64
_MAX_EXPANDED = 10_000  # values, where each reference is replaced by what it names
_MAX_PATTERN = 200
_DEFINITIONS = "#/$defs/"
# A pointer has other names for the same: what is counted must be what is applied.
_ESCAPED = frozenset("/~%")
# They move what `$ref` means, or reach outside of the schema.
_REFUSED = (
    "$id",
    "$anchor",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
    "$vocabulary",
)


class SlowFormatError(Exception):
    """A row's schema took longer than it may on a text; the message says on what."""


def format_problem(schema: Any) -> str | None:
    """Why a row's schema is not applied; None if it is small and refers to its own `$defs` alone.

    Doubled references make a schema of three kilobytes as large as 2^50 of them: what counts is its
    size after all references are replaced by what they name.
    """
    size = len(json.dumps(schema, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if size > _MAX_BYTES:
        return f"it has {size:,} bytes. Expected at most {_MAX_BYTES:,}"
    values, references = 0, 0
    for depth, key, value in _walk(schema):
        values += 1
        if depth > _MAX_DEPTH:
            return f"it is nested deeper than {_MAX_DEPTH} levels"
        if key in _REFUSED:
            return f"`{key}` is not supported. Refer to `#/$defs/NAME` alone"
        if key == "$ref":
            references += 1
            if (
                not isinstance(value, str)
                or not value.startswith(_DEFINITIONS)
                or _ESCAPED & set(value.removeprefix(_DEFINITIONS))
            ):
                return f"`$ref` {str(value)[:80]} is not supported. Refer to `#/$defs/NAME` alone"
        if (key == "pattern" and isinstance(value, str) and len(value) > _MAX_PATTERN) or (
            key == "patternProperties" and _long(value)
        ):
            return f"a pattern is longer than {_MAX_PATTERN} characters"
    if values > _MAX_VALUES:
        return f"it has {values:,} values. Expected at most {_MAX_VALUES:,}"
    if references > _MAX_REFERENCES:
        return f"it has {references} references. Expected at most {_MAX_REFERENCES}"
    return _expanded_problem(schema) if references else None


def _expanded_problem(schema: Any) -> str | None:
    definitions = schema.get("$defs")
    known: dict[str, int] = {}
    under_way: set[str] = set()

    def size(part: Any) -> int:
        total = 0
        for _, key, value in _walk(part):
            total += 1
            if key == "$ref":
                total += named(value.removeprefix(_DEFINITIONS))
        return total

    def named(name: str) -> int:
        if name in known:
            return known[name]
        if not isinstance(definitions, dict) or name not in definitions:
            raise ValueError(f"`$ref` {_DEFINITIONS}{name[:80]}: there is no such definition")
        if name in under_way:
            raise ValueError(
                f"`$ref` {_DEFINITIONS}{name[:80]} leads to itself. Write as many levels as the"
                " answer has"
            )
        under_way.add(name)
        known[name] = size(definitions[name])
        under_way.discard(name)
        return known[name]

    try:
        total = size(schema)
    except ValueError as error:
        return str(error)
    if total > _MAX_EXPANDED:
        return (
            "it is too large once each `$ref` is replaced by what it names. Expected fewer"
            " references in references"
        )
    return None


def _long(properties: Any) -> bool:
    return isinstance(properties, dict) and any(len(name) > _MAX_PATTERN for name in properties)


def _walk(node: Any) -> Iterator[tuple[int, str | None, Any]]:
    """(depth, key, value) of everything in a schema; the key is None in lists and at the top."""
    left: list[tuple[int, str | None, Any]] = [(1, None, node)]
    while left:
        depth, key, value = left.pop()
        yield depth, key, value
        if isinstance(value, dict):
            left += [(depth + 1, name, child) for name, child in value.items()]
        elif isinstance(value, list):
            left += [(depth + 1, None, child) for child in value]


class FormatChecker:
    """A child process that checks texts one by one; one that takes too long ends it.

    It ends by itself with its parent, whose end closes the pipe.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._slow = 0

    def check(self, schema: JsonSchema, text: str) -> tuple[str, str]:
        """`("ok", "")`, `("schema", why)` or `("value", why)`.

        Raises:
            SlowFormatError: it took too long, or too many did before.
            InfrastructureError: the child cannot be started.
        """
        if self._slow >= _SLOW_ROWS:
            raise SlowFormatError(
                f"not checked: {self._slow} others took longer than {self._seconds:g} s each"
            )
        request = json.dumps([schema, text]).encode() + b"\n"
        try:
            self._start()
            assert self._process
            assert self._process.stdin
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(request)
                self._process.stdin.flush()
            reply = self._reply(self._seconds)
        except BaseException:
            self.close()
            raise
        if reply is not None:
            return reply
        self.close()
        self._slow += 1
        raise SlowFormatError(
            f"it takes longer than {self._seconds:g} s, or more memory than a row may"
        )

    def forget(self) -> None:
        """Count slow texts from the start: those of one model say nothing of another's."""
        self._slow = 0

    def close(self) -> None:
        """End the child."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> None:
        if self._process:
            return
        # -I: neither the environment nor the folder it stands in says what is imported. No
        # environment: it needs no secret.
        command = [sys.executable, "-I", str(_WORKER)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        )
        if self._reply(_START_S) is None:
            raise InfrastructureError(
                "the process that checks `expected_format` does not start. Run `make setup` again."
            )

    def _reply(self, seconds: float) -> tuple[str, str] | None:
        """The next line of the child; None where it does not come in time."""
        assert self._process
        assert self._process.stdout
        deadline, got = time.monotonic() + seconds, b""
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            while not got.endswith(b"\n"):
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    return None
                chunk = os.read(self._process.stdout.fileno(), 65_536)
                if not chunk:
                    return None
                got += chunk
        kind, why = json.loads(got)
        return kind, why


@functools.cache
def shared_checker() -> FormatChecker:
    """One for all that a process scores."""
    return FormatChecker()
