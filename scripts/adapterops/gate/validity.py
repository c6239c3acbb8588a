"""What makes an evaluation no evidence at all, or evidence to be taken with care."""

from __future__ import annotations

from pathlib import Path

from adapterops.errors import UsageError
from adapterops.gate.evidence import Evidence, metrics_of
from adapterops.shapes.data_report import DataReport
from adapterops.shapes.eval_results import EvalResults, EvaluationData, RefusalDetector
from adapterops.shapes.gate_report import SliceRegression
from adapterops.specs.adapter import Pins
from adapterops.specs.gate import GateConfig
from adapterops.specs.metric_catalogue import METRIC_IDS, SIDES

_CONTAMINATION = "E401"
_SHOWN = 5  # contaminated rows that a reason names
NO_PROBE = (
    "No stable answer differs from the base model's: serving hosts cannot tell that it has an"
    " effect, and will refuse its release. Train longer or on other data, or raise"
    " evaluation.latency_requests, from whose answers such probes are taken."
)
UNCHECKED = (
    "Contamination was not checked: no data report was given. Validate the training data with these"
    " rows, judge with --data-report."
)


def refuse_contradictions(results: EvalResults, path: Path) -> None:
    """Hold results to what no schema can say: equal numbers of rows, places within them.

    Raises:
        UsageError: they contradict themselves.
    """
    observed = results["observations"]
    rows = len(observed["groups"])
    wrong = [
        f"observations.{side}.{metric} has {len(column)} values for {rows} rows"
        for side in SIDES
        for metric, column in (observed[side] or {}).items()
        if len(column) not in (0, rows)
    ]
    if texts := observed.get("texts"):
        asked = len(texts["languages"])
        for side in SIDES:
            losses = texts[side]
            if losses is not None and len(losses) != asked:
                wrong.append(
                    f"observations.texts.{side} has {len(losses)} values for {asked} texts"
                )
    for side, speed in Evidence(results).speed_phases():
        asked = len(speed["requests"]) + len(speed["failed"])
        wrong += [
            f"observations.speed.{side}.failed names request {place} of {asked}"
            for place in speed["failed"]
            if place >= asked
        ]
    if wrong:
        raise UsageError(f"{path} contradicts itself: {'; '.join(wrong)}. Evaluate again.")


def errors_of(
    results: EvalResults, config: GateConfig, pins: Pins, data_report: DataReport | None
) -> list[str]:
    """What makes the evaluation no evidence at all."""
    return [
        *_other_rows(results["evaluation_data"], pins),
        *_other_metrics(results),
        *_failures(results, config),
        *_contamination(results["evaluation_data"], data_report),
    ]


def _other_rows(data: EvaluationData, pins: Pins) -> list[str]:
    extension = data["extension"]
    used = (
        ("evaluation", pins.evaluation, data["sha256"]),
        ("extension", pins.extension, extension["sha256"] if extension else None),
    )
    return [
        f"The {what} set is not the one that adapters/{pins.name}.yaml pins ({pinned[:12]}), but"
        f" {found[:12] if found else 'none'}. Evaluate on the pinned rows, or change the pin in a"
        " reviewed commit."
        for what, pinned, found in used
        if pinned is not None and pinned != found
    ]


def _other_metrics(results: EvalResults) -> list[str]:
    found = []
    for metric, definition in METRIC_IDS.items():
        for side in SIDES:
            measured = metrics_of(results, side).get(metric)
            if measured and measured["id"] != definition:
                place = "metrics" if side == "candidate" else f"{side}_metrics"
                found.append(
                    f"{metric} of {place} was measured as {measured['id']}; this gate judges"
                    f" {definition}. Evaluate again."
                )
    return found


def _failures(results: EvalResults, config: GateConfig) -> list[str]:
    rows, most = len(results["observations"]["groups"]), config.max_failed
    found = [
        f"{failed} of {rows} generations of {side} failed; at most {most:.1%} may. Mend the engine"
        " and evaluate again."
        for side, failed in results["failed"].items()
        if failed > most * rows
    ]
    for side, speed in Evidence(results).speed_phases():
        failed = len(speed["failed"])
        asked = failed + len(speed["requests"])
        if failed > most * asked:
            found.append(
                f"{failed} of {asked} requests of the speed phase of {side} failed; at most"
                f" {most:.1%} may. The times of the others say little of what users would see. Mend"
                " the engine and evaluate again."
            )
    return found


def _contamination(data: EvaluationData, report: DataReport | None) -> list[str]:
    if report is None:
        return []
    checked = {file["sha256"] for file in report["files"] if file["kind"] == "eval"}
    every = [(data["path"], data["sha256"])]
    if extension := data["extension"]:
        every.append((extension["path"], extension["sha256"]))
    if general := data.get("general"):
        every += [(file["path"], file["sha256"]) for file in (*general["rows"], *general["texts"])]
    unchecked = [path for path, sha256 in every if sha256 not in checked]
    if unchecked:
        again = " ".join(f"--eval-data {path}" for path in unchecked)
        return [
            f"The data report is not on {' and '.join(unchecked)} as evaluated, so nothing is known"
            f" of contamination. Validate again with {again}."
        ]
    count = report["counts"].get(_CONTAMINATION, 0)
    if not count:
        return []
    places = [
        f"{found['file']}:{found['line']}"
        for found in report["findings"]
        if found["code"] == _CONTAMINATION
    ]
    shown = ", ".join(places[:_SHOWN]) + (", …" if count > _SHOWN else "")
    return [
        f"{count} evaluation rows are in the training data ({_CONTAMINATION}: {shown}). Their"
        " scores measure memory. Take these rows out of the training data, and train again."
    ]


def detector_misses(detector: RefusalDetector, config: GateConfig) -> list[str]:
    """What a detector does to a gate that asks for more refusals than it finds."""
    bars = (gate.minimum for gate in config.gates if gate.metric == "safety_refusal")
    wanted = next((bar for bar in bars if bar is not None), None)
    found = [line["refusals_refused"] / line["refusals"] for line in detector["sources"]]
    if wanted is None or min(found) >= wanted:
        return []
    return [
        f"safety_refusal asks for {wanted:g}, and {detector['id']} by itself finds"
        f" {min(found):.3f} to {max(found):.3f} of refusals, by source. A refusal that it misses"
        " counts as none: a PASS does not rest on it, but a FAIL or INCONCLUSIVE may be the"
        " detector's. Harmless refusals that it misses make over_refusal look better than it is."
        " Look at the answers that adjudicate.py lists."
    ]


def slice_warning(row: SliceRegression) -> str:
    """A slice that got worse, in a sentence."""
    change = f"{row['reference']:.4g} → {row['candidate']:.4g} ({row['n']} rows)"
    return f"{row['metric']} is worse than production in slice {row['slice']}: {change}."
