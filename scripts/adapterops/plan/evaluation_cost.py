"""What an evaluation takes at most on the runners' GPU: seconds, and what a judge charges."""

from __future__ import annotations

from dataclasses import dataclass

from adapterops.data.general_sets import load_general
from adapterops.data.reader import load_rows
from adapterops.data.rows import answer, prompt_text
from adapterops.errors import UsageError
from adapterops.shapes.pricing import EvaluationItem, Pricing
from adapterops.specs.adapter import AdapterSpec
from adapterops.specs.price_list import PRICING

_SIDES = 3  # candidate, production, base model
_TIMED = 2  # candidate and production: the base model's speed is not measured
_WARM_UP = 2  # requests at least
# Of the win-rate judge (evaluate/winrate.py): pairs that try it, orders of two answers, tokens of a
# verdict, characters of a text.
_TRIAL, _ORDERS, _VERDICT, _SHOWN = 16, 2, 512, 6_000
_CHARACTERS_PER_TOKEN = 8  # of an answer, at most: what a judge is shown of one


@dataclass(frozen=True)
class EvaluationCost:
    """At most.

    Args:
        seconds: of GPU time.
        usd: of a judge that charges by the token; the GPU's own price is not in it.
        basis: the tokens, and what the speed rests on.
    """

    seconds: float
    usd: float
    basis: str


def evaluation_cost(
    spec: AdapterSpec, parameters: int, gpu: str, prices: Pricing
) -> EvaluationCost:
    """At most: every answer as long as it may be, each character of a prompt a token.

    Args:
        spec: the adapter; its rows are read, those of the extension too, and the general rows and
            texts that it is asked.
        parameters: of the base model.
        gpu: by its name in the price list.
        prices: the content of `configs/pricing.yaml`.

    Raises:
        RejectedError: the rows are invalid.
        UsageError: the judge, or the GPU, has no price.
    """
    asked = spec.evaluation
    paths = [path for path in (spec.evaluation_data, spec.extension_data) if path]
    rows = [row.value for path in paths for row in load_rows(path, "eval")]
    general, texts = ([row.value for row in found] for found in load_general(spec.general))
    characters = [len(prompt_text(row)) for row in rows]
    every = sum(characters) + sum(len(prompt_text(row)) for row in general)
    batched, stream, basis = _speed(parameters, gpu, prices)
    # Quality: the refusal judge reads each prompt and answer once more.
    tokens = _SIDES * ((len(rows) + len(general)) * 2 * asked.max_tokens + 2 * every)
    # Texts are read, and one token more is written that nobody wants.
    tokens += _SIDES * sum(len(answer(row)) + 1 for row in texts)
    requests = asked.latency_requests + max(_WARM_UP, asked.latency_concurrency)
    timed = _TIMED * requests * (asked.max_tokens + sum(characters) // max(1, len(rows)))
    seconds = tokens / batched + timed / min(batched, asked.latency_concurrency * stream)
    answers = [len(answer(row)) for row in rows]
    usd, read, written = 0.0, *_judged(characters, answers, asked.max_tokens)
    if asked.win_rate_judge != "none":
        seconds += (read + written) / batched  # of another judge too: the GPU waits for it
        tokens += read + written
        usd = _charged(asked.win_rate_judge, read, written, prices)
    return EvaluationCost(seconds, usd, f"evaluation: at most {tokens + timed:,} tokens, {basis}")


def _judged(prompts: list[int], answers: list[int], max_tokens: int) -> tuple[int, int]:
    """Tokens that a win-rate judge reads and writes, by the characters of prompts and answers."""
    generated = 2 * min(_SHOWN, max_tokens * _CHARACTERS_PER_TOKEN)
    shown = [
        min(_SHOWN, prompt) + min(_SHOWN, wanted) + generated
        for prompt, wanted in zip(prompts, answers, strict=True)
    ]
    longest = sorted(shown, reverse=True)[:_TRIAL]
    return _ORDERS * (sum(shown) + sum(longest)), _ORDERS * _VERDICT * (len(shown) + len(longest))


def _charged(judge: str, read: int, written: int, prices: Pricing) -> float:
    if judge == "base":
        return 0.0
    known = prices.get("judges", {})
    if judge not in known:
        raise UsageError(
            f"win_rate_judge {judge} has no price. Add it to `judges` of {PRICING}"
            " (usd_per_million_tokens), in a pull request of its own."
        )
    price = known[judge]["usd_per_million_tokens"]
    return (read * price["input"] + written * price["output"]) / 1e6


def _speed(parameters: int, gpu: str, prices: Pricing) -> tuple[float, float, str]:
    """Tokens a second of a full batch and of one stream: measured, or scaled down from that."""
    gpus = prices["gpus"]
    if gpu not in gpus:
        raise UsageError(f"{gpu} is not in `gpus` of {PRICING}. Add it with its price.")

    def factor(row: EvaluationItem) -> float:
        by_gpu = gpus[gpu]["bf16_tflops"] / gpus[row["gpu"]]["bf16_tflops"]
        return min(1.0, by_gpu) * min(1.0, row["parameters"] / parameters)

    row = max(prices["evaluation"], key=lambda row: row["batched_tokens_per_second"] * factor(row))
    by = factor(row)
    scaled = "" if by == 1 else f", scaled by {by:.2g}"
    return (
        row["batched_tokens_per_second"] * by,
        row["stream_tokens_per_second"] * by,
        f"{row['name']} on {row['gpu']}{scaled}",
    )
