"""YAML configuration files: safe loading, duplicate keys, line numbers, and every error at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from adapterops.errors import UsageError
from adapterops.schemas import SchemaProblem, schema_problems

_Lines = dict[tuple[str | int, ...], int]
# `sound("training", "max_length")`: the value there; None if it is missing or breaks the schema.
Sound = Callable[..., Any]


def load_yaml(path: Path, schema: str, check: Callable[[Sound], list[SchemaProblem]] | None = None) -> dict[str, Any]:
    """Read a YAML file and check it against `configs/schemas/<schema>.json`.

    Args:
        path: the file.
        schema: name of the schema.
        check: what no schema can say. It is asked about the values that are sound, so that a broken one hides nothing else.

    Raises:
        UsageError: missing file, invalid YAML, duplicate keys or schema violations; all of them, each with `file:line`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory. Expected a YAML file.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}. Save the file as UTF-8.") from None
    lines: _Lines = {(): 1}
    problems: list[tuple[int, str]] = []
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _walk(node, (), lines, problems, set())
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}:{line}: not valid YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deep. A settings file has a few levels.") from None
    except ValueError as error:  # `2024-02-30` is a date for YAML, and a number can have too many digits
        reason = str(error).split(";", maxsplit=1)[0]
        raise UsageError(f"{path}: not valid YAML: {reason}. Put what is no date or number in quotes.") from None
    except _AliasError as error:
        raise UsageError(f"{path}:{error.line}: anchors and aliases are not supported. Write the value out.") from None
    broken = schema_problems(value, schema)
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
    if problems:
        listed = "\n".join(f"  {path}:{line}: {message}" for line, message in sorted(set(problems)))
        count = len(set(problems))
        raise UsageError(f"{path} has {count} problem{'s' if count > 1 else ''}:\n{listed}")
    return value  # type: ignore[no-any-return]  # a mapping, by its schema


class _AliasError(Exception):
    def __init__(self, line: int) -> None:
        self.line = line


def _walk(node: yaml.Node, path: tuple[str | int, ...], lines: _Lines, problems: list[tuple[int, str]], seen_nodes: set[int]) -> None:
    """Record the line of every key and element; report keys that stand twice (YAML would keep the last silently), NaN and infinities.

    Every comparison with a NaN is false, so that no minimum or maximum of a schema holds one off.
    Aliases are refused: they can make a document refer to itself or grow without bound.
    """
    if id(node) in seen_nodes:
        raise _AliasError(node.start_mark.line + 1)
    seen_nodes.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, child in node.value:
            name, line = str(getattr(key, "value", "")), key.start_mark.line + 1
            if name in seen:
                problems.append((line, f"key `{name}` stands twice; the first is on line {seen[name]}."))
            seen[name] = line
            lines[(*path, name)] = line
            _walk(child, (*path, name), lines, problems, seen_nodes)
    elif isinstance(node, yaml.SequenceNode):
        for position, child in enumerate(node.value):
            lines[(*path, position)] = child.start_mark.line + 1
            _walk(child, (*path, position), lines, problems, seen_nodes)
    elif isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:float" and not math.isfinite(_float(node)):
        problems.append((node.start_mark.line + 1, f"{node.value} is no number to go by. Give a finite one."))


def _float(node: yaml.ScalarNode) -> float:
    return float(yaml.SafeLoader("").construct_yaml_float(node))
