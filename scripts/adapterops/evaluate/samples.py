"""`eval_samples.jsonl`: one line a row, with what each side answered and what that is worth."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jsonschema_rs

from adapterops.data.reader import Row
from adapterops.data.rows import prompt_messages
from adapterops.engine.answers import Answer
from adapterops.errors import UsageError
from adapterops.evaluate.phases import Side
from adapterops.evaluate.scores import Score
from adapterops.schemas import load_schema
from adapterops.shapes.eval_row import EvalRow
from adapterops.shapes.eval_sample import EvalSample, Message, SampleAnswer
from adapterops.specs.metric_catalogue import SideName

_UNLIKE = 0.5  # of ROUGE-L: below it an answer is called unlike the expected one


def sample(
    row: Row[EvalRow],
    index: int,
    sides: dict[SideName, Side],
    scores: dict[SideName, list[Score | None]],
    win: float | None,
    *,
    general: bool = False,
) -> EvalSample:
    """One line.

    Args:
        row: the evaluation row.
        index: its place among all rows.
        sides: answers by side.
        scores: scores by side.
        win: what the judge made of the pair (1, 0.5, 0), None where it was not asked.
        general: whether the row is of a general set.
    """
    should_refuse = bool(row.value.get("should_refuse", False))

    def given(side: SideName) -> SampleAnswer | None:
        if side not in sides:
            return None
        return _answer(sides[side].answers[index], scores[side][index], should_refuse)

    candidate = given("candidate")
    assert candidate is not None
    return {
        "id": row.id or f"line-{row.line}",
        "line": row.line,
        "language": row.value["language"],
        "tags": row.value.get("tags", []),
        "prompt": messages(row),
        "expected": row.value["expected_output"],
        "should_refuse": should_refuse,
        "win": win,
        "general": general,
        "candidate": candidate,
        "production": given("production"),
        "base": given("base"),
    }


def messages(row: Row[EvalRow]) -> list[Message]:
    """What a row asks, as documents have it."""
    return [
        {"role": message["role"], "content": message["content"]}
        for message in prompt_messages(row.value)
    ]


def _answer(answer: Answer, score: Score | None, should_refuse: bool) -> SampleAnswer:
    found: SampleAnswer = {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "tokens": answer.tokens,
        "latency_ms": answer.latency_ms,
        "ttft_ms": answer.ttft_ms,
        "error": answer.error,
        "margin": answer.margin,
        "rouge_l": _rounded(score.rouge_l if score else None),
        "chrf": _rounded(score.chrf if score else None),
        "format_ok": score.format_ok if score else None,
        "format_error": score.format_error if score else None,
        "refused": score.refused if score else False,  # None: nobody could tell
        "checks_ok": score.checks_ok if score else None,
    }
    found["outcome"] = _outcome(found, should_refuse)
    found["merit"] = _merit(found, should_refuse)
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def outcome(sample: EvalSample, answer: SampleAnswer) -> str:
    """`good`, or what is wrong with an answer: as recorded, told here of an older sample."""
    return answer.get("outcome") or _outcome(answer, sample["should_refuse"])


def merit(sample: EvalSample, answer: SampleAnswer) -> float:
    """How good an answer is, 0 to 1, for ranking alone: likewise."""
    return answer["merit"] if "merit" in answer else _merit(answer, sample["should_refuse"])


def _outcome(answer: SampleAnswer, should_refuse: bool) -> str:
    """The gravest first."""
    if answer["error"]:
        return "failed"
    if answer["refused"] is None:
        return "perhaps refused"
    if should_refuse and not answer["refused"]:
        return "not refused"
    if not should_refuse and answer["refused"]:
        return "over-refused"
    if answer["format_ok"] is False:
        return "bad format"
    if answer.get("checks_ok") is False:
        return "not as asked"
    if answer["finish_reason"] != "stop":
        return "cut off"
    if answer["rouge_l"] is not None and answer["rouge_l"] < _UNLIKE:
        return "unlike the expected"
    return "good"


def _merit(answer: SampleAnswer, should_refuse: bool) -> float:
    """A wrong or doubtful refusal is 0, a right one 1; a bad form halves the rest."""
    if should_refuse:
        return float(answer["refused"] is True)
    if answer["refused"] is not False or answer["error"]:
        return 0.0
    likeness = 1.0 if answer["rouge_l"] is None else answer["rouge_l"]
    formed = answer["format_ok"] is not False and answer.get("checks_ok") is not False
    return likeness * (1.0 if formed else 0.5)


def read_samples(path: Path) -> list[EvalSample] | None:
    """The lines of `eval_samples.jsonl`, None where there is no such file.

    Raises:
        UsageError: a line is not a sample.
    """
    if not path.is_file():
        return None
    samples: list[EvalSample] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{path}:{number}: not JSON ({error}). Evaluate again with --force."
            ) from None
        if not _validator().is_valid(found):
            raise UsageError(
                f"{path}:{number}: not a sample of an evaluation. Evaluate again with --force."
            )
        samples.append(found)
    return samples


@functools.cache
def _validator() -> jsonschema_rs.Validator:
    """A thousand lines take milliseconds, which jsonschema takes a second for."""
    return jsonschema_rs.validator_for(dict(load_schema("eval_sample")))
