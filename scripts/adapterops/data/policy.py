"""`configs/data_policy.yaml` as data."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterops.errors import UsageError
from adapterops.schemas import ROOT
from adapterops.yamlfile import load_yaml

POLICY = ROOT / "configs" / "data_policy.yaml"


@dataclass(frozen=True)
class Limits:
    """Limits of one file; see the comments of `configs/data_policy.yaml`. Token ranges are inclusive."""

    instruction_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    duplicate_rate: float
    near_duplicate: float
    contamination_hint: float
    language: str | None
    language_share: float
    licenses: tuple[str, ...]
    personal_data: tuple[str, ...]
    name_plugin: str | None


@dataclass(frozen=True)
class Policy:
    """Limits for every file, and overrides by pattern, the first match first."""

    path: Path
    limits: Limits
    overrides: tuple[tuple[str, Limits], ...]

    def limits_for(self, file: Path) -> Limits:
        """The limits of one file; patterns are matched against its path from the repository's root."""
        try:
            resolved = file.resolve()
        except (OSError, RuntimeError):  # a loop of symbolic links; opening it will say so
            return self.limits
        name = str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else str(file)
        return next((limits for pattern, limits in self.overrides if fnmatch.fnmatch(name, pattern)), self.limits)


def load_policy(path: Path = POLICY) -> Policy:
    """Read and check the policy.

    Raises:
        UsageError: schema violations, or a range whose minimum exceeds its maximum.
    """
    values = load_yaml(path, "data_policy")
    limits = Limits(**_limits(path, values["limits"]))
    overrides = []
    for entry in values["datasets"]:
        changed = {key: value for key, value in entry.items() if key not in {"files", "reason"}}
        overrides.append((entry["files"], replace(limits, **_limits(path, changed))))
    return Policy(path, limits, tuple(overrides))


def _limits(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _range(path, value) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
    }


def _range(path: Path, value: dict[str, int]) -> tuple[int, int]:
    if value["min"] > value["max"]:
        raise UsageError(f"{path}: min {value['min']} exceeds max {value['max']}; no row could pass.")
    return value["min"], value["max"]
