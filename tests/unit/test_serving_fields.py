"""What of a request reaches an engine: an allow-list of fields with caps, and bodies that every
parser reads alike."""

import contextlib
import json
import time
from dataclasses import replace

import pytest
from gateway_host import LIMITS, QUESTION, with_host

from adapterops.serving.body import BodyError
from adapterops.serving.fields import FIELDS, check_body, compiled, sequences

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOOL = {
    "type": "function",
    "function": {"name": "track", "description": "Where is it?", "parameters": {"type": "object"}},
}
CALL = {
    "id": "call-1",
    "type": "function",
    "function": {"name": "track", "arguments": '{"id": [1, 2]}'},
}
SCHEMA = {
    "$defs": {
        "Item": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "when": {"type": "string", "format": "date-time"},
            },
        }
    },
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}},
        "kind": {"enum": ["a", "b"]},
        "pattern": {"type": "string"},
    },
    "required": ["items"],
    "additionalProperties": False,
}
PAST = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Where is my parcel? 🙂"}]},
    # As the SDK dumps an answer that it was given.
    {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": [CALL],
    },
    {"role": "tool", "tool_call_id": "call-1", "content": "On its way."},
    {"role": "assistant", "content": "On its way.", "tool_calls": [], "reasoning": None},
    {"role": "user", "content": ""},
]


def json_schema(schema):
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": schema},
    }


HONEST = [
    (CHAT, {"messages": PAST, "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True}),
    (CHAT, {"response_format": json_schema(SCHEMA), "seed": 7, "stop": "###"}),
    (
        CHAT,
        {
            "response_format": {"type": "json_object"},
            "stop": ["a", "b"],
            "logprobs": True,
            "top_logprobs": 5,
        },
    ),
    (
        CHAT,
        {
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.1,
        },
    ),
    (
        CHAT,
        {
            "frequency_penalty": 0.5,
            "presence_penalty": -1,
            "n": 2,
            "max_completion_tokens": 100,
            "logit_bias": {"50256": -100},
        },
    ),
    (
        CHAT,
        {
            "chat_template_kwargs": {"enable_thinking": False},
            "reasoning_effort": "low",
            "max_tokens": None,
        },
    ),
    (CHAT, {"tool_choice": {"type": "function", "function": {"name": "track"}}, "tools": [TOOL]}),
    (COMPLETIONS, {"prompt": "Once", "echo": False, "logprobs": 2, "max_tokens": 16}),
    (COMPLETIONS, {"prompt": "Once", "best_of": None, "suffix": None, "max_tokens": 16}),
    (COMPLETIONS, {"prompt": ["Once", "Twice"], "max_tokens": 16}),
    (COMPLETIONS, {"prompt": [1, 2, 3], "max_tokens": 16}),
    (COMPLETIONS, {"prompt": [[1, 2], [3]], "max_tokens": 16}),
]


@pytest.mark.parametrize(("path", "fields"), HONEST)
def test_what_honest_clients_send_reaches_the_engine_as_it_is(path, fields):
    async def test(gateway):
        body = {
            "model": "support",
            **({"messages": QUESTION["messages"]} if path == CHAT else {}),
            **fields,
        }
        assert (await gateway.ask(body, path=path))[0] == 200
        [(*_, raw)] = gateway.engine.requests
        sent = json.loads(raw)
        tokens = (
            {}
            if {"max_completion_tokens"} & fields.keys() or fields.get("max_tokens")
            else {"max_tokens": LIMITS.default_tokens}
        )
        expected = {
            name: value for name, value in body.items() if value is not None and name != "echo"
        }
        assert sent == {**expected, "model": "support-aaaaaaaaaaaa", **tokens}

    with_host(test)


def test_what_has_no_effect_here_is_taken_and_not_handed_on():
    async def test(gateway):
        nothing = {
            "user": "u-1",
            "metadata": {"order": "7"},
            "store": False,
            "service_tier": "auto",
            "prompt_cache_key": "k",
        }
        assert (await gateway.ask({**QUESTION, **nothing}))[0] == 200
        assert not nothing.keys() & json.loads(gateway.engine.requests[0][3]).keys()

    with_host(test)


DANGEROUS = {
    "structured_outputs": {"grammar": "root ::= root"},
    "guided_regex": "(a|b)*c",
    "guided_grammar": "root ::= root",
    "chat_template": "{{ 7 * 7 }}",
    "mm_processor_kwargs": {"num_crops": 10**6},
    "media_io_kwargs": {"video": {"num_frames": 10**6}},
    "kv_transfer_params": {"do_remote_prefill": True, "remote_host": "169.254.169.254"},
    "ec_transfer_params": {"x": 1},
    "prompt_embeds": "AAAA",
    "vllm_xargs": {"x": 1},
    "priority": -1,
    "prompt_logprobs": 20,
    "ignore_eos": True,
    "use_beam_search": True,
    "best_of": 16384,
    "documents": [{"title": "x", "text": "y"}],
    "stop_token_ids": [2**31],
    "allowed_token_ids": list(range(1000)),
    "logprob_token_ids": list(range(1000)),
    "request_id": "someone-elses",
    "repetition_detection": {"max_pattern_size": 10**9},
    "stream_interval": 10**9,
    "functions": [],
    "modalities": ["audio"],
}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("name", DANGEROUS)
def test_a_field_that_is_not_on_the_list_is_named_and_never_forwarded(name, path):
    async def test(gateway):
        asked = (
            {**QUESTION, name: DANGEROUS[name]}
            if path == CHAT
            else {"model": "support", "prompt": "x", name: DANGEROUS[name]}
        )
        status, _, text = await gateway.ask(asked, path=path)
        error = json.loads(text)["error"]
        assert (status, error["param"]) == (400, name)
        assert f"`{name}`" in error["message"]
        assert gateway.engine.requests == []

    with_host(test)


def test_a_field_with_a_slip_is_answered_with_the_one_that_is_meant():
    with pytest.raises(
        BodyError,
        match=r"`temprature` is not a field that is taken here. Did you mean `temperature`\?",
    ):
        check_body(CHAT, {**QUESTION, "temprature": 1}, LIMITS)


def deep(levels):
    return "[" * levels + "]" * levels


BEYOND = [
    (CHAT, {"n": 16384}, "`n` is 16384. Expected an integer from 1 to 8"),
    (CHAT, {"n": True}, "`n` is true"),
    (
        CHAT,
        {"n": 8, "max_tokens": 1025},
        "`max_tokens` is 1025. Expected an integer from 1 to 1024",
    ),
    (CHAT, {"n": 8, "max_completion_tokens": 2**40}, "`max_completion_tokens`"),
    (
        COMPLETIONS,
        {"prompt": ["x"] * 8, "n": 2, "max_tokens": 1024},
        "`n` × prompts × `max_tokens` is 16384. Expected at most 8192",
    ),
    (COMPLETIONS, {"prompt": ["x"] * 9}, "up to 8 of them"),
    (COMPLETIONS, {"prompt": [[1], "x"]}, "`prompt` is a list"),
    (COMPLETIONS, {"prompt": [-1]}, "`prompt` is a list"),
    (COMPLETIONS, {"prompt": [2**31]}, "`prompt` is a list"),
    (COMPLETIONS, {"prompt": [True]}, "`prompt` is a list"),
    (COMPLETIONS, {"prompt": ""}, "`prompt`"),
    (COMPLETIONS, {"prompt": []}, "`prompt`"),
    (COMPLETIONS, {}, "`prompt` is missing"),
    (COMPLETIONS, {"prompt": "x", "echo": True}, "Only false"),
    (COMPLETIONS, {"prompt": "x", "logprobs": 1000}, "`logprobs` is 1000"),
    (CHAT, {"messages": None}, "`messages` is missing"),
    (CHAT, {"messages": []}, "a list of 1 to 256 messages"),
    (CHAT, {"messages": [{"role": "user", "content": "x"}] * 257}, "a list of 1 to 256 messages"),
    (CHAT, {"messages": ["x"]}, "`messages[0]`"),
    (CHAT, {"messages": [{"content": "x"}]}, "`messages[0].role` is missing"),
    (CHAT, {"messages": [{"role": "root", "content": "x"}]}, "`messages[0].role` is root"),
    (CHAT, {"messages": [{"role": "user"}]}, "`messages[0].content`"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "`messages[0].content` is 5"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "tools": []}]}, "`messages[0].tools`"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": "x", "audio": {"id": "x"}}]},
        "`messages[0].audio`",
    ),
    (
        CHAT,
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
            ]
        },
        "is not a call",
    ),
    (CHAT, {"top_logprobs": 1000, "logprobs": True}, "`top_logprobs`"),
    (CHAT, {"stop": ["x"] * 5}, "`stop`"),
    (CHAT, {"stop": "x" * 129}, "`stop`"),
    (CHAT, {"stop": [""]}, "`stop`"),
    (CHAT, {"bad_words": ["x"] * 33}, "`bad_words`"),
    (CHAT, {"logit_bias": {str(token): 1 for token in range(129)}}, "`logit_bias`"),
    (CHAT, {"logit_bias": {"-1": 1}}, "`logit_bias`"),
    (CHAT, {"logit_bias": {"١": 1}}, "`logit_bias`"),
    (CHAT, {"min_tokens": 600}, "`min_tokens` is 600. Expected at most `max_tokens`, 512"),
    (CHAT, {"temperature": 1e308}, "`temperature`"),
    (CHAT, {"temperature": "0"}, "`temperature` is 0. Expected a number"),
    (CHAT, {"seed": 2**63}, "`seed`"),
    (CHAT, {"stream": "yes"}, "`stream`"),
    (CHAT, {"stream_options": {"x": 1}}, "Its field `x`"),
    (CHAT, {"chat_template_kwargs": {"tools": [1]}}, "Its field `tools`"),
    (CHAT, {"metadata": {"x": {"y": 1}}}, "`metadata`"),
    (CHAT, {"tools": [TOOL] * 33}, "1 to 32 tools"),
    (
        CHAT,
        {"tools": [{"type": "function", "function": {"name": "f", "x": 1}}]},
        "`tools[0]` is not a tool",
    ),
    (
        CHAT,
        {"tools": [{"type": "function", "function": {}}]},
        "`tools[0]` is not a tool. Expected {",
    ),
    (
        CHAT,
        {"tools": [{"type": "mcp", "server_url": "http://169.254.169.254/"}]},
        "`tools[0]` is not a tool",
    ),
    (
        CHAT,
        {"response_format": {"type": "structural_tag", "structures": [], "triggers": []}},
        "`response_format`",
    ),
    (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "`response_format`",
    ),
]


@pytest.mark.parametrize(("path", "fields", "reason"), BEYOND)
def test_what_is_beyond_its_cap_is_refused_with_the_cap(path, fields, reason):
    async def test(gateway):
        body = {**QUESTION, **fields} if path == CHAT else {"model": "support", **fields}
        status, _, text = await gateway.ask(body, path=path)
        assert status == 400
        assert reason in json.loads(text)["error"]["message"]
        assert gateway.engine.requests == []

    with_host(test)


def test_a_part_of_text_that_has_more_is_told_what_is_too_much():
    part = {"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}
    with pytest.raises(
        BodyError, match=r"`messages\[0\]\.content\[0\]` has type, text, cache_control\. Only"
    ):
        check_body(CHAT, {"messages": [{"role": "user", "content": [part]}]}, LIMITS)


@pytest.mark.parametrize(
    "kind", ["image_url", "input_audio", "video_url", "file", "image_embeds", "refusal"]
)
def test_a_message_holds_text_and_no_address_that_an_engine_would_fetch(kind):
    part = {"type": kind, kind: {"url": "http://169.254.169.254/latest/meta-data/"}}
    with pytest.raises(BodyError, match=rf"`messages\[0\]\.content\[1\]` is {kind}"):
        check_body(
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]},
            LIMITS,
        )


def test_arguments_of_a_former_call_cannot_be_too_deep_for_an_engine():
    """vLLM reads them with a parser that ends in a RecursionError, which it answers with 500."""

    def call(arguments):
        message = {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
        }
        return check_body(CHAT, {"messages": [message]}, LIMITS)

    for arguments in (deep(20_000), deep(900), "[" * 900, '{"a":' * 40 + "1" + "}" * 40):
        with pytest.raises(BodyError, match=r"arguments` is nested deeper than 32 levels"):
            call(arguments)
    assert call(json.dumps([{"rows": [[1, 2], ["{", "["]]}] * 100))
    assert call('{"cut off')


WHOLE = {
    "model": "support",
    "messages": PAST,
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "track"}},
    "response_format": json_schema(
        {**SCHEMA, "$defs": {"a": {"anyOf": [{"$ref": "#"}, {"const": 1}, {"enum": [{"a": [1]}]}]}}}
    ),
    "structured_outputs": {
        "json": {"type": "array", "items": {"pattern": "a", "format": "email", "required": ["a"]}}
    },
    "logit_bias": {"1": 1},
    "stop": ["a"],
    "stream_options": {"include_usage": True},
    "metadata": {"a": "b"},
}
ODD = [
    None,
    True,
    0,
    -1,
    2**63,
    1.5,
    1e308,
    "",
    "a",
    "\0",
    [],
    [[]],
    [None],
    [""],
    {},
    {"": ""},
    {"a": None},
    {"type": "function"},
]
ODD += [
    {"type": "function", "function": {}},
    {"type": "text"},
    {"type": []},
    {"type": "json_schema", "json_schema": {}},
    {"$ref": []},
]


def places(value, path=()):
    """Where something lies in a document, and the document's own place last."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, item in inner:
        yield from places(item, (*path, name))
    yield path


def replaced(value, path, odd):
    if not path:
        return odd
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], odd)
    return copy


@pytest.mark.parametrize("grammars", [True, False])
@pytest.mark.parametrize("path", [*FIELDS])
def test_whatever_lies_anywhere_in_a_body_is_taken_or_refused(path, grammars):
    """An error of ours would be 500 for whoever finds it, with a traceback in the log each time."""
    limits = replace(LIMITS, grammars=grammars)
    prompt = {
        "model": "support",
        "prompt": [[1, 2], [3]],
        "n": 2,
        "bad_words": ["x"],
        "logit_bias": {"1": 1},
        "stop": "x",
    }
    whole = WHOLE if path == CHAT else prompt
    taken = 0
    for place in [place for place in places(whole) if place]:
        for odd in ODD:
            with contextlib.suppress(BodyError):
                compiled(checked := check_body(path, replaced(whole, place, odd), limits))
                taken += sequences(checked) > 0
    assert taken or not grammars


def test_a_missing_max_tokens_is_not_the_rest_of_the_context():
    assert check_body(COMPLETIONS, {"prompt": "x"}, LIMITS)["max_tokens"] == 512
    assert (
        check_body(COMPLETIONS, {"prompt": ["x"] * 8, "n": 8}, LIMITS)["max_tokens"] == 128
    )  # the default fits the cost


def refs(count):
    """Each definition names the former twice."""
    doubled = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n - 1}"}] * 2} for n in range(1, count)}
    return {"$defs": {"d0": {"type": "string"}, **doubled}, "$ref": f"#/$defs/d{count - 1}"}


def nested(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


SCHEMAS = {
    "long text": (
        {"type": "string", "maxLength": 100},
        '`response_format.json_schema.schema` has `"maxLength"`',
    ),
    "pattern": ({"type": "string", "pattern": "^(([a-z]{1,30}){1,30}){1,30}$"}, '"pattern"'),
    "pattern of names": (
        {"type": "object", "patternProperties": {"^x{1,99}$": {}}},
        '"patternProperties"',
    ),
    "pattern in a definition": (
        {"$defs": {"a": {"pattern": "x"}}, "$ref": "#/$defs/a"},
        '"pattern"',
    ),
    "pattern behind an unknown word": ({"x-inner": {"pattern": "x"}}, '"pattern"'),
    "pattern in properties of that name": (
        {"properties": {"properties": {"pattern": "x"}}},
        '"pattern"',
    ),
    "costly format": ({"type": "string", "format": "email"}, '"format": "email"'),
    "many properties": (
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1000)}},
        "more than 256 objects",
    ),
    "deep": (nested(40), "deeper than 32 levels"),
    "very deep": (nested(300), "deeper than 32 levels"),
    "deep prose": ({"type": "object", "default": json.loads(deep(300))}, "deeper than 32 levels"),
    "many values": ({"enum": [f"v{n}" for n in range(1001)]}, "more than 1000 values"),
    "long value": ({"enum": ["x" * 4000]}, "4000 characters"),
    "many characters": (
        {"enum": ["x" * 900 + str(n) for n in range(30)]},
        "more than 16384 characters",
    ),
    "long name": ({"properties": {"x" * 2000: {}}}, "2000 characters"),
    "many references": (refs(60), "more than 64 references"),
    "foreign reference": (
        {"$ref": "http://169.254.169.254/schema.json"},
        "Expected `#/$defs/NAME`",
    ),
    "reference into data": (
        {"examples": [{"pattern": "x"}], "$ref": "#/examples/0"},
        "Expected `#/$defs/NAME`",
    ),
    "nothing but itself": ({"$ref": "#"}, "lead back to `#` and to nothing else"),
    "a circle": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}},
        "lead back to `#/$defs/a`",
    ),
    "a circle of choices": (
        {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 2}}},
        "lead back to `#/$defs/a`",
    ),
    "escaped reference": (
        {"$defs": {"a/b": {}}, "$ref": "#/$defs/a~1b"},
        "Expected `#/$defs/NAME`",
    ),
    "large number": ({"type": "integer", "maximum": 10**400}, "has the number"),
    "large": ({"type": "object", "description": "x" * 60_000}, "more than 36864 bytes"),
    "no schema": ([], "is not a JSON Schema"),
}


@pytest.mark.parametrize(("schema", "reason"), SCHEMAS.values(), ids=SCHEMAS)
def test_a_schema_that_takes_an_engine_long_to_compile_is_refused(schema, reason):
    started = time.monotonic()
    with pytest.raises(BodyError) as caught:
        check_body(CHAT, {**QUESTION, "response_format": json_schema(schema)}, LIMITS)
    assert reason in str(caught.value)
    if isinstance(schema, dict):  # tools are compiled too
        with pytest.raises(BodyError, match=r"`tools\[0\]\.function\.parameters`"):
            check_body(
                CHAT,
                {
                    **QUESTION,
                    "tools": [
                        {"type": "function", "function": {"name": "f", "parameters": schema}}
                    ],
                },
                LIMITS,
            )
    assert time.monotonic() - started < 1


def test_a_schema_may_be_recursive_through_an_object_or_a_list():
    tree = {
        "type": "object",
        "properties": {
            "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
            "parent": {"$ref": "#"},
        },
    }
    schema = {
        "$defs": {"Tree": tree, "Leaf": {"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]}},
        "$ref": "#/$defs/Leaf",
    }
    assert check_body(CHAT, {**QUESTION, "response_format": json_schema(schema)}, LIMITS)


def test_the_schemas_of_one_request_share_their_cap():
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {f"p{n}": {} for n in range(20)}}},
    }
    check_body(CHAT, {**QUESTION, "tools": [tool] * 11}, LIMITS)
    with pytest.raises(
        BodyError, match="with the other schemas of this request, more than 256 objects and lists"
    ):
        check_body(CHAT, {**QUESTION, "tools": [tool] * 12}, LIMITS)


def test_a_key_with_grammars_may_send_them_of_bounded_size():
    allowed = LIMITS.__class__(**{**LIMITS.__dict__, "grammars": True})
    for structure in (
        {"regex": "[0-9]{4}"},
        {"grammar": 'root ::= "yes" | "no"'},
        {"choice": ["yes", "no"]},
        {"json": SCHEMA},
    ):
        assert (
            check_body(CHAT, {**QUESTION, "structured_outputs": structure}, allowed)[
                "structured_outputs"
            ]
            == structure
        )
    check_body(
        CHAT,
        {
            **QUESTION,
            "response_format": json_schema(
                {"type": "string", "pattern": "^[a-z]+$", "maxLength": 20}
            ),
        },
        allowed,
    )
    for structure in (
        {"regex": "x" * 257},
        {"grammar": "x" * 4097},
        {"regex": "x", "choice": ["y"]},
        {"structural_tag": "{}"},
        {},
    ):
        with pytest.raises(BodyError, match="`structured_outputs`"):
            check_body(CHAT, {**QUESTION, "structured_outputs": structure}, allowed)
    with pytest.raises(BodyError, match="Expected at most 256"):
        check_body(
            CHAT,
            {**QUESTION, "response_format": json_schema({"type": "string", "maxLength": 10**6})},
            allowed,
        )


DIFFERENT = {
    "half a surrogate pair as user": (
        b'{"model": "support", "messages": [{"role": "user", "content": "x"}], "user": "\\ud800"}'
    ),
    "half a surrogate pair in a text": (
        b'{"model": "support", "messages": [{"role": "user", "content": "\\uDFFF"}]}'
    ),
    "half a surrogate pair as a name": b'{"model": "support", "\\ud800": 1}',
    "a name twice": (
        b'{"model": "support", "model": "other", "messages": [{"role": "user", "content": "x"}]}'
    ),
    "a name twice, once escaped": (
        b'{"model": "support", "mod\\u0065l": "other", "messages": [{"role": "user", "content":'
        b' "x"}]}'
    ),
    "80,000 names, the last one twice": (
        b"{" + b"".join(b'"%d":0,' % n for n in range(80_000)) + b'"x":0,"x":0}'
    ),
    "a name twice in a message": (
        b'{"model": "support", "messages": [{"role": "user", "content": "x", "role": "system"}]}'
    ),
    "NaN": (
        b'{"model": "support", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}'
    ),
    "Infinity": (
        b'{"model": "support", "messages": [{"role": "user", "content": "x"}], "temperature":'
        b" -Infinity}"
    ),
    "1e999": (
        b'{"model": "support", "messages": [{"role": "user", "content": "x"}], "temperature":'
        b" 1e999}"
    ),
    "UTF-16": json.dumps(QUESTION).encode("utf-16"),
    "a byte-order mark": b"\xef\xbb\xbf" + json.dumps(QUESTION).encode(),
    "20,000 brackets": deep(20_000).encode(),
    "20,000 brackets in a field": (
        b'{"model": "support", "messages": ' + deep(20_000).encode() + b"}"
    ),
    "985 brackets in a field": b'{"model": "support", "messages": ' + deep(985).encode() + b"}",
    "985 brackets in an unknown field": b'{"model": "support", "x": ' + deep(985).encode() + b"}",
    "500 brackets as model": b'{"model": ' + deep(500).encode() + b"}",
    "4,000 digits": (
        b'{"model": "support", "messages": [{"role": "user", "content": "x"}], "seed": '
        + b"9" * 4000
        + b"}"
    ),
}


@pytest.mark.parametrize("raw", DIFFERENT.values(), ids=DIFFERENT)
def test_a_body_that_two_parsers_could_read_differently_is_a_quick_400(raw):
    async def test(gateway):
        for path in (CHAT, "/v1/feedback"):
            started = time.monotonic()
            status, _, text = await gateway.ask(raw, path=path)
            assert status in (400, 404), text
            assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
            assert time.monotonic() - started < 1
        assert gateway.engine.requests == []

    with_host(test)


def test_an_escaped_surrogate_pair_is_a_character_like_any_other():
    async def test(gateway):
        assert (
            await gateway.ask(
                json.dumps({**QUESTION, "messages": [{"role": "user", "content": "🙂"}]}).encode()
            )
        )[0] == 200
        assert json.loads(gateway.engine.requests[0][3])["messages"][0]["content"] == "🙂"

    with_host(test)


def test_every_path_has_a_table_and_every_entry_refuses_something():
    for table in FIELDS.values():
        for name, check in table.items():
            if name != "model":
                assert check(object(), LIMITS), name
