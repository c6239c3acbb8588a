"""What the default branch's rules of today say of a verdict that was kept, and so was given by rules of another day or tree."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from adapterops.adapters import AdapterSpec, Pins, load_adapter
from adapterops.documents import read_json, sha256_file
from adapterops.errors import UsageError
from adapterops.evaluate.detector import judge_model
from adapterops.gate.judge import judge_once
from adapterops.serving.config import load_serving_config

_MAIN = "main"


def judge_by_todays_rules(run: Path, adapter: str) -> None:
    """Leave in `run/main` the verdict that this checkout's rules give now, or nothing where the run was judged by them.

    What was measured is judged: by the run's own evaluation, or by the one of the default branch's rows that was kept beside it. If
    neither was made as the default branch asks, the verdict is an ERROR that says so, because silence would read as consent.

    Args:
        run: documents of a kept judgement, whose own verdict may be by other rules (a pull request's, or those of another day).
        adapter: its name here.

    Raises:
        UsageError: a document breaks its schema.
    """
    theirs, own_results, their_results = run / _MAIN / "gate_report.json", run / "eval_results.json", run / _MAIN / "eval_results.json"
    try:
        spec = load_adapter(adapter)
    except UsageError:  # it is new, or gone from here: there are no rules to judge by
        shutil.rmtree(run / _MAIN, ignore_errors=True)
        return
    asked = _asked(spec)
    otherwise = _differing(own_results, asked)
    own_gates = read_json(run / "gate_report.json", "gate_report")["gate_config"]["sha256"]
    if not otherwise and own_gates == sha256_file(spec.evaluation.gate):
        shutil.rmtree(run / _MAIN, ignore_errors=True)
        return
    theirs.unlink(missing_ok=True)
    if otherwise and their_results.is_file() and not _differing(their_results, asked):
        judge_once(their_results, spec.evaluation.gate, theirs, pins=spec.pins)
        return
    objections = [
        f"The default branch measures with other {what}, so that its rules say nothing of what was measured. "
        "Any change to the adapter's data, recipe or rules has it judged by both."
        for what in otherwise
    ]
    report = run / "data_report.json"
    pins = Pins(adapter) if otherwise else spec.pins  # of other rows the objections speak
    judge_once(
        own_results, spec.evaluation.gate, theirs, pins=pins, data_report=report if report.is_file() else None, objections=objections
    )


def _asked(spec: AdapterSpec) -> dict[str, Any]:
    """What the specification asks an evaluation to be made with, as `_made` reads it from one."""
    how = spec.evaluation
    return {
        "evaluation rows": sha256_file(spec.evaluation_data),
        "extension rows": sha256_file(spec.extension_data) if spec.extension_data else None,
        "decoding": how.max_tokens,
        "load": [how.latency_requests, how.latency_concurrency],
        "judge of the win rate": judge_model(how.win_rate_judge),
        "precision of the engine": load_serving_config(spec.serving).engine.dtype,
    }


def _made(results: dict[str, Any]) -> dict[str, Any]:
    used, extension = results["key_inputs"], results["evaluation_data"]["extension"]
    return {
        "evaluation rows": results["evaluation_data"]["sha256"],
        "extension rows": extension["sha256"] if extension else None,
        "decoding": used["decoding"]["max_tokens"],
        "load": [used["speed"]["requests"], used["speed"]["concurrency"]],
        "judge of the win rate": used["win_rate_judge"],
        "precision of the engine": used["engine"]["dtype"],
    }


def _differing(results: Path, asked: dict[str, Any]) -> list[str]:
    made = _made(read_json(results, "eval_results"))
    return [what for what, value in asked.items() if made[what] != value]
