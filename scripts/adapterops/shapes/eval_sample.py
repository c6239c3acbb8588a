"""The shape of `configs/schemas/eval_sample.json`; `make types`."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Message(TypedDict):
    role: str
    content: str


class SampleAnswer(TypedDict):
    text: str
    finish_reason: str
    tokens: NotRequired[int]
    latency_ms: NotRequired[float]
    ttft_ms: NotRequired[float | None]
    error: str | None
    margin: NotRequired[float | None]
    rouge_l: float | None
    chrf: NotRequired[float | None]
    format_ok: bool | None
    format_error: NotRequired[str | None]
    refused: bool | None
    checks_ok: NotRequired[bool | None]
    outcome: NotRequired[str]
    merit: NotRequired[float]


class EvalSample(TypedDict):
    id: str
    line: int
    language: NotRequired[str]
    tags: list[str]
    prompt: list[Message]
    expected: str
    should_refuse: bool
    win: NotRequired[float | None]
    general: NotRequired[bool]
    candidate: SampleAnswer
    production: SampleAnswer | None
    base: SampleAnswer | None
