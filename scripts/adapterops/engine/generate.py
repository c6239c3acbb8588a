"""Greedy answers from an OpenAI-compatible server, all prompts in flight at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import openai

from adapterops.engine.answers import Answer, Messages
from adapterops.errors import InfrastructureError

_IN_FLIGHT = 1_000  # connections; several times what an engine batches
_TIMEOUT = 600  # seconds


@dataclass(frozen=True)
class _Asked:
    """What every request of one call shares."""

    model: str
    max_tokens: int
    cold: bool
    margins: bool


def generate(
    server_url: str,
    model: str | list[str],
    prompts: list[Messages],
    *,
    max_tokens: int,
    concurrency: int | None = None,
    cold: bool = False,
    margins: bool = False,
    api_key: str = "unused",
    on_answer: Callable[[int, Answer], None] = lambda *_: None,
) -> list[Answer]:
    """Answer every prompt at temperature 0, in the order of `prompts`.

    A request that the server refuses or fails (after two retries of what can be retried) is an
    answer with an `error`.

    Args:
        server_url: root of the server, without `/v1`.
        model: the name to ask for: the base model's or an adapter's; a list names one for each
            prompt.
        prompts: chat messages, one list a prompt.
        max_tokens: longest answer in tokens.
        concurrency: requests in flight; None is all at once.
        cold: stream, and keep the server's prefix cache out of it: for measuring speed on prompts
            that it has seen before.
        margins: ask for log-probabilities too, which say how surely each answer was decided; not
            with `cold`.
        api_key: for a server that asks for one.
        on_answer: called with the position and the answer after each one.

    Raises:
        InfrastructureError: the server does not answer any more, or failed every asked.
    """
    in_flight = min(concurrency or _IN_FLIGHT, _IN_FLIGHT)
    models = [model] * len(prompts) if isinstance(model, str) else model
    asked = [_Asked(name, max_tokens, cold, margins) for name in models]
    answers = asyncio.run(_generate(server_url, api_key, asked, prompts, in_flight, on_answer))
    if prompts and all(answer.error for answer in answers):
        raise InfrastructureError(
            f"{server_url} failed every request as `{models[0]}`: {answers[0].error}"
        )
    return answers


async def _generate(
    server_url: str,
    api_key: str,
    asked: list[_Asked],
    prompts: list[Messages],
    concurrency: int,
    on_answer: Callable[[int, Answer], None],
) -> list[Answer]:
    in_flight = asyncio.Semaphore(concurrency)
    async with openai.AsyncOpenAI(
        base_url=f"{server_url}/v1", api_key=api_key, timeout=_TIMEOUT, max_retries=2
    ) as client:

        async def answer(position: int, messages: Messages) -> Answer:
            async with in_flight:
                started = time.perf_counter()
                try:
                    found = await (_stream if asked[position].cold else _whole)(
                        client, asked[position], messages, started
                    )
                except openai.APITimeoutError:
                    found = _failed(started, f"no answer within {_TIMEOUT} s")
                except openai.APIStatusError as error:
                    found = _failed(started, f"{error.status_code}: {error.message}"[:500])
            on_answer(position, found)
            return found

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(answer(position, messages))
                    for position, messages in enumerate(prompts)
                ]
        except* openai.OpenAIError as errors:
            raise InfrastructureError(
                f"{server_url} does not answer any more as `{asked[0].model}`:"
                f" {errors.exceptions[0]} What was answered is kept; the same command goes on from"
                " there."
            ) from None
    return [task.result() for task in tasks]


async def _whole(
    client: openai.AsyncOpenAI, asked: _Asked, messages: Messages, started: float
) -> Answer:
    completion = await client.chat.completions.create(
        model=asked.model,
        messages=messages,  # type: ignore[arg-type]  # plain mappings of role and content
        temperature=0,
        max_tokens=asked.max_tokens,
        logprobs=True if asked.margins else openai.omit,
        top_logprobs=2 if asked.margins else openai.omit,
    )
    choice = completion.choices[0]
    tokens = completion.usage.completion_tokens if completion.usage else 0
    answer = Answer(choice.message.content or "", choice.finish_reason, tokens, _since(started))
    if not (choice.logprobs and choice.logprobs.content):
        return answer
    nearest = (
        sorted((other.logprob for other in token.top_logprobs), reverse=True)
        for token in choice.logprobs.content
    )
    return replace(
        answer, margin=min((best[0] - best[1] for best in nearest if len(best) > 1), default=None)
    )


async def _stream(
    client: openai.AsyncOpenAI, asked: _Asked, messages: Messages, started: float
) -> Answer:
    parts, reason, tokens, first = [], "stop", 0, None
    # Plain mappings of role and content.
    chunks = await client.chat.completions.create(  # type: ignore[call-overload]
        model=asked.model,
        messages=messages,
        temperature=0,
        max_tokens=asked.max_tokens,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"cache_salt": f"{started:.9f}"},
    )
    async for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or _since(started)
            parts.append(chunk.choices[0].delta.content)
        if chunk.choices and chunk.choices[0].finish_reason:
            reason = chunk.choices[0].finish_reason
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
    latency = _since(started)
    return Answer("".join(parts), reason, tokens, latency, ttft_ms=first or latency)


def _failed(started: float, error: str) -> Answer:
    return Answer("", "error", 0, _since(started), error=error)


def _since(started: float) -> float:
    """Milliseconds."""
    return round((time.perf_counter() - started) * 1000, 2)
