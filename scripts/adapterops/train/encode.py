"""Rows to token ids and labels: trained are the assistant's answers, each with its end of turn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterops.data.reader import load_rows
from adapterops.data.rows import training_messages
from adapterops.errors import RejectedError, UsageError
from adapterops.specs.base_model import BaseModel
from adapterops.train.labels import IGNORED, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedData:
    """Training rows as tokens.

    Args:
        input_ids: one list of token ids a row.
        labels: the same lengths; `IGNORED` wherever nothing is trained.
        truncated_rows: rows longer than `max_length`, cut at its end.
        truncated_tokens: tokens lost that way.
        truncated_supervised: of these, tokens of answers, ends of turns among them: without its end
            an answer does not teach to stop.
        licenses: rows of each licence.
    """

    input_ids: list[list[int]]
    labels: list[list[int]]
    truncated_rows: int
    truncated_tokens: int
    truncated_supervised: int
    licenses: dict[str, int]

    def rows(self) -> list[Row]:
        """The rows as `packing.Collator` takes them."""
        return [
            {"input_ids": ids, "labels": labels}
            for ids, labels in zip(self.input_ids, self.labels, strict=True)
        ]

    @property
    def tokens(self) -> int:
        """All tokens, padding not counted."""
        return sum(map(len, self.input_ids))

    @property
    def supervised_tokens(self) -> int:
        """Tokens that the loss is computed on."""
        return sum(label != IGNORED for row in self.labels for label in row)


def encode_files(
    files: list[Path],
    tokenizer: PreTrainedTokenizerBase,
    base_model: BaseModel,
    max_length: int,
    on_truncation: str,
) -> EncodedData:
    """Render every row with the base model's chat template and mask all but the answers.

    Raises:
        RejectedError: unreadable or invalid rows; rows over `max_length` tokens unless
            `on_truncation` is `allow`; a row whose answer would be cut away altogether.
        UsageError: the chat template does not fit the method (see `encode_messages`).
    """
    input_ids, labels, too_long = [], [], []
    lost = lost_supervised = 0
    licenses: Counter[str] = Counter()
    for file in files:
        for row in load_rows(file, "training"):
            try:
                ids, row_labels = encode_messages(
                    training_messages(row.value), tokenizer, base_model
                )
            except RejectedError as error:
                raise RejectedError(f"{file}:{row.line}: {error}") from None
            if len(ids) > max_length:
                too_long.append(
                    f"{file}:{row.line}: {len(ids)} tokens. Expected at most max_length"
                    f" {max_length}."
                )
                lost += len(ids) - max_length
                lost_supervised += sum(label != IGNORED for label in row_labels[max_length:])
                ids, row_labels = ids[:max_length], row_labels[:max_length]
                if all(label == IGNORED for label in row_labels):
                    raise RejectedError(
                        f"{too_long[-1]} Nothing of its answer would be left to train on: shorten"
                        " the row."
                    )
            licenses[row.value["license"]] += 1
            input_ids.append(ids)
            labels.append(row_labels)
    if not input_ids:
        raise RejectedError(f"{', '.join(map(str, files))}: no rows to train on.")
    if too_long and on_truncation == "error":
        shown = "\n".join(too_long[:20])
        if len(too_long) > 20:
            shown += f"\n… and {len(too_long) - 20} more"
        raise RejectedError(
            f"{shown}\n{len(too_long)} rows would lose {lost} tokens, {lost_supervised} of them of"
            " answers. Shorten them, raise training.max_length, or accept the loss with"
            " training.on_truncation: allow."
        )
    return EncodedData(
        input_ids, labels, len(too_long), lost, lost_supervised, dict(sorted(licenses.items()))
    )


def encode_messages(
    messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, base_model: BaseModel
) -> tuple[list[int], list[int]]:
    """Token ids and labels of one conversation that ends with the assistant.

    Trained is every assistant turn from its first token to its end-of-turn token, the one at which
    serving stops; what the template writes after the last of them (SmolLM2: a line break) is
    dropped, since it is never generated.

    Raises:
        RejectedError: a token that ends a turn stands in a text: the turn would end there, and the
            rest would be lost.
        UsageError: the template is not prefix-stable (a prompt's tokens are not the beginning of
            the whole), or does not close an assistant turn with the base model's end-of-turn token.
    """
    for message in messages:
        for token in dict.fromkeys((base_model.end_of_turn, *base_model.stop_tokens)):
            if token in message["content"]:
                raise RejectedError(
                    f"the text of the {message['role']} contains `{token}`, which ends a turn: what"
                    " follows it would be lost. Remove it from the text. See docs/errors.md#e204"
                )
    end_of_turn = tokenizer.convert_tokens_to_ids(base_model.end_of_turn)
    whole = _render(messages, tokenizer)
    labels = [IGNORED] * len(whole)
    last = 0
    for position, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(messages[:position], tokenizer, add_generation_prompt=True)
        start = len(prompt)
        if whole[:start] != prompt:
            raise UsageError(
                f"{base_model.chat_template_path}: the tokens of the prompt are not the beginning"
                " of the tokens of prompt and answer, so the answer cannot be masked exactly. Mend"
                " the template."
            )
        try:
            last = whole.index(end_of_turn, start) + 1
        except ValueError:
            raise UsageError(
                f"{base_model.chat_template_path}: an assistant turn does not end in end_of_turn"
                f" `{base_model.end_of_turn}`; a model trained on it would not learn to stop. Mend"
                " the template or configs/base_models.yaml."
            ) from None
        labels[start:last] = whole[start:last]
    return whole[:last], labels[:last]


def _render(
    messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, **options: bool
) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    # The template writes BOS itself; a second one from the tokenizer would differ from what the
    # server renders.
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def mask_sample(encoded: EncodedData, tokenizer: PreTrainedTokenizerBase) -> str:
    """The shortest row as text, what is trained between ⟦ and ⟧, for a person to look at."""
    number = min(range(len(encoded.input_ids)), key=lambda row: (len(encoded.input_ids[row]), row))
    parts: list[str] = []
    trained, tokens = False, list[int]()

    def close() -> None:  # of the span that `trained` is about
        text = tokenizer.decode(tokens)
        parts.append(f"⟦{text}⟧" if trained else text)
        tokens.clear()

    for token, label in zip(encoded.input_ids[number], encoded.labels[number], strict=True):
        if (label != IGNORED) != trained:
            if tokens:
                close()
            trained = not trained
        tokens.append(token)
    close()
    return "".join(parts)
