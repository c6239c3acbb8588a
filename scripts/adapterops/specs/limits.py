"""What one API key may ask for: caps on a request, its share of the host, and its voice in a
rollout.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Caps of one key; `gateway.limits` of the serving configuration, with what the key's entry in
    the file of keys changes.

    Args:
        n: answers to one prompt.
        prompts: in one request to `/v1/completions`.
        max_tokens: of one answer.
        default_tokens: of an answer whose request names no `max_tokens`; never more than
            `max_tokens`.
        request_tokens: `n` × prompts × `max_tokens` of one request.
        logprobs: alternatives shown for each token.
        logit_bias: tokens with a bias.
        messages: in one conversation.
        tools: in one request.
        schema_nodes: objects and lists of all JSON Schemas in one request (`response_format`,
            `tools`).
        schemas_per_minute: that the key has not sent lately, and so are compiled anew.
        grammars: `structured_outputs` and regular expressions in schemas are allowed; engines
            compile them, which can take minutes.
        share: of the requests under way (`gateway.max_in_flight`) and of what the engines batch;
            None is no limit of its own.
        thumbs_per_minute: votes that count.
        evidence: its requests and thumbs count when a rollout is judged.
    """

    n: int
    prompts: int
    max_tokens: int
    default_tokens: int
    request_tokens: int
    logprobs: int
    logit_bias: int
    messages: int
    tools: int
    schema_nodes: int
    schemas_per_minute: int
    share: float | None
    thumbs_per_minute: int
    grammars: bool
    evidence: bool
