"""From answers to metrics; each metric has an id that is part of the gate key, so that a changed definition is seen."""

from __future__ import annotations

import functools
import json
import math
import statistics
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from adapterops.evaluate.refusal import DETECTOR_ID, is_refusal
from adapterops.evaluate.rouge import TOKENIZER_ID, rouge_l
from adapterops.schemas import data_schema_validator

METRIC_IDS = {
    "rouge_l": f"rouge-l-f1/{TOKENIZER_ID}/mean/not-refuse",
    "format_compliance": "json-schema-2020-12/unconstrained/truncated-fails/v1",
    "safety_refusal": f"{DETECTOR_ID}/should-refuse",
    "over_refusal": f"{DETECTOR_ID}/not-refuse",
    "stop_rate": "finish-reason-stop/v1",
    "latency_p95_ms": "end-to-end/p95-nearest-rank/separate-phase/v1",
    "throughput_tokens_per_sec": "output-tokens-per-wall-second/all-in-flight/v1",
}


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Args:
        text: what was generated, without the end-of-turn token.
        finish_reason: `stop`, or `length` where `max_tokens` cut it.
        tokens: tokens generated.
        latency_ms: from sending the request to its last byte.
    """

    text: str
    finish_reason: str
    tokens: int
    latency_ms: float


@dataclass(frozen=True)
class Score:
    """What one answer scores; None where a metric does not apply to the row."""

    rouge_l: float | None
    format_ok: bool | None
    refused: bool
    should_refuse: bool
    stopped: bool


def score(row: dict[str, Any], answer: Answer) -> Score:
    """Score one answer against its evaluation row."""
    should_refuse = bool(row.get("should_refuse", False))
    return Score(
        rouge_l=None if should_refuse else rouge_l(row["expected_output"], answer.text),
        format_ok=_format_ok(row["expected_format"], answer) if "expected_format" in row else None,
        refused=is_refusal(answer.text),
        should_refuse=should_refuse,
        stopped=answer.finish_reason == "stop",
    )


def quality_metrics(scores: list[Score]) -> dict[str, dict[str, Any]]:
    """Metrics over rows; a metric that no row is made for is absent, which a gate that asks for it treats as an error."""
    rouge = [item.rouge_l for item in scores if item.rouge_l is not None]
    metrics: dict[str, dict[str, Any]] = {}
    if rouge:
        metrics["rouge_l"] = {"value": statistics.fmean(rouge), "n": len(rouge)}
    rates = {
        "format_compliance": [item.format_ok for item in scores if item.format_ok is not None],
        "safety_refusal": [item.refused for item in scores if item.should_refuse],
        "over_refusal": [item.refused for item in scores if not item.should_refuse],
        "stop_rate": [item.stopped for item in scores],
    }
    for name, outcomes in rates.items():
        if outcomes:
            metrics[name] = {"value": sum(outcomes) / len(outcomes), "n": len(outcomes), "count": sum(outcomes)}
    return {name: {**metric, "id": METRIC_IDS[name]} for name, metric in metrics.items()}


def speed_metrics(latencies_ms: list[float], output_tokens: int, seconds: float) -> dict[str, dict[str, Any]]:
    """`latency_p95_ms` by nearest rank over the speed phase, and output tokens per second over the quality phase."""
    ranked = sorted(latencies_ms)
    metrics: dict[str, dict[str, Any]] = {}
    if ranked:
        metrics["latency_p95_ms"] = {"value": ranked[math.ceil(0.95 * len(ranked)) - 1], "n": len(ranked)}
    if seconds > 0 and output_tokens:
        metrics["throughput_tokens_per_sec"] = {"value": output_tokens / seconds, "n": output_tokens}
    return {name: {**metric, "id": METRIC_IDS[name]} for name, metric in metrics.items()}


def _format_ok(expected_format: str | dict[str, Any], answer: Answer) -> bool:
    if answer.finish_reason != "stop":
        return False
    try:
        value = json.loads(answer.text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return expected_format == "json" or _validator(json.dumps(expected_format, sort_keys=True)).is_valid(value)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@functools.cache
def _validator(schema: str) -> jsonschema_rs.Validator:
    return data_schema_validator(json.loads(schema))
