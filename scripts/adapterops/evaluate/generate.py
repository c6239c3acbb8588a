"""Greedy answers from an OpenAI-compatible server, all prompts in flight at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import openai

from adapterops.errors import InfrastructureError
from adapterops.evaluate.metrics import Answer

Messages = list[dict[str, str]]


def generate(
    server_url: str,
    model: str,
    prompts: list[Messages],
    *,
    max_tokens: int,
    concurrency: int,
    on_answer: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Answer every prompt at temperature 0, `concurrency` of them in flight, in the order of `prompts`.

    Args:
        server_url: root of the server, without `/v1`.
        model: the name to ask for: the base model's or an adapter's.
        prompts: chat messages, one list a prompt.
        max_tokens: longest answer in tokens.
        concurrency: requests in flight.
        on_answer: called after each answer, for progress.

    Raises:
        InfrastructureError: the server refused or failed a request (after two retries of what can be retried).
    """
    return asyncio.run(_generate(server_url, model, prompts, max_tokens, concurrency, on_answer))


async def _generate(
    server_url: str, model: str, prompts: list[Messages], max_tokens: int, concurrency: int, on_answer: Callable[[], None]
) -> list[Answer]:
    in_flight = asyncio.Semaphore(concurrency)
    async with openai.AsyncOpenAI(base_url=f"{server_url}/v1", api_key="unused", timeout=600, max_retries=2) as client:

        async def answer(messages: Messages) -> Answer:
            async with in_flight:
                started = time.perf_counter()
                completion = await client.chat.completions.create(
                    model=model,
                    messages=messages,  # type: ignore[arg-type]  # plain mappings of role and content
                    temperature=0,
                    max_tokens=max_tokens,
                )
                latency = (time.perf_counter() - started) * 1000
            choice = completion.choices[0]
            on_answer()
            return Answer(
                text=choice.message.content or "",
                finish_reason=choice.finish_reason,
                tokens=completion.usage.completion_tokens if completion.usage else 0,
                latency_ms=round(latency, 2),
            )

        try:
            return await asyncio.gather(*(answer(messages) for messages in prompts))
        except openai.OpenAIError as error:
            raise InfrastructureError(f"{server_url} failed to answer as `{model}`: {error}") from None
