"""What the default branch's rules of today say of a verdict that was kept.

Such a verdict was given by rules of another day or tree.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from adapterops.documents import read_json, write_json
from adapterops.errors import UsageError
from adapterops.gate.judge import judge_once
from adapterops.gate.measurement import asked_settings, measured_otherwise
from adapterops.shapes.eval_results import EvalResults
from adapterops.shapes.gate_report import GateReport
from adapterops.specs.adapter import ADAPTERS, AdapterSpec, Pins, load_adapter
from adapterops.specs.gate import GateConfig, load_gates

_MAIN = "main"


@dataclass(frozen=True)
class _Documents:
    """Of one judgement: the run's own, or what lies in `main/` beside it."""

    directory: Path

    @property
    def verdict(self) -> Path:
        return self.directory / "gate_report.json"

    @property
    def results(self) -> Path:
        return self.directory / "eval_results.json"

    @property
    def data(self) -> Path:
        return self.directory / "data_report.json"

    def otherwise(self, spec: AdapterSpec) -> list[str]:
        return measured_otherwise(read_json(self.results, EvalResults), spec)


def judge_by_todays_rules(run: Path, adapter: str, adapters: Path = ADAPTERS) -> None:
    """Leave in `run/main` the verdict that the default branch's rules give now.

    Nothing is left where the run was judged by them. What was measured is judged: by the run's own
    evaluation, or by the one of the default branch's rows that was kept beside it, with what
    validation says of them. If neither was made as the default branch asks, or its rules cannot be
    read, the verdict is an ERROR that says so, because silence would read as consent.

    Args:
        run: documents of a kept judgement, whose own verdict may be by other rules (a pull
            request's, or those of another day).
        adapter: its name on the default branch; one that is not there has no rules.
        adapters: where the default branch's specifications are.

    Raises:
        UsageError: a document breaks its schema.
    """
    own, theirs = _Documents(run), _Documents(run / _MAIN)
    if not (adapters / f"{adapter}.yaml").is_file():  # it is new, or gone from there
        shutil.rmtree(theirs.directory, ignore_errors=True)
        return
    given = read_json(own.verdict, GateReport)
    try:
        spec, gates = _rules(adapter, adapters)
    except UsageError as error:
        write_json(theirs.verdict, _unreadable(given, error), GateReport)
        return
    otherwise = own.otherwise(spec)
    if not otherwise and given["gate_config"]["sha256"] == gates.sha256:
        shutil.rmtree(theirs.directory, ignore_errors=True)
        return
    theirs.verdict.unlink(missing_ok=True)
    if not otherwise:
        _judge(own, spec, theirs.verdict, pins=spec.pins)
    elif theirs.results.is_file() and theirs.data.is_file() and not theirs.otherwise(spec):
        _judge(theirs, spec, theirs.verdict, pins=spec.pins)
    else:  # of other rows the objection speaks, and no pin has to
        _judge(own, spec, theirs.verdict, pins=Pins(adapter), objection=_objection(otherwise))


def _rules(adapter: str, adapters: Path) -> tuple[AdapterSpec, GateConfig]:
    """The specification and its gates; what says how it is measured is read too.

    Raises:
        UsageError: one of them is broken.
    """
    spec = load_adapter(adapter, adapters)
    gates = load_gates(spec.evaluation.gate)
    asked_settings(spec)
    return spec, gates


def _unreadable(given: GateReport, error: UsageError) -> GateReport:
    said = (
        "The default branch's rules cannot be read, so that they judge nothing:"
        f" {' '.join(str(error).split())} Mend them there, then comment /rerun-gate."
    )
    return {
        **given,
        "verdict": "ERROR",
        "reason": said,
        "errors": [said],
        "warnings": [],
        "gates": [],
        "comparisons": [],
        "slices": [],
    }


def _objection(otherwise: list[str]) -> str:
    return (
        f"The default branch measures otherwise ({'; '.join(otherwise)}), so that its rules say"
        " nothing of what was measured. Any change to the adapter's data, recipe or rules has it"
        " judged by both."
    )


def _judge(
    measured: _Documents, spec: AdapterSpec, output: Path, *, pins: Pins, objection: str = ""
) -> None:
    judge_once(
        measured.results,
        spec.evaluation.gate,
        output,
        pins=pins,
        rollout=spec.rollout,
        data_report=measured.data if measured.data.is_file() else None,
        objections=[objection] if objection else [],
    )
