"""The documents of one run, read and checked once for every rendering."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterops.documents import read_json, sha256_json
from adapterops.errors import UsageError
from adapterops.shapes.gate_report import GateReport

MAIN_PROBLEM = Path("main/problem.txt")
_SAMPLE = {
    "id",
    "line",
    "tags",
    "prompt",
    "expected",
    "should_refuse",
    "candidate",
    "production",
    "base",
}  # what the renderings read


@dataclass(frozen=True)
class Report:
    """The documents of one run; all but the verdict may be missing, and then their sections are.

    Args:
        gate: `gate_report.json`.
        results: `eval_results.json`.
        samples: lines of `eval_samples.jsonl`.
        training: `train_manifest.json`.
        data: `data_report.json`.
        plan: `plan.json`: what was predicted.
        main: `main/gate_report.json`: the verdict by the default branch's rules, where a pull
            request changes them.
        main_problem: `main/problem.txt`: why there is no such verdict although there should be one;
            else empty.
    """

    gate: dict[str, Any]
    results: dict[str, Any] | None = None
    samples: tuple[dict[str, Any], ...] = ()
    training: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    main: dict[str, Any] | None = None
    main_problem: str = ""

    @property
    def name(self) -> str:
        """The adapter's name, or the beginning of its digest."""
        return str(self.gate["adapter"]["name"] or self.gate["adapter"]["digest"][:12])


def collect(run: Path, gate_report: Path | None = None) -> Report:
    """Read a run's documents.

    Args:
        run: the run directory.
        gate_report: the verdict, where it lies elsewhere than in it.

    Raises:
        UsageError: there is no verdict, or a document breaks its schema, or is of another
            evaluation than the verdict.
    """
    gate = read_json(gate_report or run / "gate_report.json", GateReport)
    results = _optional(run / "eval_results.json", "eval_results")
    samples: tuple[dict[str, Any], ...] = ()
    if results:
        for what, ours, theirs in (
            ("adapters", results["adapter"]["digest"], gate["adapter"]["digest"]),
            ("evaluations", results["eval_key"], gate["evaluation"]["eval_key"]),
        ):
            if ours != theirs:
                raise UsageError(
                    f"{run}: eval_results.json and gate_report.json are on different {what}. Judge"
                    " this evaluation first."
                )
        samples = _samples(
            run / Path(results["samples"]).name
        )  # whatever the document says, a file of this run
    main, problem = _by_main(run, gate, results)
    return Report(
        gate=gate,
        results=results,
        samples=samples,
        training=_optional(run / "model" / "train_manifest.json", "train_manifest"),
        data=_optional(run / "data_report.json", "data_report"),
        plan=_plan(run / "plan.json"),
        main=main,
        main_problem=problem,
    )


def _by_main(
    run: Path, gate: dict[str, Any], results: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, str]:
    """The default branch's verdict on this evaluation, or on the one of its own rows that lies
    beside it; or why there is none.
    """
    problem = run / MAIN_PROBLEM
    if problem.is_file():
        return None, problem.read_text(encoding="utf-8").strip()
    main = _optional(run / "main" / "gate_report.json", "gate_report")
    if main is None or main["adapter"]["digest"] != gate["adapter"]["digest"]:
        return None, ""
    own = _optional(run / "main" / "eval_results.json", "eval_results")
    known = {gate["evaluation"]["eval_key"], *([own["eval_key"]] if own else [])}
    extension = results["key_inputs"].get("extension") if results else None
    if (
        results and extension
        # the default branch's gates may have been decided by the first rows, and only this branch's
        # drawn more
    ):
        known.add(
            sha256_json({**results["key_inputs"], "extension": {**extension, "drawn": False}})
        )
    if main["evaluation"]["eval_key"] not in known:
        return None, "main/gate_report.json is on another evaluation than this verdict."
    return main, ""


def _samples(path: Path) -> tuple[dict[str, Any], ...]:
    """The lines of `eval_samples.jsonl`; none where there is no such file."""
    samples = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
        try:
            sample = json.loads(line)
        except ValueError as error:
            raise UsageError(
                f"{path}:{number}: not JSON ({error}). Evaluate again with --force."
            ) from None
        if not isinstance(sample, dict) or not sample.keys() >= _SAMPLE:
            raise UsageError(
                f"{path}:{number}: not a sample of an evaluation. Evaluate again with --force."
            )
        samples.append(sample)
    return tuple(samples)


def _plan(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except ValueError as error:
        raise UsageError(
            f"{path}: not JSON ({error}). Remove it; `plan.py` writes it again."
        ) from None


def _optional(path: Path, schema: str) -> dict[str, Any] | None:
    return read_json(path, schema) if path.is_file() else None
