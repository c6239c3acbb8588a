"""What a pull request changes in the rules that it will be judged by: old → new."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from adapterops import escape
from adapterops.documents import sha256_file
from adapterops.errors import UsageError
from adapterops.shapes.plan import ChangedRule
from adapterops.specs.adapter import GENERAL_LANGUAGES
from adapterops.specs.policy import Limits, load_policy
from adapterops.yamlfile import plain_yaml

POLICY = "configs/data_policy.yaml"
_GATES = "configs/quality_gate"
_RECIPES = "configs/qlora/"
_ABSENT = object()

Kind = Literal["gate", "policy", "recipe", "adapter", "new"]
Settings = Mapping[str, object]  # leaves of a YAML file by dotted key


def _more(value: Any) -> float:
    return float(value)


def _less(value: Any) -> float:
    return -float(value)


# Settings by how strict a value is. Of lists decides what else a row may be, or is looked for.
_STRICTNESS: dict[str, dict[str, Callable[[Any], float]]] = {
    "gate": {
        "min": _more,
        "max": _less,
        "margin": _less,
        "margin_to_base": _less,
        # below 1 for what should be high, above it for what should be low
        "ratio": lambda value: -abs(value - 1),
        "min_n": _more,
        "max_failed_generations": _less,
        "rule": ("point", "bound").index,
        "on_inconclusive": ("warn", "block").index,
    },
    "policy": {
        "min": _more,
        "max": _less,
        "duplicate_rate": _less,
        "near_duplicate": _less,
        "contamination_hint": _less,
        "language_share": _more,
    },
    "recipe": {"max_loss_increase": _less, "on_truncation": ("allow", "error").index},
    "adapter": {
        "general": len,  # languages
        "general_rows": _more,
        "general_texts": _more,
        "strategy": ("immediate", "blue-green", "canary").index,
        "min_duration_s": _more,
        "min_requests": _more,
        "error_rate": _less,
        "latency_p95_ratio": _less,
        "saturation": _less,
        "negative_feedback": _less,
        "win_rate": _more,
    },
}
# Bars that a file need not have: without one, nothing is asked.
_OPTIONAL_BARS: dict[Kind, tuple[str, ...]] = {
    "gate": ("min", "max", "margin", "margin_to_base", "ratio"),
    "adapter": ("negative_feedback", "win_rate"),
}
_LISTS = {"licenses": "allows", "personal_data": "looks for"}
# What a gate file means that does not say it: a setting is no higher bar for being written out.
_UNSAID = {"min_n": 20, "max_failed_generations": 0.01, "rule": "point", "on_inconclusive": "warn"}


@dataclass(frozen=True)
class RuleChange:
    """One setting.

    Args:
        file: path in the repository.
        setting: dotted; an element of a list by what it is about, else by its place.
        old: as `main` has it, as JSON, whole; None where it is new.
        new: as the pull request has it; None where it is gone.
        weaker: True where the bar is certainly lower; False where it is higher; None where that
            cannot be told.
    """

    file: str
    setting: str
    old: str | None
    new: str | None
    weaker: bool | None

    def document(self) -> ChangedRule:
        """As the plan has it."""
        return {
            "file": self.file,
            "setting": self.setting,
            "old": self.old,
            "new": self.new,
            "weaker": self.weaker,
        }


def is_rule(path: str) -> bool:
    """True for a file that decides what passes: gates, data policy, evaluation rows."""
    return (
        (path.startswith(_GATES) and path.endswith(".yaml"))
        or path == POLICY
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
    gates = _named(before, after, "evaluation.gate")
    gates |= {path for path in paths if path.startswith(_GATES)}
    rows = _named(before, after, "data.evaluation", "data.extension")
    for path in paths:
        if (path.startswith("data/eval/") and is_rule(path)) or path in rows:
            changes.append(_rows(path, before / path, after / path))
            continue
        kind = _kind(path, gates)
        if kind is None:
            continue
        old, new = (_judging(kind, _settings(root / path)) for root in (before, after))
        if kind in ("adapter", "recipe") and not (old and new):
            continue  # a new or removed one is in the plan itself
        # Where there was no such gate file, nothing tells whether its bars are lower.
        changes += _differences(path, old, new, kind if old else "new")
        if kind == "policy":
            changes += [*_order(old, new), *_effects(before, after)]
        former, now = (str(side.get("evaluation.gate")) for side in (old, new))
        if former != now:  # other gates for this adapter, though no gate changed
            changes += _differences(
                f"{former} → {now}", _inside(before, former), _inside(after, now), "gate"
            )
    return changes


def _kind(path: str, gates: set[str]) -> Kind | None:
    if path == POLICY:
        return "policy"
    if path in gates:
        return "gate"
    if path.startswith("adapters/") and path.endswith(".yaml"):
        return "adapter"
    if path.startswith(_RECIPES) and path.endswith(".yaml"):
        return "recipe"
    return None


def _judging(kind: Kind, settings: Settings) -> Settings:
    """Settings that decide what passes; of recipes and adapters those are few."""
    if kind == "recipe":
        return {
            key: value
            for key, value in settings.items()
            if key.rpartition(".")[2] in _STRICTNESS["recipe"]
        }
    if kind == "adapter":
        parts = ("evaluation.", "rollout.", "data.evaluation", "data.extension", "serving")
        return {key: value for key, value in settings.items() if key.startswith(parts)}
    return {
        key: value
        for key, value in settings.items()
        if kind != "gate" or not key.endswith(".description")
    }


def _differences(file: str, old: Settings, new: Settings, kind: Kind) -> list[RuleChange]:
    changes = []
    for key in sorted(old.keys() | new.keys()):
        former, now = _shown(old.get(key, _ABSENT)), _shown(new.get(key, _ABSENT))
        if former == now:
            continue
        known = [
            side.get(key, _general(side, key) if kind == "policy" else None) for side in (old, new)
        ]
        changes.append(RuleChange(escape.line(file), key, former, now, _weaker(kind, key, *known)))
    return changes


def _general(settings: Settings, key: str) -> object:
    """What holds where an override of the policy does not say it: the general limit."""
    return settings.get(f"limits.{key.rpartition('].')[2]}")


def _order(old: Settings, new: Settings) -> list[RuleChange]:
    """Overrides in another order: the first one that matches a file counts."""
    sides = [
        list(dict.fromkeys(key.rpartition("].")[0] for key in side if key.startswith("datasets[")))
        for side in (old, new)
    ]
    former, now = (
        [key.removeprefix("datasets[") for key in side if all(key in one for one in sides)]
        for side in sides
    )
    if former == now:
        return []
    return [RuleChange(POLICY, "datasets, in this order", _shown(former), _shown(now), None)]


def _effects(before: Path, after: Path) -> list[RuleChange]:
    """What overrides do to each data file, by order and pattern: no single setting shows that."""
    try:
        old, new = load_policy(before / POLICY), load_policy(after / POLICY)
    except UsageError:  # a policy that cannot be read is refused
        return []
    general = {change.setting: change for change in _limit_changes(old.limits, new.limits)}
    files: dict[RuleChange, list[str]] = {}
    paths = {
        file.relative_to(root)
        for root in (before, after)
        for file in (root / "data").rglob("*.json*")
    }
    for name in sorted(map(str, paths)):
        for change in _limit_changes(old.limits_of(name), new.limits_of(name)):
            if change != general.get(change.setting):  # that one is named already
                files.setdefault(change, []).append(name)
    changes = []
    for change, names in files.items():
        setting = f"{change.setting} in effect for {', '.join(map(escape.line, names))}"
        changes.append(replace(change, setting=setting))
    return changes


def _limit_changes(old: Limits, new: Limits) -> list[RuleChange]:
    former, now = (dict(_leaves(_as_written(limits))) for limits in (old, new))
    return _differences(POLICY, former, now, "policy")


def _as_written(limits: Limits) -> Settings:
    ranges = {
        name: dict(zip(("min", "max"), value, strict=True))
        for name, value in asdict(limits).items()
        if name.endswith("_tokens")
    }
    return asdict(limits) | ranges


def _named(before: Path, after: Path, *settings: str) -> set[str]:
    """Paths that the adapters of either tree name in these settings."""
    specifications = [
        _settings(path)
        for root in (before, after)
        for path in sorted((root / "adapters").glob("*.yaml"))
    ]
    return {
        str(PurePosixPath(str(said[setting])))
        for said in specifications
        for setting in settings
        if setting in said
    }


def _settings(path: Path) -> Settings:
    """Of a file; none where it is missing or not plain YAML, which the plan says elsewhere."""
    try:
        return dict(_leaves(plain_yaml(path)))
    except UsageError:
        return {}


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for name, child in node.items():
            said = escape.line(str(name))
            yield from _leaves(child, f"{key}.{said}" if key else said)
    elif isinstance(node, list | tuple) and any(isinstance(child, dict | list) for child in node):
        names: dict[str, int] = {}
        for place, child in enumerate(node):
            name = (
                escape.line(str(child["files"]))
                if isinstance(child, dict) and "files" in child
                else str(place)
            )
            names[name] = names.get(name, 0) + 1
            yield from _leaves(
                child, f"{key}[{name}]" if names[name] == 1 else f"{key}[{name} #{names[name]}]"
            )
    else:
        yield key, node


def _inside(root: Path, name: str) -> Settings:
    """Settings of a file that a pull request names; nothing outside the tree is shown."""
    path = (root / name).resolve()
    return _judging("gate", _settings(path)) if path.is_relative_to(root.resolve()) else {}


def _rows(path: str, before: Path, after: Path) -> RuleChange:
    def said(file: Path) -> tuple[int, str] | None:
        if not file.is_file():
            return None
        rows = sum(1 for line in file.read_bytes().splitlines() if line.strip())
        return rows, f"{rows} lines, sha256 {sha256_file(file)[:12]}"

    old, new = said(before), said(after)
    fewer = bool(old and (new is None or new[0] < old[0])) or None
    return RuleChange(path, "rows", old and old[1], new and new[1], fewer)


def _weaker(kind: Kind, key: str, old: Any, new: Any) -> bool | None:
    parent, _, setting = key.rpartition(".")
    if kind == "policy" and setting in _LISTS:
        return _weaker_list(setting, old, new)
    if kind == "new" or setting == "confidence":
        return None  # a wider interval helps in one place and hurts in the other
    if None in (old, new):
        if setting in _OPTIONAL_BARS.get(kind, ()):
            return new is None
        if kind == "adapter" and setting in ("general_rows", "general_texts"):
            return old is None  # left out means all
    if kind == "adapter" and setting == "general":
        old, new = (list(GENERAL_LANGUAGES) if value is None else value for value in (old, new))
    if kind == "gate":
        default = _UNSAID.get(setting)
        if (setting, parent) == ("on_inconclusive", "gates.safety_refusal"):
            default = "block"
        old, new = (default if value is None else value for value in (old, new))
    try:
        former, now = (_STRICTNESS[kind][setting](value) for value in (old, new))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None  # a setting without order, or a value that the file's schema refuses
    return None if former == now else bool(now < former)


def _weaker_list(setting: str, old: Any, new: Any) -> bool | None:
    try:
        former, now = frozenset(old), frozenset(new)
    except TypeError:
        return None
    gained, lost = bool(now - former), bool(former - now)
    if _LISTS[setting] == "looks for":
        gained, lost = lost, gained
    return True if gained else False if lost else None


def _shown(value: Any) -> str | None:
    if value is _ABSENT:
        return None
    return escape.line(json.dumps(value, ensure_ascii=False, default=str))
