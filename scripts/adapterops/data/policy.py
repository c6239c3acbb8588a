"""`configs/data_policy.yaml` as data."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from pathlib import Path

from adapterops.errors import UsageError
from adapterops.schemas import ROOT
from adapterops.yamlfile import load_yaml

POLICY = ROOT / "configs" / "data_policy.yaml"


@dataclass(frozen=True)
class Limits:
    """Limits of one file: token ranges inclusive, the duplicate rate exclusive."""

    instruction_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    duplicate_rate: float


@dataclass(frozen=True)
class Policy:
    """Limits for every file, and overrides by pattern, the first match first."""

    path: Path
    limits: Limits
    overrides: tuple[tuple[str, Limits], ...]

    def limits_for(self, file: Path) -> Limits:
        """The limits of one file; patterns are matched against its path from the repository's root."""
        resolved = file.resolve()
        name = str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else str(file)
        return next((limits for pattern, limits in self.overrides if fnmatch.fnmatch(name, pattern)), self.limits)


def load_policy(path: Path = POLICY) -> Policy:
    """Read and check the policy.

    Raises:
        UsageError: schema violations, or a range whose minimum exceeds its maximum.
    """
    values = load_yaml(path, "data_policy")
    general = values["limits"]
    limits = Limits(_range(path, general["instruction_tokens"]), _range(path, general["output_tokens"]), general["duplicate_rate"])
    overrides = []
    for entry in values["datasets"]:
        changed: dict[str, object] = {key: _range(path, entry[key]) for key in ("instruction_tokens", "output_tokens") if key in entry}
        if "duplicate_rate" in entry:
            changed["duplicate_rate"] = entry["duplicate_rate"]
        overrides.append((entry["files"], replace(limits, **changed)))  # type: ignore[arg-type]  # by the schema
    return Policy(path, limits, tuple(overrides))


def _range(path: Path, value: dict[str, int]) -> tuple[int, int]:
    if value["min"] > value["max"]:
        raise UsageError(f"{path}: min {value['min']} exceeds max {value['max']}; no row could pass.")
    return value["min"], value["max"]
