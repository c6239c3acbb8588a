"""The metrics: what each one is called, counts and wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Who answers in an evaluation.
SideName = Literal["candidate", "production", "base"]
# What a candidate is compared with.
Reference = Literal["production", "base"]
SIDES: tuple[SideName, ...] = ("candidate", "production", "base")
Kind = Literal["rate", "mean", "loss", "p95", "stream", "total"]

# Nats per token that one text counts at most. With a limit on what one text can say, so many texts
# bound what those not seen can hide.
MOST_EXCESS = 1.0


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        id: names the definition; part of the gate key, so that a changed definition is never
            compared with the old one.
        kind: `rate` and `mean` over rows, `loss` (a mean) over texts, `p95` and `stream` (a mean)
            over the requests of the speed phase, `total` of a phase.
        better: which way is up.
        title: for people.
    """

    id: str
    kind: Kind
    better: Literal["higher", "lower"]
    title: str

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the greatest value of one row or text."""
        if self.kind == "loss":
            return (-MOST_EXCESS, MOST_EXCESS)
        return (0.0, 1.0) if self.kind in ("rate", "mean") else (0.0, float("inf"))

    @property
    def worse(self) -> Literal["low", "high"]:
        """The end at which it is worse."""
        return "low" if self.better == "higher" else "high"


METRICS = {
    "rouge_l": Metric("rouge-l-f1/ko-syl-v2/mean/not-refuse", "mean", "higher", "ROUGE-L"),
    "chrf": Metric(
        "chrf2-nc6/sacrebleu/nfkc/sentence-mean/0-1/not-refuse", "mean", "higher", "chrF"
    ),
    "format_compliance": Metric(
        "json-schema-2020-12/unconstrained/truncated-fails/v2",
        "rate",
        "higher",
        "format compliance",
    ),
    "safety_refusal": Metric(
        "refusal-v4/judge-unsure/uncertain-against/should-refuse",
        "rate",
        "higher",
        "refused rightly",
    ),
    "over_refusal": Metric(
        "refusal-v4/judge-unsure/uncertain-against/not-refuse", "rate", "lower", "refused wrongly"
    ),
    "stop_rate": Metric("finish-reason-stop/v1", "rate", "higher", "stopped by itself"),
    "repetition": Metric(
        "repeated-4-grams/ko-syl-v2-and-symbols/mean/v2", "mean", "lower", "repetition"
    ),
    "win_rate": Metric(
        "pairwise-judge/position-swapped/ties-half/not-refuse/v2", "mean", "higher", "win rate"
    ),
    "general_loss": Metric(
        "nats-per-token/candidate-minus-base/raw-text/within-1/mean/v1",
        "loss",
        "lower",
        "general loss (nats)",
    ),
    "general_over_refusal": Metric(
        "refusal-v4/judge-unsure/uncertain-against/general",
        "rate",
        "lower",
        "general, refused wrongly",
    ),
    "instruction_following": Metric(
        "checks-v1/all-hold/not-refused/general", "rate", "higher", "instructions followed"
    ),
    "latency_p95_ms": Metric(
        "end-to-end/p95-nearest-rank/sides-in-turn/v3", "p95", "lower", "latency p95 (ms)"
    ),
    "ttft_p95_ms": Metric(
        "first-token/p95-nearest-rank/sides-in-turn/v3", "p95", "lower", "first token p95 (ms)"
    ),
    "throughput_tokens_per_sec": Metric(
        "output-tokens-per-wall-second/all-in-flight/v1", "total", "higher", "throughput (tok/s)"
    ),
    "stream_tokens_per_sec": Metric(
        "output-tokens-per-second/one-stream/sides-in-turn/v3",
        "stream",
        "higher",
        "one stream (tok/s)",
    ),
}
# What was known before training, and may be lost.
GENERAL = ("general_loss", "general_over_refusal", "instruction_following")
# The only metric that is a comparison by itself: no side but the candidate has it.
WIN_RATE = "win_rate"
COMPARED_AS_RATIO: tuple[Kind, ...] = ("p95", "stream", "total")
METRIC_IDS = {name: metric.id for name, metric in METRICS.items()}


def reference_name(against: Reference) -> str:
    """What a candidate is compared with, in a sentence."""
    return "production" if against == "production" else "the base model"


def excess_loss(losses: list[float], base: list[float]) -> list[float]:
    """`general_loss` of each text: nats per token by which it became less likely.

    What one text counts is held within ± `MOST_EXCESS`.

    Args:
        losses: of one side, nats per token.
        base: of the base model, on the same texts.
    """
    return [
        min(max(loss - before, -MOST_EXCESS), MOST_EXCESS)
        for loss, before in zip(losses, base, strict=True)
    ]
