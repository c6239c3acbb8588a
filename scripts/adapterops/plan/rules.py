"""What a pull request changes in the rules that it will be judged by: old → new, for the top of the comment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adapterops.documents import sha256_file

_GATES = "configs/quality_gate"
_POLICY = "configs/data_policy.yaml"


@dataclass(frozen=True)
class RuleChange:
    """One setting.

    Args:
        file: path in the repository.
        setting: dotted.
        old: as `main` has it, as JSON; None where it is new.
        new: as the pull request has it; None where it is gone.
        weaker: True where the bar is certainly lower; False where it is higher; None where that cannot be told.
    """

    file: str
    setting: str
    old: str | None
    new: str | None
    weaker: bool | None


def is_rule(path: str) -> bool:
    """True for a file that decides what passes: gates, data policy, evaluation rows."""
    return (path.startswith(_GATES) and path.endswith(".yaml")) or path == _POLICY or path.startswith("data/eval/")


def rule_changes(paths: list[str], before: Path, after: Path) -> list[RuleChange]:
    """Every rule that differs.

    Args:
        paths: changed paths.
        before: root of the trusted tree.
        after: root of the pull request's tree.
    """
    changes: list[RuleChange] = []
    for path in paths:
        if path.startswith("data/eval/"):
            changes.append(_rows(path, before / path, after / path))
        elif is_rule(path) or (path.startswith("adapters/") and path.endswith(".yaml")):
            old, new = _settings(before / path), _settings(after / path)
            if path.startswith("adapters/"):
                if not (old and new):
                    continue  # a new or removed adapter is in the plan itself
                old, new = ({key: value for key, value in side.items() if _judges(key)} for side in (old, new))
            changes += [
                RuleChange(path, key, _shown(old.get(key)), _shown(new.get(key)), _weaker(path, key, old.get(key), new.get(key)))
                for key in sorted(old.keys() | new.keys())
                if old.get(key) != new.get(key) and not key.endswith(".description")
            ]
    return changes


def plugin_of(root: Path) -> Any:
    """The `module:function` that the data policy would import, None without one."""
    return _settings(root / _POLICY).get("limits.name_plugin")


def _judges(key: str) -> bool:
    return key.startswith(("evaluation.", "rollout.")) or key == "data.evaluation"


def _settings(path: Path) -> dict[str, Any]:
    """Leaves of a YAML file by dotted key; empty where it is missing or not plain YAML, which the plan says in full elsewhere."""
    leaves: dict[str, Any] = {}

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict) and node:
            for name, child in node.items():
                walk(child, f"{key}.{name}" if key else str(name))
        else:
            leaves[key] = node

    try:
        content = path.read_text(encoding="utf-8")
        # Aliases can make a few lines grow without bound; no file of this repository may have them.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, Loader=yaml.SafeLoader)):
            return {}
        walk(yaml.safe_load(content), "")
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return leaves


def _rows(path: str, before: Path, after: Path) -> RuleChange:
    def said(file: Path) -> tuple[int, str] | None:
        if not file.is_file():
            return None
        rows = sum(1 for line in file.read_bytes().splitlines() if line.strip())
        return rows, f"{rows} lines, sha256 {sha256_file(file)[:12]}"

    old, new = said(before), said(after)
    fewer = bool(old and (new is None or new[0] < old[0])) or None
    return RuleChange(path, "rows", old and old[1], new and new[1], fewer)


def _weaker(path: str, key: str, old: Any, new: Any) -> bool | None:
    if not path.startswith(_GATES):
        return None
    if new is None:
        return True
    if old is None:
        return False
    relation = key.rpartition(".")[2]
    try:
        return {"min": new < old, "max": new > old}.get(relation)
    except TypeError:
        return None


def _shown(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)[:120]
