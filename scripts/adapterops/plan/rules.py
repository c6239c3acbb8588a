"""What a pull request changes in the rules that it will be judged by: old → new, for the top of the comment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from adapterops.documents import sha256_file

_GATES = "configs/quality_gate"
_POLICY = "configs/data_policy.yaml"
# Settings of a gate, by how strict a value is.
_STRICTNESS: dict[str, Callable[[Any], float]] = {
    "min": lambda value: +value,
    "max": lambda value: -value,
    "margin": lambda value: -value,
    "ratio": lambda value: -abs(value - 1),  # below 1 for what should be high, above it for what should be low
    "min_n": lambda value: +value,
    "max_failed_generations": lambda value: -value,
    "rule": ("point", "bound").index,
    "on_inconclusive": ("warn", "block").index,
}
# What a gate file means that does not say it: a setting that appears is no higher bar for that alone.
_UNSAID = {"min_n": 20, "max_failed_generations": 0.01, "rule": "point", "on_inconclusive": "warn"}


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
    return (
        (path.startswith(_GATES) and path.endswith(".yaml"))
        or path == _POLICY
        or (path.startswith("data/eval/") and not path.endswith(".md"))
    )


def rule_changes(paths: list[str], before: Path, after: Path) -> list[RuleChange]:
    """Every rule that differs.

    Args:
        paths: changed paths.
        before: root of the trusted tree.
        after: root of the pull request's tree.
    """
    changes: list[RuleChange] = []
    # What adapters name decides, wherever it lies.
    gates, rows = _named(before, after, "evaluation.gate"), _named(before, after, "data.evaluation", "data.extension")
    gates |= {path for path in paths if path.startswith(_GATES)}
    for path in paths:
        if (path.startswith("data/eval/") and is_rule(path)) or path in rows:
            changes.append(_rows(path, before / path, after / path))
        elif is_rule(path) or path in gates or (path.startswith("adapters/") and path.endswith(".yaml")):
            old, new = _settings(before / path), _settings(after / path)
            # Where there was no such gate file, nothing tells whether its bars are lower.
            gate = path in gates and bool(old)
            if path.startswith("adapters/"):
                if not (old and new):
                    continue  # a new or removed adapter is in the plan itself
                old, new = ({key: value for key, value in side.items() if _judges(key)} for side in (old, new))
            changes += _differences(path, old, new, gate=gate)
            former, now = (str(side.get("evaluation.gate")) for side in (old, new))
            if former != now:  # other gates for this adapter, though no gate changed
                changes += _differences(f"{former} → {now}", _inside(before, former), _inside(after, now), gate=True)
    return changes


def _differences(file: str, old: dict[str, Any], new: dict[str, Any], *, gate: bool) -> list[RuleChange]:
    return [
        RuleChange(file, key, _shown(old.get(key)), _shown(new.get(key)), _weaker(gate, key, old.get(key), new.get(key)))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.endswith(".description")
    ]


def plugin_of(root: Path) -> Any:
    """The `module:function` that the data policy would import, None without one."""
    return _settings(root / _POLICY).get("limits.name_plugin")


def _judges(key: str) -> bool:
    return key.startswith(("evaluation.", "rollout.", "data.evaluation", "data.extension"))


def _named(before: Path, after: Path, *settings: str) -> set[str]:
    """Paths that the adapters of either tree name in these settings."""
    specifications = [_settings(path) for root in (before, after) for path in sorted((root / "adapters").glob("*.yaml"))]
    return {str(PurePosixPath(str(said[setting]))) for said in specifications for setting in settings if setting in said}


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


def _inside(root: Path, name: str) -> dict[str, Any]:
    """Settings of a file that a pull request names; none of what lies outside the tree is shown to anybody."""
    path = (root / name).resolve()
    return _settings(path) if path.is_relative_to(root.resolve()) else {}


def _rows(path: str, before: Path, after: Path) -> RuleChange:
    def said(file: Path) -> tuple[int, str] | None:
        if not file.is_file():
            return None
        rows = sum(1 for line in file.read_bytes().splitlines() if line.strip())
        return rows, f"{rows} lines, sha256 {sha256_file(file)[:12]}"

    old, new = said(before), said(after)
    fewer = bool(old and (new is None or new[0] < old[0])) or None
    return RuleChange(path, "rows", old and old[1], new and new[1], fewer)


def _weaker(gate: bool, key: str, old: Any, new: Any) -> bool | None:
    parent, _, setting = key.rpartition(".")
    if not gate or setting == "confidence":  # a wider interval helps in one place and hurts in the other
        return None
    if setting in ("min", "max", "margin", "ratio") and None in (old, new):
        return new is None
    default = "block" if (setting, parent) == ("on_inconclusive", "gates.safety_refusal") else _UNSAID.get(setting)
    try:
        former, now = (_STRICTNESS[setting](default if value is None else value) for value in (old, new))
    except (KeyError, TypeError, ValueError):
        return None  # a setting without order, or a value that the gate file's schema refuses
    return None if former == now else bool(now < former)


def _shown(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)[:120]
