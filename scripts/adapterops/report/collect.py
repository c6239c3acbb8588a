"""The documents of one run, read and checked once for every rendering."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from adapterops.documents import read_json, sha256_json
from adapterops.errors import UsageError
from adapterops.evaluate.samples import read_samples
from adapterops.shapes.data_report import DataReport
from adapterops.shapes.eval_results import EvalResults, KeyInputs
from adapterops.shapes.eval_sample import EvalSample
from adapterops.shapes.gate_report import GateReport
from adapterops.shapes.plan import Plan
from adapterops.shapes.train_manifest import TrainManifest

MAIN_PROBLEM = Path("main/problem.txt")
T = TypeVar("T")  # a shape


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

    gate: GateReport
    results: EvalResults | None = None
    samples: tuple[EvalSample, ...] = ()
    training: TrainManifest | None = None
    data: DataReport | None = None
    plan: Plan | None = None
    main: GateReport | None = None
    main_problem: str = ""

    @property
    def name(self) -> str:
        """The adapter's name, or the beginning of its digest."""
        return self.gate["adapter"]["name"] or self.gate["adapter"]["digest"][:12]


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
    results = _optional(run / "eval_results.json", EvalResults)
    samples: tuple[EvalSample, ...] = ()
    if results:
        _refuse_others(run, gate, results)
        # Whatever the document says, a file of this run.
        samples = tuple(read_samples(run / Path(results["samples"]).name) or ())
    main, problem = _by_main(run, gate, results)
    return Report(
        gate=gate,
        results=results,
        samples=samples,
        training=_optional(run / "model" / "train_manifest.json", TrainManifest),
        data=_optional(run / "data_report.json", DataReport),
        plan=_plan(run / "plan.json"),
        main=main,
        main_problem=problem,
    )


def _refuse_others(run: Path, gate: GateReport, results: EvalResults) -> None:
    for what, ours, theirs in (
        ("adapters", results["adapter"]["digest"], gate["adapter"]["digest"]),
        ("evaluations", results["eval_key"], gate["evaluation"]["eval_key"]),
    ):
        if ours != theirs:
            raise UsageError(
                f"{run}: eval_results.json and gate_report.json are on different {what}. Judge this"
                " evaluation first."
            )


def _by_main(
    run: Path, gate: GateReport, results: EvalResults | None
) -> tuple[GateReport | None, str]:
    """The default branch's verdict on this evaluation or on its own rows; or why there is none."""
    problem = run / MAIN_PROBLEM
    if problem.is_file():
        return None, problem.read_text(encoding="utf-8").strip()
    main = _optional(run / "main" / "gate_report.json", GateReport)
    if main is None or main["adapter"]["digest"] != gate["adapter"]["digest"]:
        return None, ""
    own = _optional(run / "main" / "eval_results.json", EvalResults)
    known = {gate["evaluation"]["eval_key"], *([own["eval_key"]] if own else [])}
    if results and (extension := results["key_inputs"].get("extension")):
        # The default branch's gates may have been decided by the first rows, and only this
        # branch's have drawn more.
        first: KeyInputs = {**results["key_inputs"], "extension": {**extension, "drawn": False}}
        known.add(sha256_json(first))
    if main["evaluation"]["eval_key"] not in known:
        return None, "main/gate_report.json is on another evaluation than this verdict."
    return main, ""


def _plan(path: Path) -> Plan | None:
    if not path.is_file():
        return None
    try:
        plan: Plan = json.loads(path.read_bytes())
        return plan
    except ValueError as error:
        raise UsageError(
            f"{path}: not JSON ({error}). Remove it; `plan.py` writes it again."
        ) from None


def _optional(path: Path, shape: type[T]) -> T | None:
    return read_json(path, shape) if path.is_file() else None
