"""The fields of a request that reach an engine: an allow-list for each path, with the type and the
cap of each field.

What is not in the table is refused by name, whatever an engine would make of it. Some of vLLM
0.32's own fields (`openai/*/protocol.py`) are left out on purpose: those that fetch addresses or
read tensors (`image_url`, `prompt_embeds`, `mm_processor_kwargs`), that run a client's template or
extension (`chat_template`, `vllm_xargs`, `kv_transfer_params`), that jump the queue (`priority`),
or that make an answer longer or dearer than its caps say (`ignore_eos`, `use_beam_search`,
`best_of`, `prompt_logprobs`, `stop_token_ids`, which may lie beyond the vocabulary). A path that
joins later brings a table of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from adapterops.schemas import did_you_mean
from adapterops.serving.body import Body, BodyError, shown
from adapterops.serving.schema_cost import SchemaCost
from adapterops.specs.limits import Limits

# A reason why a value is refused ("Expected …"), or None. What lies deeper is refused by raising a
# BodyError that names the place.
Check = Callable[[Any, Limits], str | None]

_INT64 = 2**63
_ROLES = ("system", "developer", "user", "assistant", "tool")
_STOPS, _STOP_LENGTH = 4, 128  # vLLM's own number (VLLM_MAX_STOP_STRINGS)
_BAD_WORDS, _BAD_WORD_LENGTH = 32, 64
_PARTS = 256  # of the content of one message
_CALLS = 64  # of tools in one message
_NAME = 256
_ARGUMENTS_DEPTH = 32
_REGEX, _GRAMMAR = 256, 4096  # characters
_CHOICES = 256


def check_body(path: str, body: Mapping[str, Any], limits: Limits) -> Body:
    """What of a body goes to an engine.

    Args:
        path: `/v1/chat/completions` or `/v1/completions`.
        body: the client's. A null counts as not sent.
        limits: of the key.

    Returns:
        The fields to forward, with `max_tokens` where the client named none.

    Raises:
        BodyError: a field that the table does not have, or a value beyond its cap.
    """
    table, found = FIELDS[path], {}
    for name, value in body.items():
        if value is None:
            continue
        if name not in table:
            hint = did_you_mean(shown(name), list(table))
            raise BodyError(
                f"`{shown(name)}` is not a field that is taken here.{hint}", shown(name)
            )
        if reason := table[name](value, limits):
            raise BodyError(f"`{name}` is {shown(value)}. {reason}", name)
        if name not in _DROPPED:
            found[name] = value
    needed = "messages" if "messages" in table else "prompt"
    if needed not in found:
        raise BodyError(f"`{needed}` is missing.", needed)
    return _bounded(found, limits, chat=needed == "messages")


def sequences(body: Mapping[str, Any]) -> int:
    """Sequences of an engine's batch that a checked body takes: `n` for each prompt."""
    return int(body.get("n", 1)) * _prompts(body.get("prompt"))


def compiled(body: Mapping[str, Any]) -> bytes:
    """What an engine has to compile before it can answer a checked body; empty if there is
    nothing.
    """
    schema = body.get("response_format", {}).get("json_schema")
    found = [part for part in (schema, body.get("tools"), body.get("structured_outputs")) if part]
    return json.dumps(found, sort_keys=True).encode() if found else b""


def _prompts(prompt: Any) -> int:
    return len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1


def _bounded(body: Body, limits: Limits, *, chat: bool) -> Body:
    """The caps that join fields."""
    tokens = body.get("max_completion_tokens", body.get("max_tokens"))
    if tokens is None:
        tokens = min(limits.default_tokens, limits.max_tokens)
        body["max_tokens"] = tokens = min(tokens, max(1, limits.request_tokens // sequences(body)))
    cost = tokens * sequences(body)
    if cost > limits.request_tokens:
        raise BodyError(
            f"`n` × prompts × `max_tokens` is {cost}. Expected at most {limits.request_tokens}.",
            "max_tokens",
        )
    if body.get("min_tokens", 0) > tokens:
        raise BodyError(
            f"`min_tokens` is {body['min_tokens']}. Expected at most `max_tokens`, {tokens}.",
            "min_tokens",
        )
    if chat:
        schemas = SchemaCost(limits)
        if body.get("response_format", {}).get("type") == "json_schema":
            schemas.add(
                body["response_format"]["json_schema"].get("schema"),
                "response_format.json_schema.schema",
            )
        for number, tool in enumerate(body.get("tools", [])):
            if tool["function"].get("parameters") is not None:
                schemas.add(tool["function"]["parameters"], f"tools[{number}].function.parameters")
        structured = body.get("structured_outputs", {})
        if "json" in structured:
            schemas.add(structured["json"], "structured_outputs.json")
    return body


def _number(low: float, high: float) -> Check:
    def check(value: Any, _: Limits) -> str | None:
        fine = (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and low <= value <= high
            and math.isfinite(value)
        )
        return None if fine else f"Expected a number from {low:g} to {high:g}."

    return check


def _integer(low: int, high: int | str) -> Check:
    """`high` is a number, or the name of a limit."""

    def check(value: Any, limits: Limits) -> str | None:
        most = getattr(limits, high) if isinstance(high, str) else high
        fine = isinstance(value, int) and not isinstance(value, bool) and low <= value <= most
        return None if fine else f"Expected an integer from {low} to {most}."

    return check


def _flag(value: Any, _: Limits) -> str | None:
    return None if isinstance(value, bool) else "Expected true or false."


def _never(value: Any, _: Limits) -> str | None:
    return None if value is False else "Only false is taken here."


def _text(longest: int) -> Check:
    def check(value: Any, _: Limits) -> str | None:
        return (
            None
            if isinstance(value, str) and len(value) <= longest
            else f"Expected a text of at most {longest} characters."
        )

    return check


def _one_of(*known: str) -> Check:
    def check(value: Any, _: Limits) -> str | None:
        return None if value in known else f"Expected one of {', '.join(known)}."

    return check


def _texts(most: int, longest: int, *, single: bool = False) -> Check:
    def check(value: Any, _: Limits) -> str | None:
        texts = [value] if single and isinstance(value, str) else value
        fine = (
            isinstance(texts, list)
            and len(texts) <= most
            and all(isinstance(text, str) and 0 < len(text) <= longest for text in texts)
        )
        return None if fine else f"Expected up to {most} texts of 1 to {longest} characters."

    return check


def _map(known: Mapping[str, Check]) -> Check:
    """An object with these fields, none of which has to be there."""

    def check(value: Any, limits: Limits) -> str | None:
        if not isinstance(value, dict):
            return "Expected an object."
        for name, inner in value.items():
            if name not in known:
                return f"Its field `{shown(name)}` is not taken here. Known: {', '.join(known)}."
            if inner is not None and (reason := known[name](inner, limits)):
                return f"Of its `{name}`: {reason}"
        return None

    return check


def _metadata(value: Any, _: Limits) -> str | None:
    fine = (
        isinstance(value, dict)
        and len(value) <= 16
        and all(isinstance(text, str) and len(text) <= 512 for text in value.values())
    )
    return None if fine else "Expected an object of up to 16 texts of 512 characters."


def _logit_bias(value: Any, limits: Limits) -> str | None:
    fine = isinstance(value, dict) and len(value) <= limits.logit_bias
    fine = fine and all(token.isascii() and token.isdigit() and len(token) < 8 for token in value)
    fine = fine and all(
        isinstance(bias, int | float) and not isinstance(bias, bool) and -100 <= bias <= 100
        for bias in value.values()
    )
    return (
        None
        if fine
        else (
            f"Expected an object of up to {limits.logit_bias} token ids with a number from -100 to"
            " 100 each."
        )
    )


def _messages(value: Any, limits: Limits) -> str | None:
    if not isinstance(value, list) or not 1 <= len(value) <= limits.messages:
        return f"Expected a list of 1 to {limits.messages} messages."
    for number, message in enumerate(value):
        _message(message, f"messages[{number}]", limits)
    return None


_MESSAGE: dict[str, Check] = {
    "role": _one_of(*_ROLES),
    "name": _text(_NAME),
    "tool_call_id": _text(_NAME),
    # A client gives an answer back as it got it, with what servers add.
    "reasoning": _text(1 << 20),
    "reasoning_content": _text(1 << 20),
    "refusal": _text(1 << 20),
}


def _message(message: Any, place: str, limits: Limits) -> None:
    if not isinstance(message, dict):
        raise BodyError(
            f"`{place}` is {shown(message)}. Expected an object with `role` and `content`.", place
        )
    for name, value in message.items():
        if value is None or name in ("content", "tool_calls"):
            continue
        if name not in _MESSAGE:
            empty = name in ("annotations", "audio", "function_call") and not value
            if empty:
                continue
            raise BodyError(
                f"`{place}.{shown(name)}` is not a field that is taken here.",
                f"{place}.{shown(name)}",
            )
        if reason := _MESSAGE[name](value, limits):
            raise BodyError(f"`{place}.{name}` is {shown(value)}. {reason}", f"{place}.{name}")
    role, calls = message.get("role"), message.get("tool_calls")
    if role is None:
        raise BodyError(
            f"`{place}.role` is missing. Expected one of {', '.join(_ROLES)}.", f"{place}.role"
        )
    _content(
        message.get("content"), f"{place}.content", may_lack=role == "assistant" and bool(calls)
    )
    if calls is not None:
        _calls(calls, f"{place}.tool_calls")


def _content(content: Any, place: str, *, may_lack: bool) -> None:
    if isinstance(content, str) or (content is None and may_lack):
        return
    if not isinstance(content, list) or not 1 <= len(content) <= _PARTS:
        raise BodyError(
            f"`{place}` is {shown(content)}. Expected a text, or up to {_PARTS} parts of text.",
            place,
        )
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else part
        if kind != "text" or part.keys() != {"type", "text"} or not isinstance(part["text"], str):
            found = f"has {shown(', '.join(part))}" if kind == "text" else f"is {shown(kind)}"
            wanted = '{"type": "text", "text": …}'
            raise BodyError(
                f"`{place}[{number}]` {found}. Only {wanted} is taken here.", f"{place}[{number}]"
            )


def _calls(calls: Any, place: str) -> None:
    if not isinstance(calls, list) or len(calls) > _CALLS:
        raise BodyError(
            f"`{place}` is {shown(calls)}. Expected a list of up to {_CALLS} calls.", place
        )
    for number, call in enumerate(calls):
        if not _is_call(call):
            wanted = (
                '{"id": …, "type": "function", "function": {"name": …, "arguments": a text of'
                " JSON}}"
            )
            raise BodyError(
                f"`{place}[{number}]` is not a call. Expected {wanted}.", f"{place}[{number}]"
            )
        if not _shallow(call["function"].get("arguments", "")):
            where = f"{place}[{number}].function.arguments"
            raise BodyError(f"`{where}` is nested deeper than {_ARGUMENTS_DEPTH} levels.", where)


def _is_call(call: Any) -> bool:
    if (
        not isinstance(call, dict)
        or not call.keys() <= {"id", "type", "function", "index"}
        or call.get("type", "function") != "function"
    ):
        return False
    function = call.get("function")
    if (
        not isinstance(function, dict)
        or not function.keys() <= {"name", "arguments"}
        or not isinstance(function.get("name"), str)
    ):
        return False
    return (
        isinstance(call.get("id", ""), str)
        and isinstance(call.get("index", 0), int)
        and isinstance(function.get("arguments", ""), str)
    )


def _shallow(text: str) -> bool:
    """True if an engine can read this JSON within its recursion limit. What is no JSON it reads up
    to the fault.
    """
    if text.count("[") + text.count("{") <= _ARGUMENTS_DEPTH:
        return True
    try:
        level = [json.loads(text)]
    except (ValueError, RecursionError):
        return False
    for _ in range(_ARGUMENTS_DEPTH):
        containers = [
            value.values() if isinstance(value, dict) else value
            for value in level
            if isinstance(value, dict | list)
        ]
        level = [inner for container in containers for inner in container]
    return not level


def _prompt(value: Any, limits: Limits) -> str | None:
    if isinstance(value, str) and value:
        return None
    wanted = f"Expected a text, a list of token ids, or up to {limits.prompts} of them."
    if not isinstance(value, list) or not value:
        return wanted
    if all(type(token) is int for token in value):
        return None if all(0 <= token < 2**31 for token in value) else wanted
    if len(value) > limits.prompts:
        return wanted
    if all(isinstance(text, str) and text for text in value):
        return None
    lists = all(
        isinstance(ids, list)
        and ids
        and all(type(token) is int and 0 <= token < 2**31 for token in ids)
        for ids in value
    )
    return None if lists else wanted


_JSON_SCHEMA = _map(
    {"name": _text(_NAME), "description": _text(8192), "strict": _flag, "schema": lambda *_: None}
)


def _response_format(value: Any, limits: Limits) -> str | None:
    wanted = (
        'Expected {"type": "text"}, {"type": "json_object"} or {"type": "json_schema",'
        ' "json_schema": {"name": …, "schema": {…}}}.'
    )
    if not isinstance(value, dict) or not value.keys() <= {"type", "json_schema"}:
        return wanted
    named = value.get("json_schema")
    if value.get("type") in ("text", "json_object"):
        return wanted if named else None
    if (
        value.get("type") != "json_schema"
        or not isinstance(named, dict)
        or named.get("name") is None
        or named.get("schema") is None
    ):
        return wanted
    return _JSON_SCHEMA(named, limits)


_FUNCTION = _map(
    {
        "name": _text(_NAME),
        "description": _text(8192),
        "strict": _flag,
        "parameters": lambda *_: None,
    }
)


def _tools(value: Any, limits: Limits) -> str | None:
    if not isinstance(value, list) or not 1 <= len(value) <= limits.tools:
        return f"Expected a list of 1 to {limits.tools} tools."
    for number, tool in enumerate(value):
        place = f"tools[{number}]"
        fine = (
            isinstance(tool, dict)
            and tool.keys() == {"type", "function"}
            and tool["type"] == "function"
        )
        function = tool["function"] if fine else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            wanted = '{"type": "function", "function": {"name": …, "parameters": {…}}}'
            raise BodyError(f"`{place}` is not a tool. Expected {wanted}.", place)
        if reason := _FUNCTION(function, limits):
            raise BodyError(f"`{place}` is not a tool. {reason}", place)
    return None


def _tool_choice(value: Any, _: Limits) -> str | None:
    if value in ("none", "auto", "required"):
        return None
    function = (
        value.get("function")
        if isinstance(value, dict) and value.keys() == {"type", "function"}
        else None
    )
    fine = (
        isinstance(function, dict)
        and function.keys() == {"name"}
        and isinstance(function["name"], str)
        and value["type"] == "function"
    )
    return (
        None
        if fine
        else 'Expected none, auto, required or {"type": "function", "function": {"name": …}}.'
    )


_STRUCTURES: dict[str, Check] = {
    "regex": _text(_REGEX),
    "grammar": _text(_GRAMMAR),
    "choice": _texts(_CHOICES, _NAME),
    "json": lambda value, _: None if isinstance(value, dict) else "Expected a JSON Schema.",
}


def _structured_outputs(value: Any, limits: Limits) -> str | None:
    if not limits.grammars:
        return (
            "This key may not send grammars or regular expressions. `response_format` takes a JSON"
            " Schema."
        )
    if isinstance(value, dict) and len(value) != 1:
        return f"Expected one of {', '.join(_STRUCTURES)}."
    return _map(_STRUCTURES)(value, limits)


_BOTH: dict[str, Check] = {
    "model": lambda *_: None,  # looked up by the gateway
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "repetition_penalty": _number(0.1, 2),
    "logit_bias": _logit_bias,
    "max_tokens": _integer(1, "max_tokens"),
    "min_tokens": _integer(0, "max_tokens"),
    "n": _integer(1, "n"),
    "seed": _integer(-_INT64, _INT64 - 1),
    "stop": _texts(_STOPS, _STOP_LENGTH, single=True),
    "include_stop_str_in_output": _flag,
    "bad_words": _texts(_BAD_WORDS, _BAD_WORD_LENGTH),
    "stream": _flag,
    "stream_options": _map(
        {"include_usage": _flag, "continuous_usage_stats": _flag, "include_obfuscation": _flag}
    ),
    "temperature": _number(0, 2),
    "top_p": _number(1e-6, 1),
    "top_k": _integer(-1, 1_000_000),
    "min_p": _number(0, 1),
    "skip_special_tokens": _flag,
    "spaces_between_special_tokens": _flag,
    "echo": _never,
    "user": _text(512),
    "metadata": _metadata,
    "store": _flag,
    "service_tier": _one_of("auto", "default"),
    "safety_identifier": _text(512),
    "prompt_cache_key": _text(512),
}
# Taken because clients send them, and of no effect here: a host stores nothing and has one tier.
_DROPPED = {
    "model",
    "echo",
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
}

FIELDS: dict[str, dict[str, Check]] = {
    "/v1/chat/completions": (
        _BOTH
        | {
            "messages": _messages,
            "logprobs": _flag,
            "top_logprobs": _integer(0, "logprobs"),
            "max_completion_tokens": _integer(1, "max_tokens"),
            "response_format": _response_format,
            "structured_outputs": _structured_outputs,
            "tools": _tools,
            "tool_choice": _tool_choice,
            "parallel_tool_calls": _flag,
            "reasoning_effort": _one_of("none", "minimal", "low", "medium", "high", "xhigh"),
            "include_reasoning": _flag,
            "chat_template_kwargs": _map({"enable_thinking": _flag, "thinking": _flag}),
            "add_generation_prompt": _flag,
            "continue_final_message": _flag,
        }
    ),
    "/v1/completions": (
        _BOTH
        | {
            "prompt": _prompt,
            "logprobs": _integer(0, "logprobs"),
        }
    ),
}
