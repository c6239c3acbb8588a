"""The documents of one run, read and checked once for every rendering."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterops.documents import read_json


@dataclass(frozen=True)
class Report:
    """The documents of one run.

    Args:
        gate: `gate_report.json`.
        results: `eval_results.json`.
        samples: lines of `eval_samples.jsonl`.
        training: `train_manifest.json`.
        data: `data_report.json`, where there is one.
    """

    gate: dict[str, Any]
    results: dict[str, Any]
    samples: list[dict[str, Any]]
    training: dict[str, Any]
    data: dict[str, Any] | None

    @property
    def name(self) -> str:
        """The adapter's name, or the beginning of its digest."""
        return str(self.gate["adapter"]["name"] or self.gate["adapter"]["digest"][:12])


def collect(run: Path) -> Report:
    """Read a run's documents.

    Raises:
        UsageError: one is missing or breaks its schema.
    """
    results = read_json(run / "eval_results.json", "eval_results")
    samples = (run / results["samples"]).read_text(encoding="utf-8").splitlines()
    data = run / "data_report.json"
    return Report(
        gate=read_json(run / "gate_report.json", "gate_report"),
        results=results,
        samples=[json.loads(line) for line in samples],
        training=read_json(run / "model" / "train_manifest.json", "train_manifest"),
        data=read_json(data, "data_report") if data.is_file() else None,
    )
