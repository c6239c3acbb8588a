"""What an evaluation records besides the metrics of its rows: speeds, losses, slices, probes."""

from __future__ import annotations

import math
import statistics

from adapterops.data.normal import loose_form
from adapterops.data.reader import Row
from adapterops.engine.answers import Answer
from adapterops.evaluate.phases import Side, warm_up
from adapterops.evaluate.rouge import shuffled_floor
from adapterops.evaluate.samples import messages
from adapterops.evaluate.scores import row_metrics
from adapterops.shapes.eval_results import (
    Columns,
    EvalResults,
    Metrics,
    Probe,
    SliceMetrics,
    SpeedPhase,
    Texts,
)
from adapterops.shapes.eval_row import EvalRow
from adapterops.specs.metric_catalogue import METRIC_IDS, SideName, excess_loss

# recorded greedy answers that a serving host repeats to prove that the adapter has its effect
_PROBES = 3


def speed_metrics(side: Side) -> Metrics:
    """Latency and time to first token by nearest rank; tokens per second, of one stream and all."""
    values: dict[str, tuple[float, int]] = {}
    if answered := [answer for answer in side.speed if answer.error is None]:
        rank = math.ceil(0.95 * len(answered)) - 1
        values["latency_p95_ms"] = (
            sorted(answer.latency_ms for answer in answered)[rank],
            len(answered),
        )
        values["ttft_p95_ms"] = (
            sorted(answer.ttft_ms or 0.0 for answer in answered)[rank],
            len(answered),
        )
        rates = [
            answer.tokens / answer.latency_ms * 1000 for answer in answered if answer.latency_ms > 0
        ]
        values["stream_tokens_per_sec"] = (sum(rates) / len(rates), len(rates))
    if side.seconds > 0 and side.tokens:
        values["throughput_tokens_per_sec"] = (side.tokens / side.seconds, side.tokens)
    return {
        name: {"id": METRIC_IDS[name], "value": value, "n": n}
        for name, (value, n) in values.items()
    }


def texts(rows: list[Row[EvalRow]], sides: dict[SideName, Side]) -> Texts:
    """Of each general text its language, and what each side makes of it in nats per token."""
    return {
        "languages": [row.value["language"] for row in rows],
        "candidate": sides["candidate"].losses,
        "production": sides["production"].losses if "production" in sides else None,
        "base": sides["base"].losses,
    }


def loss_metrics(side: Side, base: Side) -> Metrics:
    """`general_loss` of one side; empty where no texts were asked."""
    excess = excess_loss(side.losses, base.losses)
    if not excess:
        return {}
    value, n = statistics.fmean(excess), len(excess)
    return {"general_loss": {"id": METRIC_IDS["general_loss"], "value": value, "n": n}}


def slice_metrics(
    slices: dict[str, list[int]], observed: dict[SideName, Columns]
) -> dict[str, SliceMetrics]:
    """Metrics of each side on the rows of each slice."""
    found: dict[str, SliceMetrics] = {}
    for name, members in slices.items():
        rows = set(members)
        theirs = observed.get("production")
        found[name] = {
            "candidate": row_metrics(observed["candidate"], rows),
            "production": None if theirs is None else row_metrics(theirs, rows),
            "base": row_metrics(observed["base"], rows),
        }
    return found


def slice_metrics_of(results: EvalResults) -> dict[str, SliceMetrics]:
    """Those that were recorded; of an older evaluation, which has none, they are counted here."""
    if "slice_metrics" in results:
        return results["slice_metrics"]
    observed = results["observations"]
    sides: dict[SideName, Columns] = {
        "candidate": observed["candidate"],
        "base": observed["base"],
    }
    if theirs := observed["production"]:
        sides["production"] = theirs
    return slice_metrics(results["slices"], sides)


def groups(rows: list[Row[EvalRow]]) -> list[int]:
    """For each row the group that it is resampled with.

    That is its `group`, else the rows with the same input; each other row is alone. A row's
    `source` names the collection, not the text that the row was made from, and says nothing here.
    """
    numbers: dict[str, int] = {}
    keys = [
        f"group {row.value['group']}"
        if row.value.get("group")
        else f"input {loose_form(row.value.get('input', ''))}"
        for row in rows
    ]
    return [
        numbers.setdefault(f"row {i}" if key == "input " else key, len(numbers))
        for i, key in enumerate(keys)
    ]


def floor(
    rows: list[Row[EvalRow]], answers: list[Answer], key: str, general: range = range(0)
) -> float | None:
    """What ROUGE-L these answers score against the references of other rows."""
    pairs = [
        (row.value["expected_output"], answer.text)
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True))
        if index not in general and not row.value.get("should_refuse")
    ]
    return shuffled_floor(pairs, int(key[:15], 16))


def speed(side: Side, concurrency: int) -> SpeedPhase:
    """The answered requests of the speed phase, and the places of those that failed among all."""
    answered = [answer for answer in side.speed if answer.error is None]
    return {
        "warm_up": warm_up(concurrency),
        "concurrency": concurrency,
        "requests": [
            {
                "latency_ms": answer.latency_ms,
                "ttft_ms": answer.ttft_ms or 0.0,
                "tokens": answer.tokens,
            }
            for answer in answered
        ],
        "failed": [place for place, answer in enumerate(side.speed) if answer.error is not None],
    }


def probes(rows: list[Row[EvalRow]], sides: dict[SideName, Side]) -> list[Probe]:
    """Prompts whose greedy answer is stable, and differs from the base model's.

    Stable: the same in batches of every size that an evaluation has, and decided by the widest
    margins. A server under another load batches differently again, which turns near-ties of greedy
    decoding; such prompts would accuse a healthy adapter (seen on a GPU: a version with near-ties
    was refused on a busy host five times out of five, nine with wide margins never).
    """
    candidate, margins = sides["candidate"].answers, sides["candidate"].margins
    chosen = sorted(margins, key=lambda index: (-margins[index], index))[:_PROBES]
    return [
        {"messages": messages(rows[index]), "output": candidate[index].text}
        for index in sorted(chosen)
    ]
