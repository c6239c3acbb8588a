"""YAML configuration files: plain and bounded, no duplicate keys, every error with its line."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from adapterops import escape
from adapterops.errors import UsageError
from adapterops.schemas import SchemaProblem, schema_of, schema_problems

T = TypeVar("T")  # a shape: one of the TypedDicts of `adapterops.shapes`

# No settings file comes near these. They are looked at before or while the text is parsed: the
# parser's time is quadratic in the depth.
MAX_BYTES = 1 << 20
_MAX_DEPTH = 32
_MAX_NODES = 50_000
_MAX_NUMBER = 100  # characters; a longer one takes quadratic time, and cannot be printed
_LISTED = 50  # problems; who has more of them has written another kind of file
_STRING = "tag:yaml.org,2002:str"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

_Lines = dict[tuple[str | int, ...], int]
# `sound("training", "max_length")`: the value there; None if it is missing or breaks the schema.
Sound = Callable[..., Any]


def load_yaml(
    path: Path, shape: type[T], check: Callable[[Sound], list[SchemaProblem]] | None = None
) -> T:
    """Read a YAML file and check it against the schema of its shape.

    Args:
        path: the file.
        shape: what it holds, one of `adapterops.shapes`.
        check: what no schema can say. It is asked about the values that are sound, so that a broken
            one hides nothing else.

    Raises:
        UsageError: missing file, invalid YAML, duplicate keys or schema violations; all of them,
            each with `file:line`.
    """
    lines: _Lines = {(): 1}
    problems: list[tuple[int, str]] = []
    value = _read(path, lines, problems)
    broken = schema_problems(value, schema_of(shape))
    if check:
        faulty = {problem.path for problem in broken if not problem.key}

        def sound(*place: str | int) -> Any:
            found = value
            for depth, part in enumerate(place, 1):
                if isinstance(found, list):
                    found = found[part] if isinstance(part, int) and part < len(found) else None
                else:
                    found = found.get(part) if isinstance(found, dict) else None
                if found is None or (depth == len(place) and place in faulty):
                    return None
            return found

        broken += check(sound)
    for problem in broken:
        place = (*problem.path, problem.key) if problem.key else problem.path
        problems.append((lines.get(place, lines.get(problem.path, 1)), str(problem)))
    _raise(path, problems)
    return value  # type: ignore[no-any-return]  # of that shape, by its schema


def plain_yaml(path: Path) -> Any:
    """The content of a YAML file that is held to no schema.

    Raises:
        UsageError: missing file, invalid YAML, or duplicate keys.
    """
    problems: list[tuple[int, str]] = []
    value = _read(path, {}, problems)
    _raise(path, problems)
    return value


def _raise(path: Path, problems: list[tuple[int, str]]) -> None:
    if problems:
        found = sorted(set(problems))
        listed = "\n".join(f"  {path}:{line}: {message}" for line, message in found[:_LISTED])
        more = f"\n  and {len(found) - _LISTED:,} more" if len(found) > _LISTED else ""
        raise UsageError(
            f"{path} has {len(found)} problem{'s' if len(found) > 1 else ''}:\n{listed}{more}"
        )


def _read(path: Path, lines: _Lines, problems: list[tuple[int, str]]) -> Any:
    text = _text(path)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _walk(node, (), lines, problems)
        return loader.construct_document(node)
    except _RefusedError as error:
        raise UsageError(f"{path}:{error.line}: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(
            f"{path}:{line}: not valid YAML: {escape.line(str(error.problem))}."
        ) from None
    except yaml.YAMLError as error:
        raise UsageError(
            f"{path}: not valid YAML: {escape.line(' '.join(str(error).split()))}."
        ) from None
    except ValueError as error:  # `2024-02-30` is a date for YAML
        reason = escape.line(str(error).split(";", maxsplit=1)[0])
        raise UsageError(
            f"{path}: not valid YAML: {reason}. Put what is no date or number in quotes."
        ) from None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(
                f"{path} has more than {MAX_BYTES:,} bytes. A settings file is smaller."
            )
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory. Expected a YAML file.") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 at byte {error.start}. Save the file as UTF-8."
        ) from None
    return text


class _RefusedError(Exception):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Stops where a document exceeds what a settings file has, before anything is built of it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def fetch_flow_collection_start(self, token: Any) -> None:
        """As the parser does, unless too many are open: it reads a thousand of them ahead, each
        slower than the one before.
        """
        if self.flow_level >= _MAX_DEPTH:
            raise _RefusedError(self.line + 1, _TOO_DEEP)
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, counted.

        Aliases are refused: they can make a document refer to itself or grow without bound. So are
        tags, which ask for objects.
        """
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        self._nodes += 1
        if isinstance(event, yaml.AliasEvent):
            raise _RefusedError(line, "anchors and aliases are not supported. Write the value out.")
        if event.tag is not None:
            raise _RefusedError(
                line,
                f"tags are not supported ({escape.line(str(event.tag))[:80]}). Write the value"
                " plainly or in quotes.",
            )
        if self._nodes > _MAX_NODES:
            raise _RefusedError(
                line, f"more than {_MAX_NODES:,} values. A settings file has fewer."
            )
        if self._depth >= _MAX_DEPTH:
            raise _RefusedError(line, _TOO_DEEP)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if (
            isinstance(node, yaml.ScalarNode)
            and node.tag in _NUMBERS
            and len(node.value) > _MAX_NUMBER
        ):
            raise _RefusedError(
                line,
                f"a number of {len(node.value):,} characters. Put what is no number in quotes.",
            )
        return node


_TOO_DEEP = f"nested too deep. A settings file has a few levels, and at most {_MAX_DEPTH}."


def _walk(
    node: yaml.Node, path: tuple[str | int, ...], lines: _Lines, problems: list[tuple[int, str]]
) -> None:
    """Record the line of every key and element; report keys that stand twice (YAML would keep the
    last silently), NaN and infinities.

    Every comparison with a NaN is false, so that no minimum or maximum of a schema holds one off.
    """
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, child in node.value:
            name, line = _key(key, problems), key.start_mark.line + 1
            if name in seen:
                problems.append(
                    (
                        line,
                        (
                            f"key `{escape.line(name)}` stands twice; the first is on line"
                            f" {seen[name]}."
                        ),
                    )
                )
            seen[name] = line
            lines[(*path, name)] = line
            _walk(child, (*path, name), lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for position, child in enumerate(node.value):
            lines[(*path, position)] = child.start_mark.line + 1
            _walk(child, (*path, position), lines, problems)
    elif (
        isinstance(node, yaml.ScalarNode)
        and node.tag == "tag:yaml.org,2002:float"
        and not math.isfinite(_float(node))
    ):
        problems.append(
            (node.start_mark.line + 1, f"{node.value} is no number to go by. Give a finite one.")
        )
    elif isinstance(node, yaml.ScalarNode) and (unseen := next(filter(_unseen, node.value), None)):
        problems.append(
            (
                node.start_mark.line + 1,
                f"the value holds {escape.line(unseen)}, which is not seen. Remove it.",
            )
        )


def _unseen(mark: str) -> bool:
    """A character that steers a terminal or the direction of writing; spaces of every kind, and
    line ends, are text.
    """
    return not mark.isprintable() and mark not in "\n\t" and unicodedata.category(mark) != "Zs"


def _key(node: yaml.Node, problems: list[tuple[int, str]]) -> str:
    """The name of a key; one that is no plain word is reported."""
    if not isinstance(node, yaml.ScalarNode):
        raise _RefusedError(
            node.start_mark.line + 1, "a key is a list or a mapping. Expected a word."
        )
    name = str(node.value)
    if node.tag != _STRING:
        kind = node.tag.rpartition(":")[2]
        problems.append(
            (
                node.start_mark.line + 1,
                (
                    f"key `{escape.line(name)[:80]}` is read as {kind}. Expected a word; put it in"
                    " quotes."
                ),
            )
        )
    elif not name.isprintable():
        problems.append(
            (
                node.start_mark.line + 1,
                (
                    f"key `{escape.line(name)[:80]}` holds characters that are not seen. Expected a"
                    " word."
                ),
            )
        )
    return name


def _float(node: yaml.ScalarNode) -> float:
    return float(yaml.SafeLoader("").construct_yaml_float(node))
