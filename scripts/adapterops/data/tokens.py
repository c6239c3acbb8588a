"""Token counts of prompts, answers and rendered rows, by the base model's chat template."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import tokenizers

from adapterops.basemodels.rendering import Renderer
from adapterops.data.reader import Row
from adapterops.data.rows import DataRow, training_messages
from adapterops.specs.policy import Limits

_CHECKED_ROWS = 16  # of a lot: the sum of their parts is compared with the count of the whole
_MARGIN_TOKENS = 16


@dataclass(frozen=True)
class Counted:
    """What was counted of a lot of rows; 0 for a row that was not.

    Args:
        prompt: tokens of system, instruction, input and former turns.
        answer: tokens of the last answer.
        row: tokens of the rendered row, as it is trained on.
        problems: (row, code, message).
    """

    prompt: list[int]
    answer: list[int]
    row: list[int]
    problems: list[tuple[int, str, str]]


class TokenCounter:
    """Counts the rows of one file.

    Args:
        renderer: of the base model.
        limits: of the policy.
        max_length: longest rendered row in tokens.
        skip: leave rows uncounted that the size of their text shows to be within the limits.
    """

    def __init__(
        self, renderer: Renderer, limits: Limits, max_length: int | None, *, skip: bool
    ) -> None:
        self._renderer = renderer
        self._limits = limits
        self._max_length = max_length
        self._words_per_token = words_per_token(renderer.tokenizer) if skip else None

    def of(self, rows: Sequence[Row[DataRow]], wanted: list[bool]) -> Counted:
        """Count the rows.

        Args:
            rows: of any number.
            wanted: for each, whether it must be counted, whatever its size.
        """
        conversations = [training_messages(row.value) for row in rows]
        shapes = [
            _shape(self._renderer, tuple(message["role"] for message in messages))
            for messages in conversations
        ]
        counted = [
            index
            for index, messages in enumerate(conversations)
            if wanted[index]
            or not self._surely_within([message["content"] for message in messages], shapes[index])
        ]
        flat = iter(
            self._renderer.count(
                [message["content"] for index in counted for message in conversations[index]]
            )
        )
        parts = {index: [next(flat) for _ in conversations[index]] for index in counted}
        sums = {index: sum(counts) + shapes[index].overhead for index, counts in parts.items()}
        whole = sums | self._exact(conversations, shapes, sums)
        result = Counted([0] * len(rows), [0] * len(rows), [0] * len(rows), [])
        for index, shape in enumerate(shapes):
            if shape.problem:
                result.problems.append((index, "E206", shape.problem))
        for index, counts in parts.items():
            result.prompt[index], result.answer[index], result.row[index] = (
                sum(counts[:-1]),
                counts[-1],
                whole[index],
            )
            self._judge(result, index)
        return result

    def _judge(self, result: Counted, index: int) -> None:
        low, high = self._limits.instruction_tokens
        if not low <= result.prompt[index] <= high:
            result.problems.append(
                (
                    index,
                    "E201",
                    f"the instruction has {result.prompt[index]} tokens. Expected {low}-{high}.",
                )
            )
        low, high = self._limits.output_tokens
        if not low <= result.answer[index] <= high:
            result.problems.append(
                (
                    index,
                    "E202",
                    f"the output has {result.answer[index]} tokens. Expected {low}-{high}.",
                )
            )
        if self._max_length is not None and result.row[index] > self._max_length:
            message = (
                f"the rendered row has {result.row[index]} tokens. Expected at most max_length"
                f" {self._max_length}."
            )
            result.problems.append((index, "E203", message))

    def _surely_within(self, contents: list[str], shape: _Shape) -> bool:
        """Whether no limit can break: a token has a byte or more, and so many words or fewer."""
        if not self._words_per_token:
            return False
        prompts, said = contents[:-1], contents[-1]
        most = [
            len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
            for text in contents
        ]
        (fewest_asked, most_asked), (fewest_said, most_said) = (
            self._limits.instruction_tokens,
            self._limits.output_tokens,
        )
        return (
            sum(most[:-1]) <= most_asked
            and most[-1] <= most_said
            and (self._max_length is None or sum(most) + shape.overhead <= self._max_length)
            and _has_words(prompts, fewest_asked * self._words_per_token)
            and _has_words([said], fewest_said * self._words_per_token)
        )

    def _exact(
        self, conversations: list[list[dict[str, str]]], shapes: list[_Shape], sums: dict[int, int]
    ) -> dict[int, int]:
        """Counts of rendered rows, for those near the limit and for a sample; for all of them if
        the sample shows a difference.

        A template that puts a special token on either side of each message makes the whole the sum
        of its parts, and counting the parts alone halves the work.
        """
        renderer, longest = self._renderer, self._max_length
        usable = [index for index in sums if shapes[index].problem is None]
        sample = usable[:: max(1, len(usable) // _CHECKED_ROWS)]
        near = [
            index
            for index in usable
            if longest is not None
            and 0 < abs(sums[index] - longest) <= max(_MARGIN_TOKENS, longest // 20)
        ]
        trimmed = [
            index
            for index in usable
            if shapes[index].trims
            and any(_has_margins(message) for message in conversations[index])
        ]

        def count(indices: list[int]) -> dict[int, int]:
            return dict(
                zip(
                    indices,
                    renderer.count([renderer.render(conversations[index]) for index in indices]),
                    strict=True,
                )
            )

        exact = count(sorted({*sample, *near, *trimmed}))
        return (
            count(usable)
            if any(sums[index] != exact[index] and index not in trimmed for index in sample)
            else exact
        )


def words_per_token(tokenizer: tokenizers.Tokenizer) -> int | None:
    """The most words (runs without white space) that one token of the vocabulary spans.

    Returns:
        None where a text's size does not bound its tokens: other models than BPE, and text that is
        rewritten or prefixed before it is split.
    """
    rewriting = _steps(tokenizer.normalizer, "normalizers")
    splitting = _steps(tokenizer.pre_tokenizer, "pretokenizers")
    if not isinstance(tokenizer.model, tokenizers.models.BPE) or any(
        not (
            step["type"] == "Replace"
            and step["pattern"] == {"String": " "}
            and step["content"] == "▁"
        )
        for step in rewriting
    ):
        return None
    if any(
        step["type"] not in {"Split", "Digits", "ByteLevel"} or step.get("add_prefix_space")
        for step in splitting
    ):
        return None
    pieces = tokenizer.decode_batch(
        [[number] for number in range(tokenizer.get_vocab_size())], skip_special_tokens=False
    )
    return max(1, *(len(piece.split()) for piece in pieces))


class _Step(TypedDict):
    """A step of a tokenizer, as `tokenizers` writes it; these are the fields that are read."""

    type: str
    pattern: NotRequired[dict[str, str]]
    content: NotRequired[str]
    add_prefix_space: NotRequired[bool]


def _steps(component: Any, key: str) -> list[_Step]:
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    steps: list[_Step] = state[key] if state["type"] == "Sequence" else [state]
    return steps


def _has_words(texts: list[str], fewest: int) -> bool:
    found = 0
    for text in texts:
        found += len(text.split(None, fewest)[:fewest])
    return found >= fewest


def _has_margins(message: dict[str, str]) -> bool:
    return message["content"] != message["content"].strip()


@dataclass(frozen=True)
class _Shape:
    """A sequence of roles under a chat template.

    Args:
        overhead: tokens that the template adds.
        problem: what is wrong with it.
        trims: the template drops white space around a message.
    """

    overhead: int
    problem: str | None
    trims: bool = False


@functools.cache
def _shape(renderer: Renderer, roles: tuple[str, ...]) -> _Shape:
    """Whether a sequence of roles renders with one BOS in front and every answer closed; templates
    do not look at the content.
    """
    messages = [{"role": role, "content": "x"} for role in roles]
    try:
        text = renderer.render(messages)
        prompt = renderer.render(messages[:-1], add_generation_prompt=True)
        spaced = renderer.render([{"role": role, "content": " \n x \n "} for role in roles])
    except ValueError as error:
        return _Shape(0, f"the chat template refuses the roles {', '.join(roles)}: {error}.")
    overhead, single = renderer.count([text, "x"])
    problem = None
    if renderer.bos and not text.startswith(renderer.bos):
        problem = f"the rendered row does not begin with `{renderer.bos}`."
    elif renderer.bos and text.startswith(renderer.bos * 2):
        problem = f"the rendered row begins with `{renderer.bos}` twice."
    elif not text.startswith(prompt) or renderer.end_of_turn not in text[len(prompt) :]:
        problem = (
            "the rendered answer does not end in the trained end-of-turn token"
            f" `{renderer.end_of_turn}`."
        )
    return _Shape(
        overhead - single * len(roles), problem, trims=spaced.count(" \n x \n ") < len(roles)
    )
