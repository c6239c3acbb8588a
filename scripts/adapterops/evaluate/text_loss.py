"""How likely a model finds given texts, in nats per token, by the engine's log-probabilities."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence

import openai

from adapterops.errors import InfrastructureError

_IN_FLIGHT = 8  # an engine holds the whole vocabulary for each token of such a prompt
_TIMEOUT = 600  # seconds


def text_losses(server_url: str, model: str, texts: list[str]) -> list[float]:
    """Cross-entropy of each text, in nats: the mean over its tokens but the first.

    The text is asked as it stands, without a chat template.

    Args:
        server_url: root of the server, without `/v1`.
        model: the name to ask for: the base model's or an adapter's.
        texts: of two tokens at least.

    Raises:
        InfrastructureError: the server does not answer, or gives no log-probabilities of a prompt.
    """
    return asyncio.run(_text_losses(server_url, model, texts))


async def _text_losses(server_url: str, model: str, texts: list[str]) -> list[float]:
    in_flight = asyncio.Semaphore(_IN_FLIGHT)
    async with openai.AsyncOpenAI(
        base_url=f"{server_url}/v1", api_key="unused", timeout=_TIMEOUT, max_retries=2
    ) as client:

        async def loss(text: str) -> float:
            async with in_flight:
                completion = await client.completions.create(
                    model=model,
                    prompt=text,
                    max_tokens=1,  # an engine generates one at least
                    temperature=0,
                    extra_body={"prompt_logprobs": 0},  # of the text's own tokens, and of no others
                )
            more = completion.choices[0].model_extra or {}
            return _mean_loss(more.get("prompt_logprobs"), server_url)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(loss(text)) for text in texts]
        except* (openai.OpenAIError, InfrastructureError) as errors:
            raise InfrastructureError(
                f"general texts: {server_url} as `{model}`: {errors.exceptions[0]} Ask again."
            ) from None
    return [task.result() for task in tasks]


def _mean_loss(
    logprobs: Sequence[Mapping[str, Mapping[str, float]] | None] | None, server_url: str
) -> float:
    """Nothing stands before the first token, so that it has no probability.

    Args:
        logprobs: vLLM's `prompt_logprobs`: of each token its own, by its number.
        server_url: for the error.
    """
    found = [next(iter(token.values())).get("logprob") for token in logprobs or [] if token]
    known = [one for one in found if isinstance(one, int | float) and math.isfinite(one)]
    if not known or len(known) < len(found):
        raise InfrastructureError(
            f"{server_url} gave no log-probabilities of the prompt, or some that are no numbers."
            " Expected vLLM's `prompt_logprobs`."
        )
    return -float(sum(known)) / len(known)
