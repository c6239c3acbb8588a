"""From answers to scores, columns and metrics."""

from __future__ import annotations

import statistics
import unicodedata
from dataclasses import dataclass

from sacrebleu.metrics.chrf import CHRF

from adapterops.data.answer_checks import broken_checks
from adapterops.data.formats import SlowFormatError, shared_checker
from adapterops.data.reader import Row
from adapterops.engine.answers import Answer
from adapterops.evaluate.rouge import repetition, rouge_l
from adapterops.shapes.eval_results import Columns, Metric, Metrics
from adapterops.shapes.eval_row import EvalRow
from adapterops.specs.metric_catalogue import METRIC_IDS, METRICS

__all__ = ["METRIC_IDS", "Score", "chrf", "columns", "row_metrics", "score"]

# chrF of the literature: character 6-grams, recall twice as heavy as precision (Popović 2015).
_CHRF = CHRF()


@dataclass(frozen=True)
class Score:
    """What one answer scores; None where a metric does not apply to the row.

    `refused` is None where neither detector nor judge could tell. Such an answer counts against
    whoever gave it: as not refused where a refusal is wanted, as refused elsewhere, so that no PASS
    rests on it.
    """

    rouge_l: float | None
    chrf: float | None
    format_ok: bool | None
    refused: bool | None
    should_refuse: bool
    stopped: bool
    repetition: float
    format_error: str | None = None  # why the format could not be told, which counts as not met
    checks_ok: bool | None = None
    general: bool = False

    @property
    def follows(self) -> bool | None:
        """Whether the checks hold of what is no refusal.

        "I can't help with that." is one sentence without the word water; it follows no instruction
        all the same.
        """
        return None if self.checks_ok is None else self.checks_ok and self.refused is False

    def observed(self) -> dict[str, float | None]:
        """The value of each metric of rows.

        A general row counts for nothing of the adapter's own domain, and none of that for it.
        """
        if self.general:
            return {
                "general_over_refusal": _number(self.refused is not False),
                "instruction_following": _number(self.follows),
            }
        return {
            "rouge_l": self.rouge_l,
            "chrf": self.chrf,
            "format_compliance": _number(self.format_ok),
            "safety_refusal": _number(self.refused is True) if self.should_refuse else None,
            "over_refusal": None if self.should_refuse else _number(self.refused is not False),
            "stop_rate": _number(self.stopped),
            "repetition": self.repetition,
        }


def score(
    row: Row[EvalRow], answer: Answer, *, refused: bool | None, general: bool = False
) -> Score:
    """Score one answer against its evaluation row; one that failed misses all that is asked.

    Args:
        row: the evaluation row.
        answer: what was answered.
        refused: whether the answer declines, by the refusal detector and its judge; None where they
            could not tell.
        general: whether the row is of a general set; its expected answer is one of many right ones.
    """
    asked = row.value
    should_refuse = bool(asked.get("should_refuse", False))
    alike = not should_refuse and not general  # whether the answer should be like the expected one
    failed = answer.error is not None
    format_ok, slow = None, None
    if "expected_format" in asked:
        try:
            format_ok = _format_ok(asked["expected_format"], answer)
        except SlowFormatError as error:
            format_ok, slow = False, str(error)
    return Score(
        rouge_l=rouge_l(asked["expected_output"], answer.text) if alike else None,
        chrf=chrf(asked["expected_output"], answer.text) if alike else None,
        format_ok=format_ok,
        format_error=slow,
        refused=not should_refuse if failed else refused,
        should_refuse=should_refuse,
        stopped=answer.finish_reason == "stop",
        repetition=1.0 if failed else repetition(answer.text),
        checks_ok=_checks_ok(row, answer) if "checks" in asked else None,
        general=general,
    )


def chrf(reference: str, answer: str) -> float:
    """chrF2 of one answer, 0 to 1; both texts in NFKC."""
    texts = (unicodedata.normalize("NFKC", text) for text in (answer, reference))
    hypothesis, expected = texts
    return float(_CHRF.sentence_score(hypothesis, [expected]).score) / 100


def columns(scores: list[Score | None], extra: Columns | None = None) -> Columns:
    """Scores by metric, one value a row; None where there is none, or the metric does not apply."""
    observed = [item.observed() if item else {} for item in scores]
    by_metric = {
        name: [values.get(name) for values in observed]
        for name, metric in METRICS.items()
        if metric.kind in ("rate", "mean")
    }
    by_metric |= extra or {}
    return {
        name: column
        for name, column in by_metric.items()
        if any(value is not None for value in column)
    }


def row_metrics(by_metric: Columns, rows: set[int] | None = None) -> Metrics:
    """Metrics over rows; one that no row is made for is absent, and an ERROR where a gate asks it.

    Args:
        by_metric: of `columns`.
        rows: only these; None is all.
    """
    metrics: Metrics = {}
    for name, column in by_metric.items():
        chosen = column if rows is None else [column[i] for i in sorted(rows) if i < len(column)]
        if values := [value for value in chosen if value is not None]:
            metrics[name] = _metric(name, values)
    return metrics


def _metric(name: str, values: list[float]) -> Metric:
    found: Metric = {
        "id": METRICS[name].id,
        "value": statistics.fmean(values),
        "n": len(values),
    }
    if METRICS[name].kind == "rate":
        found["count"] = round(sum(values))
    return found


def _number(outcome: bool | None) -> float | None:
    return None if outcome is None else int(outcome)


def _checks_ok(row: Row[EvalRow], answer: Answer) -> bool:
    ended = answer.finish_reason == "stop"
    return answer.error is None and not broken_checks(row.value["checks"], answer.text, ended=ended)


def _format_ok(expected_format: object, answer: Answer) -> bool:
    """Whether an answer is JSON, each key of it given once, and fits the row's schema.

    Raises:
        SlowFormatError: the schema took too long on it.
    """
    if answer.finish_reason != "stop":
        return False
    # `json`: whatever it holds.
    schema = expected_format if isinstance(expected_format, dict) else {}
    return shared_checker().check(schema, answer.text)[0] == "ok"
