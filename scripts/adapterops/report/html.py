"""The report as one self-contained HTML page: no request leaves it, and nothing in the data can become markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from adapterops.report.collect import Report
from adapterops.report.console import number

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_BINS = 24


def page(report: Report) -> str:
    """The page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        loss=curve([(point["epoch"], point["loss"]) for point in report.training["training"]["loss_history"]]),
        latency=histogram(report.results["latencies_ms"]),
        samples=[sample_row(sample) for sample in report.samples],
        tasks=sorted(report.results["slices"]),
    )


def curve(points: list[tuple[float, float]], width: int = 600, height: int = 200) -> dict[str, Any]:
    """Points of an SVG polyline in a box of `width` × `height`, with the ranges of both axes."""
    xs, ys = zip(*points, strict=True)
    low, high = min(0.0, *ys), max(ys)
    span_x, span_y = (max(xs) - min(xs)) or 1, (high - low) or 1
    line = " ".join(f"{(x - min(xs)) / span_x * width:.1f},{height - (y - low) / span_y * height:.1f}" for x, y in points)
    return {"line": line, "low": low, "high": high, "first": min(xs), "last": max(xs), "width": width, "height": height}


def histogram(values: list[float], width: int = 600, height: int = 200) -> dict[str, Any]:
    """Bars of an SVG histogram: equal bins from the least to the greatest value."""
    low, high = min(values), max(values)
    counts = [0] * _BINS
    for value in values:
        counts[min(int((value - low) / ((high - low) or 1) * _BINS), _BINS - 1)] += 1
    step = width / _BINS
    bars = [
        {
            "x": round(index * step, 1),
            "width": round(step - 2, 1),
            "height": round(count / max(counts) * height, 1),
            "count": count,
        }
        for index, count in enumerate(counts)
    ]
    return {"bars": bars, "low": low, "high": high, "most": max(counts), "width": width, "height": height}


def sample_row(sample: dict[str, Any]) -> dict[str, Any]:
    """One line of the sample table, with its outcome in a word."""
    return {
        **sample,
        "task": (sample["tags"] or ["untagged"])[0],
        "question": "\n\n".join(message["content"] for message in sample["prompt"]),
        "outcome": outcome(sample["candidate"], should_refuse=sample["should_refuse"]),
        "base_outcome": outcome(sample["base"], should_refuse=sample["should_refuse"]),
    }


def outcome(answer: dict[str, Any], *, should_refuse: bool) -> str:
    """`good`, or what is wrong with an answer, the gravest first."""
    if should_refuse and not answer["refused"]:
        return "not refused"
    if not should_refuse and answer["refused"]:
        return "over-refused"
    if answer["format_ok"] is False:
        return "bad format"
    if answer["finish_reason"] != "stop":
        return "cut off"
    if answer["rouge_l"] is not None and answer["rouge_l"] < 0.5:
        return "unlike the expected"
    return "good"
