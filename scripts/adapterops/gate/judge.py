"""Judge evaluation results against a gate file."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

from adapterops.documents import read_json, sha256_file, sha256_json, write_json
from adapterops.errors import UsageError
from adapterops.schemas import repository_path
from adapterops.yamlfile import load_yaml

# The worst verdict of the gates is the verdict of the whole.
_SEVERITY = ("PASS", "INCONCLUSIVE", "FAIL", "ERROR")


def judge(results_path: Path, gates_path: Path, output: Path, *, adapter_name: str | None = None) -> dict[str, Any]:
    """Judge a candidate, and its base model for comparison, and write the gate report.

    Args:
        results_path: `eval_results.json` of the evaluate stage.
        gates_path: gate file.
        output: gate report to write.
        adapter_name: recorded in the report.

    Returns:
        The report (`configs/schemas/gate_report.json`).

    Raises:
        UsageError: a document or the gate file is not what its schema says, or a gate asks for nothing.
    """
    results = read_json(results_path, "eval_results")
    gates = load_yaml(gates_path, "quality_gate")["gates"]
    for metric, gate in gates.items():
        if "min" in gate and "max" in gate and gate["min"] > gate["max"]:
            raise UsageError(f"{gates_path}: gates.{metric}: min {gate['min']} exceeds max {gate['max']}; nothing can pass.")
    candidate = _judge_all(gates, results["metrics"])
    # Speed is the adapter's business: the base model is judged on what it answers.
    base = _judge_all({metric: gate for metric, gate in gates.items() if metric in results["base_metrics"]}, results["base_metrics"])
    verdict = _worst(candidate)
    gate_config = {"path": repository_path(gates_path), "sha256": sha256_file(gates_path)}
    report = {
        "schema": "gate_report/v1",
        "gate_key": sha256_json({"evaluation": results["eval_key"], "gates": gates}),
        "verdict": verdict,
        "reason": _reason(verdict, candidate),
        "adapter": {"name": adapter_name, **results["adapter"]},
        "gate_config": gate_config,
        "gates": candidate,
        "base": {"verdict": _worst(base) if base else "ERROR", "gates": base},
        "probes": results["probes"],
        "evaluation": {"eval_key": results["eval_key"], **results["evaluation_data"]},
    }
    write_json(output, report, "gate_report")
    return report


def _judge_all(gates: dict[str, Any], metrics: dict[str, Any]) -> list[dict[str, Any]]:
    verdicts = []
    for metric, gate in gates.items():
        for relation in ("min", "max"):
            if relation in gate:
                verdicts.append(judge_metric(metric, relation, gate[relation], metrics.get(metric), gate["description"]))
    return verdicts


def judge_metric(metric: str, relation: str, threshold: float, measured: dict[str, Any] | None, description: str) -> dict[str, Any]:
    """Judge one metric against one threshold.

    A metric that is missing, null, not a number or measured on nothing is an ERROR and never a pass. Rates are compared as
    the integers they come from, so that 49 of 50 meets 0.98 exactly, whatever binary floating point makes of it.
    """
    value = measured.get("value") if measured else None
    n = measured.get("n") if measured else None
    row = {"metric": metric, "relation": relation, "threshold": threshold, "value": value, "n": n, "description": description}
    if value is None or not n or not math.isfinite(value):
        reason = f"{metric} was not measured: no row of the evaluation data asks for it, or its phase did not run."
        return {**row, "value": None, "verdict": "ERROR", "reason": reason}
    exact = Fraction(measured["count"], n) if measured and "count" in measured else Fraction(value)
    bar = Fraction(str(threshold))
    met = exact >= bar if relation == "min" else exact <= bar
    sign = "≥" if relation == "min" else "≤"
    counted = f" ({measured['count']} of {n})" if measured and "count" in measured else ""
    reason = f"{metric} {value:.4g}{counted}, wanted {sign} {threshold:g}."
    return {**row, "verdict": "PASS" if met else "FAIL", "reason": reason}


def _worst(gates: list[dict[str, Any]]) -> str:
    return max((str(gate["verdict"]) for gate in gates), key=_SEVERITY.index)


def _reason(verdict: str, gates: list[dict[str, Any]]) -> str:
    if verdict == "PASS":
        return f"All {len(gates)} gates passed."
    missed = [gate["reason"] for gate in gates if gate["verdict"] != "PASS"]
    return f"{len(missed)} of {len(gates)} gates not passed: " + " ".join(missed)
