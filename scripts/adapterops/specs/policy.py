"""`configs/data_policy.yaml` as data."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterops.schemas import ROOT, SchemaProblem
from adapterops.shapes.data_policy import DataPolicy
from adapterops.yamlfile import Sound, load_yaml

POLICY = ROOT / "configs" / "data_policy.yaml"


@dataclass(frozen=True)
class Limits:
    """Limits of one file; see the comments of `configs/data_policy.yaml`. Token ranges are
    inclusive.
    """

    instruction_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    duplicate_rate: float
    near_duplicate: float
    contamination_hint: float
    language: str | None
    language_share: float
    licenses: tuple[str, ...]
    personal_data: tuple[str, ...]


@dataclass(frozen=True)
class Policy:
    """Limits for every file, and overrides by pattern, the first match first."""

    path: Path
    limits: Limits
    overrides: tuple[tuple[str, Limits], ...]

    def limits_for(self, file: Path) -> Limits:
        """The limits of one file; patterns are matched against its path from the repository's
        root.
        """
        try:
            resolved = file.resolve()
        except (OSError, RuntimeError):  # a loop of symbolic links; opening it will say so
            return self.limits
        return self.limits_of(
            str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else str(file)
        )

    def limits_of(self, name: str) -> Limits:
        """The limits of the file with that path from the repository's root."""
        return next(
            (limits for pattern, limits in self.overrides if fnmatch.fnmatch(name, pattern)),
            self.limits,
        )


def load_policy(path: Path = POLICY) -> Policy:
    """Read and check the policy.

    Raises:
        UsageError: schema violations, or a range whose minimum exceeds its maximum.
    """
    values = load_yaml(path, DataPolicy, _inverted)
    limits = Limits(**_limits(values["limits"]))
    overrides = []
    for entry in values["datasets"]:
        changed = {key: value for key, value in entry.items() if key not in {"files", "reason"}}
        overrides.append((entry["files"], replace(limits, **_limits(changed))))
    return Policy(path, limits, tuple(overrides))


def _limits(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: (value["min"], value["max"])
        if isinstance(value, dict)
        else tuple(value)
        if isinstance(value, list)
        else value
        for key, value in values.items()
    }


def _inverted(sound: Sound) -> list[SchemaProblem]:
    """Ranges that no row could pass."""
    sections: list[tuple[tuple[str | int, ...], Any]] = [(("limits",), sound("limits"))]
    sections += [
        (("datasets", number), entry) for number, entry in enumerate(sound("datasets") or [])
    ]
    problems = []
    for place, settings in sections:
        for key, value in settings.items() if isinstance(settings, dict) else ():
            low, high = (
                (value.get("min"), value.get("max")) if isinstance(value, dict) else (None, None)
            )
            if isinstance(low, int) and isinstance(high, int) and low > high:
                problems.append(
                    SchemaProblem(
                        (*place, key), f"min {low} exceeds max {high}; no row could pass."
                    )
                )
    return problems
