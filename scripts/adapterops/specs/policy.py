"""`configs/data_policy.yaml` as data."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterops.schemas import ROOT, SchemaProblem
from adapterops.shapes.data_policy import DataPolicy, Dataset, Range
from adapterops.shapes.data_policy import Limits as LimitsDocument
from adapterops.yamlfile import Sound, load_yaml

POLICY = ROOT / "configs" / "data_policy.yaml"


@dataclass(frozen=True)
class Limits:
    """Limits of one file, as `configs/data_policy.yaml` has them; token ranges are inclusive."""

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
        """The limits of one file, by its path from the repository's root."""
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
    limits = _limits(values["limits"])
    overrides = tuple((entry["files"], _overridden(limits, entry)) for entry in values["datasets"])
    return Policy(path, limits, overrides)


def _limits(values: LimitsDocument) -> Limits:
    return Limits(
        instruction_tokens=_range(values["instruction_tokens"]),
        output_tokens=_range(values["output_tokens"]),
        duplicate_rate=values["duplicate_rate"],
        near_duplicate=values["near_duplicate"],
        contamination_hint=values["contamination_hint"],
        language=values["language"],
        language_share=values["language_share"],
        licenses=tuple(values["licenses"]),
        personal_data=tuple(values["personal_data"]),
    )


def _overridden(limits: Limits, entry: Dataset) -> Limits:
    instruction, output = entry.get("instruction_tokens"), entry.get("output_tokens")
    return Limits(
        instruction_tokens=_range(instruction) if instruction else limits.instruction_tokens,
        output_tokens=_range(output) if output else limits.output_tokens,
        duplicate_rate=entry.get("duplicate_rate", limits.duplicate_rate),
        near_duplicate=entry.get("near_duplicate", limits.near_duplicate),
        contamination_hint=entry.get("contamination_hint", limits.contamination_hint),
        language=entry.get("language", limits.language),
        language_share=entry.get("language_share", limits.language_share),
        licenses=tuple(entry.get("licenses", limits.licenses)),
        personal_data=tuple(entry.get("personal_data", limits.personal_data)),
    )


def _range(values: Range) -> tuple[int, int]:
    return values["min"], values["max"]


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
