"""Rows, files and a base model of bytes for the tests of the data gate."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from dataclasses import replace

from adapterops.data.validate import validate
from adapterops.specs.base_model import BaseModel
from adapterops.specs.policy import load_policy

ROW = {
    "id": "r1",
    "instruction": "May I return a lamp that I have used for a week?",
    "output": "Yes, within thirty days of the day on which it came.",
    "language": "en",
    "license": "CC0-1.0",
    "source": "test",
}
KOREAN = {
    **ROW,
    "id": "k1",
    "instruction": "일주일 동안 사용한 스탠드를 반품할 수 있나요?",
    "output": "네, 받으신 날부터 삼십 일 안에 반품하실 수 있습니다.",
    "language": "ko",
}
_WORDS = (
    "kettle blanket lamp armchair toolbox plant knife mill pillow puzzle curtain ladder mirror"
    " carpet bucket hammer candle basket drawer teapot bicycle saddle tent lantern rope compass"
    " paddle helmet anchor whistle violin trumpet drum banjo flute piano guitar organ harp cello"
    " jacket mitten scarf boots apron sandal bonnet ribbon button zipper needle thread cotton"
    " velvet linen denim leather canvas wool silk "
).split()


def english(number, **changes):
    """A row that is like no other number's; further keys replace or, with None, remove."""
    chance = random.Random(number)
    one, two = (" ".join(chance.sample(_WORDS, 5)) for _ in range(2))
    row = {
        **ROW,
        "id": f"r{number}",
        "instruction": f"What would it cost to send {one} to me?",
        "output": f"It is free from fifty on; without {two} it would be five.",
    }
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def rows(count, first=0):
    return [english(number) for number in range(first, first + count)]


def evaluation(number, **changes):
    """An evaluation row that is like no training row."""
    row = english(
        number + 100_000,
        id=f"e{number}",
        output=None,
        expected_output="Five, or nothing from fifty on.",
    )
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def conversation(*contents, roles=("user", "assistant"), number=0, **changes):
    """A `messages` row."""
    messages = [
        {"role": roles[place % len(roles)], "content": content}
        for place, content in enumerate(contents)
    ]
    return english(number, instruction=None, output=None, messages=messages, **changes)


def jsonl(values):
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def write(path, content):
    """Rows as JSONL, or bytes as they are."""
    path.write_bytes(content if isinstance(content, bytes) else jsonl(content))
    return path


def policy(**limits):
    """The project's policy with other limits."""
    base = load_policy()
    return replace(base, limits=replace(base.limits, **limits), overrides=())


def judge(
    tmp_path, training, evaluation_rows=None, *, name="training.jsonl", limits=None, **options
):
    """The report on some rows."""
    files = [write(tmp_path / name, training)]
    other = write(tmp_path / "eval.jsonl", evaluation_rows) if evaluation_rows is not None else None
    return validate(
        files, other, policy=policy(**(limits or {})), **{"base_model": None, **options}
    )


def codes(report):
    return sorted({finding.code for finding in report.findings})


def places(report, code):
    return [finding.line for finding in report.findings if finding.code == code]


BYTES_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}:{{ message.content }}<end>{%"
    " endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@functools.cache
def _tokenizer():
    """One token a byte, so that counts can be told by looking."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(
        {character: place for place, character in enumerate(alphabet)}, []
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    tokenizer.add_special_tokens(["<s>", "<end>", "<pad>"])
    return tokenizer.to_str()


def byte_model(directory, monkeypatch, template=BYTES_TEMPLATE):
    """A base model on the allow-list whose tokens are bytes; `<s>` begins a conversation and
    `<end>` closes a turn."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text(_tokenizer())
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "pad_token": "<pad>"})
    )
    (directory / "template.jinja").write_text(template)
    model = BaseModel(
        name="bytes",
        source={"type": "directory", "path": str(directory)},
        license="CC0-1.0",
        chat_template_path=directory / "template.jinja",
        chat_template_sha256=hashlib.sha256(template.encode()).hexdigest(),
        end_of_turn="<end>",
        stop_tokens=("<end>",),
        pad_token="<pad>",
        languages=("en",),
        parameters=0,
        context_length=4096,
        memory={},
    )
    monkeypatch.setattr("adapterops.data.scan.find_base_model", lambda *_: model)
    return model
