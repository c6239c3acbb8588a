"""The child of `formats.py` that holds answers to the JSON Schemas of evaluation rows.

A line of JSON `[schema, text]` on standard input is answered by one on standard output: `["ok",
""]`, `["schema", why]` where the schema cannot be applied, or `["value", why]` where the text does
not fit it. It imports nothing of this project and knows no
secret: what a row makes expensive is ended by its parent, with the process.
"""

from __future__ import annotations

import json
import resource
import sys

import jsonschema_rs

_MEMORY_BYTES = 2 << 30  # of address space; the library alone reserves some hundred MiB
_KEPT = 64  # compiled schemas
_LONGEST = 200


def main() -> None:
    """Answer until the parent closes the pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    known: dict[str, jsonschema_rs.Draft202012Validator] = {}
    _say(("ready", ""))
    for line in sys.stdin.buffer:
        schema, text = json.loads(line)
        _say(judge(schema, text, known))


def _say(reply: tuple[str, str]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


def judge(
    schema: object, text: str, known: dict[str, jsonschema_rs.Draft202012Validator]
) -> tuple[str, str]:
    """What becomes of one text."""
    key = json.dumps(schema, sort_keys=True)
    if key not in known:
        if len(known) >= _KEPT:
            known.clear()
        try:
            known[key] = _compile(schema)
        except ValueError as error:
            return "schema", str(error).partition("\n")[0][:_LONGEST]
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return "value", "not JSON"
    problem = next(known[key].iter_errors(value), None)
    return ("value", problem.message[:_LONGEST]) if problem else ("ok", "")


def _compile(schema: object) -> jsonschema_rs.Draft202012Validator:
    """A validator that fetches nothing, and whose patterns take time that is linear in the text."""
    try:
        # 1 MiB: `(a{1000}){1000}` is short and compiles to gigabytes.
        patterns = jsonschema_rs.RegexOptions(size_limit=1 << 20, dfa_size_limit=1 << 20)
        return jsonschema_rs.Draft202012Validator(
            schema,  # type: ignore[arg-type]  # whatever it is, the library says so
            retriever=_refuse,
            pattern_options=patterns,
            validate_formats=True,
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
        raise ValueError(str(error)) from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Of two values of one key each reader takes another one, so that neither is an answer."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _refuse(uri: str) -> None:
    raise ValueError(f"{uri} is outside the schema")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


if __name__ == "__main__":
    main()
