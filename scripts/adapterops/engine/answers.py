"""What is asked and answered, apart from the client, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Messages = Sequence[Mapping[str, object]]  # each with its role and content


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Args:
        text: what was generated, without the end-of-turn token.
        finish_reason: `stop`, `length` where `max_tokens` cut it, `error` where the server did not
            answer.
        tokens: tokens generated.
        latency_ms: from sending the request to its last byte.
        ttft_ms: to the first token; None where the answer was not streamed.
        error: why there is no answer.
        margin: nats between the token that was taken and the next best, where it was closest; None
            where that was not asked for.
    """

    text: str
    finish_reason: str
    tokens: int
    latency_ms: float
    ttft_ms: float | None = None
    error: str | None = None
    margin: float | None = None
