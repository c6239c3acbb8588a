"""What the default branch's rules of today say of a verdict that was kept, and so was given by
rules of another day or tree.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from adapterops.data.general_sets import described
from adapterops.documents import read_json, sha256_file, sha256_json, write_json
from adapterops.errors import UsageError
from adapterops.evaluate.detector import judge_model
from adapterops.gate.judge import judge_once
from adapterops.shapes.eval_results import EvalResults
from adapterops.shapes.gate_report import GateReport
from adapterops.specs.adapter import ADAPTERS, AdapterSpec, Pins, load_adapter
from adapterops.specs.gate import load_gates
from adapterops.specs.serving import load_serving_config

_MAIN = "main"
_UNRECORDED = "not recorded"


def judge_by_todays_rules(run: Path, adapter: str, adapters: Path = ADAPTERS) -> None:
    """Leave in `run/main` the verdict that the default branch's rules give now, or nothing where
    the run was judged by them.

    What was measured is judged: by the run's own evaluation, or by the one of the default branch's
    rows that was kept beside it, with what validation says of them. If neither was made as the
    default branch asks, or its rules cannot be read, the verdict is an ERROR that says so, because
    silence would read as consent.

    Args:
        run: documents of a kept judgement, whose own verdict may be by other rules (a pull
            request's, or those of another day).
        adapter: its name on the default branch; one that is not there has no rules.
        adapters: where the default branch's specifications are.

    Raises:
        UsageError: a document breaks its schema.
    """
    theirs, own_results, their_results = (
        run / _MAIN / "gate_report.json",
        run / "eval_results.json",
        run / _MAIN / "eval_results.json",
    )
    own_data, their_data = run / "data_report.json", run / _MAIN / "data_report.json"
    if not (adapters / f"{adapter}.yaml").is_file():  # it is new, or gone from there
        shutil.rmtree(run / _MAIN, ignore_errors=True)
        return
    own = read_json(run / "gate_report.json", GateReport)
    try:
        spec = load_adapter(adapter, adapters)
        gates, asked = load_gates(spec.evaluation.gate), _asked(spec)
    except UsageError as error:
        why = " ".join(str(error).split())
        said = (
            f"The default branch's rules cannot be read, so that they judge nothing: {why} Mend"
            " them there, then comment /rerun-gate."
        )
        nothing = {"errors": [said], "warnings": [], "gates": [], "comparisons": [], "slices": []}
        write_json(theirs, {**own, **nothing, "verdict": "ERROR", "reason": said}, GateReport)
        return
    otherwise = _differing(own_results, asked)
    if not otherwise and own["gate_config"]["sha256"] == gates.sha256:
        shutil.rmtree(run / _MAIN, ignore_errors=True)
        return
    theirs.unlink(missing_ok=True)
    if (
        otherwise
        and their_results.is_file()
        and their_data.is_file()
        and not _differing(their_results, asked)
    ):
        judge_once(their_results, gates.path, theirs, pins=spec.pins, data_report=their_data)
        return
    objection = (
        f"The default branch measures otherwise ({'; '.join(otherwise)}), so that its rules say"
        " nothing of what was measured. Any change to the adapter's data, recipe or rules has it"
        " judged by both."
    )
    judge_once(
        own_results,
        gates.path,
        theirs,
        pins=Pins(adapter) if otherwise else spec.pins,  # of other rows the objection speaks
        data_report=own_data if own_data.is_file() else None,
        objections=[objection] if otherwise else [],
    )


def _asked(spec: AdapterSpec) -> dict[str, Any]:
    """The settings that an evaluation is made with, as the specification has them; `_made` reads
    them from one.
    """
    how = spec.evaluation
    return {
        "data.evaluation": sha256_file(spec.evaluation_data)[:12],
        "data.extension": sha256_file(spec.extension_data)[:12] if spec.extension_data else "none",
        "evaluation.general": _general(described(spec.general)),
        "evaluation.max_tokens": how.max_tokens,
        "evaluation.latency_requests": how.latency_requests,
        "evaluation.latency_concurrency": how.latency_concurrency,
        "evaluation.win_rate_judge": judge_model(how.win_rate_judge),
        "engine.dtype": load_serving_config(spec.serving).engine.dtype,
    }


def _made(results: dict[str, Any]) -> dict[str, Any]:
    extension = results["evaluation_data"]["extension"]

    def used(*keys: str) -> Any:
        value: Any = results["key_inputs"]
        for key in keys:  # an evaluation that is older than a setting did not record it
            value = value.get(key, _UNRECORDED) if isinstance(value, dict) else _UNRECORDED
        return value

    return {
        "data.evaluation": results["evaluation_data"]["sha256"][:12],
        "data.extension": extension["sha256"][:12] if extension else "none",
        "evaluation.general": _general(results["evaluation_data"].get("general") or {}),
        "evaluation.max_tokens": used("decoding", "max_tokens"),
        "evaluation.latency_requests": used("speed", "requests"),
        "evaluation.latency_concurrency": used("speed", "concurrency"),
        "evaluation.win_rate_judge": used("win_rate_judge"),
        "engine.dtype": used("engine", "dtype"),
    }


def _general(sets: dict[str, Any]) -> str:
    """The general sets in a word: what was asked of which files."""
    return sha256_json(
        [[file["sha256"], file["asked"]] for kind in sorted(sets) for file in sets[kind]]
    )[:12]


def _differing(results: Path, asked: dict[str, Any]) -> list[str]:
    """The settings that the evaluation was made with otherwise, each with both values."""
    made = _made(read_json(results, EvalResults))
    return [
        f"{setting}: {value} there, {made[setting]} here"
        for setting, value in asked.items()
        if made[setting] != value
    ]
