"""The report as one HTML page: no request leaves it, and no data becomes markup."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from adapterops.escape import html_template
from adapterops.evaluate.samples import outcome
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
from adapterops.shapes.eval_sample import EvalSample
from adapterops.specs.metric_catalogue import SIDES, SideName

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_BINS = 24


class Plot(TypedDict):
    """Positions of a metric's interval, value and threshold in a box of `width`."""

    low: float
    high: float
    value: float
    threshold: float | None
    width: int


class Curve(TypedDict):
    """Points of an SVG polyline in a box of `width` × `height`, with the ranges of both axes."""

    line: str
    low: float
    high: float
    first: float
    last: float
    width: int
    height: int


class Bar(TypedDict):
    """One bar of a histogram."""

    x: float
    width: float
    height: float
    count: int


class Histogram(TypedDict):
    """Bars in a box of `width` × `height`, from the least to the greatest value."""

    bars: list[Bar]
    low: float
    high: float
    most: int
    width: int
    height: int


class SampleRow(EvalSample):
    """A line of the table of answers: a sample with its task, question and outcomes in a word."""

    task: str
    question: str
    outcomes: dict[SideName, str]


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


def bar(row: view.MetricRow, width: int = 200) -> Plot | None:
    """Interval, value and threshold of a metric on one axis; None where there is no interval.

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


def curve(points: list[tuple[float, float]], width: int = 600, height: int = 200) -> Curve:
    """The polyline through these points."""
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


def histogram(values: list[float], width: int = 600, height: int = 200) -> Histogram:
    """Equal bins from the least to the greatest value."""
    low, high = min(values), max(values)
    counts = [0] * _BINS
    for value in values:
        counts[min(int((value - low) / ((high - low) or 1) * _BINS), _BINS - 1)] += 1
    step = width / _BINS
    bars: list[Bar] = [
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


def sample_row(sample: EvalSample) -> SampleRow:
    """A sample as a line of the table."""
    given = ((side, sample[side]) for side in SIDES)
    return {
        **sample,
        "task": (sample["tags"] or ["untagged"])[0],
        "question": view.question(sample),
        "outcomes": {side: outcome(sample, answer) for side, answer in given if answer},
    }


def _notes(report: Report) -> list[str]:
    said = [*belief_lines(report.results), speed_line(report.results)] if report.results else []
    return [line for line in (adjudicated_line(report.gate), *said) if line]
