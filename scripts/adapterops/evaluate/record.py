"""What an evaluation records besides its metrics: slices, groups, samples, probes."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

from adapterops.data.normal import loose_form
from adapterops.data.reader import Row
from adapterops.data.rows import prompt_messages
from adapterops.engine.answers import Answer
from adapterops.evaluate.phases import Side, warm_up
from adapterops.evaluate.rouge import shuffled_floor
from adapterops.evaluate.scores import Score
from adapterops.shapes.eval_row import EvalRow
from adapterops.specs.metric_catalogue import METRIC_IDS, excess_loss

# recorded greedy answers that a serving host repeats to prove that the adapter has its effect
_PROBES = 3


def speed_metrics(side: Side) -> dict[str, dict[str, Any]]:
    """Latency and time to the first token by nearest rank, tokens per second of one stream, and of
    all in flight.
    """
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


def texts(rows: list[Row[EvalRow]], sides: dict[str, Side]) -> dict[str, Any]:
    """Of each general text its language, and what each side makes of it in nats per token."""
    losses = {
        side: sides[side].losses if side in sides else None
        for side in ("candidate", "production", "base")
    }
    return {"languages": [row.value["language"] for row in rows], **losses}


def loss_metrics(side: Side, base: Side) -> dict[str, dict[str, Any]]:
    """`general_loss` of one side; empty where no texts were asked."""
    excess = excess_loss(side.losses, base.losses)
    return (
        {
            "general_loss": {
                "id": METRIC_IDS["general_loss"],
                "value": statistics.fmean(excess),
                "n": len(excess),
            }
        }
        if excess
        else {}
    )


def groups(rows: list[Row[EvalRow]]) -> list[int]:
    """For each row the group that it is resampled with: its `group`, else the rows with the same
    input; each other row is alone.

    A row's `source` names the collection and not the text that it was made from, so it says nothing
    here.
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


def speed(side: Side | None, concurrency: int) -> dict[str, Any] | None:
    """The requests of the speed phase that were answered, and the places of those that failed among
    all of them.
    """
    if side is None:
        return None
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


def probes(rows: list[Row[EvalRow]], sides: dict[str, Side]) -> list[dict[str, Any]]:
    """Prompts whose greedy answer is stable, and differs from the base model's.

    Stable: the same in batches of every size that an evaluation has, and decided by the widest
    margins. A server under another load batches differently again, which turns near-ties of greedy
    decoding; such prompts would accuse a healthy adapter (seen on a GPU: a version with near-ties
    was refused on a busy host five times out of five, nine with wide margins never).
    """
    candidate, margins = sides["candidate"].answers, sides["candidate"].margins
    chosen = sorted(margins, key=lambda index: (-margins[index], index))[:_PROBES]
    return [
        {"messages": prompt_messages(rows[index].value), "output": candidate[index].text}
        for index in sorted(chosen)
    ]


def sample(
    row: Row[EvalRow],
    index: int,
    sides: dict[str, Side],
    scores: dict[str, list[Score | None]],
    win: float | None,
    *,
    general: bool = False,
) -> dict[str, Any]:
    """One line of `eval_samples.jsonl`; `win` is what the judge made of the pair (1, 0.5, 0), None
    where it was not asked.
    """
    sample = {
        "id": row.id or f"line-{row.line}",
        "line": row.line,
        "language": row.value["language"],
        "tags": row.value.get("tags", []),
        "prompt": prompt_messages(row.value),
        "expected": row.value["expected_output"],
        "should_refuse": bool(row.value.get("should_refuse", False)),
        "win": win,
        "general": general,
    }
    for side in ("candidate", "production", "base"):
        sample[side] = None
        if side in sides:
            found = scores[side][index]
            fields = {
                "rouge_l": None
                if found is None or found.rouge_l is None
                else round(found.rouge_l, 4),
                "chrf": None if found is None or found.chrf is None else round(found.chrf, 4),
                "format_ok": found.format_ok if found else None,
                "format_error": found.format_error if found else None,
                "refused": found.refused if found else False,  # None: nobody could tell
                "checks_ok": found.checks_ok if found else None,
            }
            sample[side] = {**dataclasses.asdict(sides[side].answers[index]), **fields}
    return sample
