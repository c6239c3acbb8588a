"""The shape of `configs/schemas/api_keys.json`; `make types`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias, TypedDict

Adapter: TypeAlias = str


class Limits(TypedDict):
    """
    What this key may do otherwise than gateway.limits of the serving configuration says.
    """

    n: NotRequired[int]
    prompts: NotRequired[int]
    max_tokens: NotRequired[int]
    default_tokens: NotRequired[int]
    request_tokens: NotRequired[int]
    logprobs: NotRequired[int]
    logit_bias: NotRequired[int]
    messages: NotRequired[int]
    tools: NotRequired[int]
    schema_nodes: NotRequired[int]
    schemas_per_minute: NotRequired[int]
    share: NotRequired[float | None]
    thumbs_per_minute: NotRequired[int]
    grammars: NotRequired[bool]
    evidence: NotRequired[bool]


class Key(TypedDict):
    name: str
    sha256: str
    adapters: Literal["all"] | list[Adapter]
    requests_per_minute: int | None
    role: Literal["client", "operator"]
    limits: NotRequired[Limits]


class ApiKeys(TypedDict):
    keys: list[Key]
