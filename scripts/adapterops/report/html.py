"""The report as one self-contained HTML page: no request leaves it, and nothing in the data can
become markup.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapterops.escape import html_template
from adapterops.report import view
from adapterops.report.collect import Report
from adapterops.report.words import (
    adjudicated_line,
    belief_lines,
    forgetting_lines,
    number,
    remedies,
    speed_line,
)

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_BINS = 24


def page(report: Report) -> str:
    """The page."""
    template = html_template(_TEMPLATE.read_text(encoding="utf-8"), number=number)
    worst, best = view.changes(report)
    samples = [sample_row(sample) for sample in report.samples]
    history = report.training["training"]["loss_history"] if report.training else []
    requests = (
        report.results["observations"]["speed"]["candidate"]["requests"] if report.results else []
    )
    return template.render(
        report=report,
        gate=report.gate,
        view=view,
        metrics=[(row, bar(row)) for row in view.metric_rows(report)],
        worst=worst,
        best=best,
        slices=view.slice_rows(report),
        notes=_notes(report),
        forgetting=forgetting_lines(report.gate),
        remedies=remedies(report.gate),
        loss=curve([(point["epoch"], point["loss"]) for point in history]) if history else None,
        latency=histogram([request["latency_ms"] for request in requests]) if requests else None,
        samples=samples,
        with_production=any(sample["production"] for sample in samples),
        tasks=sorted({sample["task"] for sample in samples}),
    )


def bar(row: view.MetricRow, width: int = 200) -> dict[str, Any] | None:
    """Interval, value and threshold of a metric on one axis, as positions in a box of `width`; None
    where there is no interval.

    A share lies between 0 and 1; the axis of a speed ends a little beyond what is shown.
    """
    low, high = row.bounds
    if row.value is None or (low is None and high is None):
        return None
    shown = [value for value in (low, high, row.value, row.bar) if value is not None]
    top = 1.0 if max(shown) <= 1 else max(shown) * 1.1

    def at(value: float) -> float:
        return round(min(max(value, 0.0), top) / top * width, 1)

    return {
        "low": at(low if low is not None else 0.0),
        "high": at(high if high is not None else top),
        "value": at(row.value),
        "threshold": None if row.bar is None else at(row.bar),
        "width": width,
    }


def curve(points: list[tuple[float, float]], width: int = 600, height: int = 200) -> dict[str, Any]:
    """Points of an SVG polyline in a box of `width` × `height`, with the ranges of both axes."""
    xs, ys = zip(*points, strict=True)
    low, high = min(0.0, *ys), max(ys)
    span_x, span_y = (max(xs) - min(xs)) or 1, (high - low) or 1
    line = " ".join(
        f"{(x - min(xs)) / span_x * width:.1f},{height - (y - low) / span_y * height:.1f}"
        for x, y in points
    )
    return {
        "line": line,
        "low": low,
        "high": high,
        "first": min(xs),
        "last": max(xs),
        "width": width,
        "height": height,
    }


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
    return {
        "bars": bars,
        "low": low,
        "high": high,
        "most": max(counts),
        "width": width,
        "height": height,
    }


def sample_row(sample: dict[str, Any]) -> dict[str, Any]:
    """One line of the sample table, with each side's outcome in a word."""
    return {
        **sample,
        "task": (sample["tags"] or ["untagged"])[0],
        "question": "\n\n".join(message["content"] for message in sample["prompt"]),
        "outcomes": {
            side: view.outcome(sample, side)
            for side in ("candidate", "production", "base")
            if sample[side]
        },
    }


def _notes(report: Report) -> list[str]:
    said = [*belief_lines(report.results), speed_line(report.results)] if report.results else []
    return [line for line in (adjudicated_line(report.gate), *said) if line]
