"""A row as the chat messages that training and evaluation render: both see the same prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adapterops.shapes.eval_row import EvalRow
from adapterops.shapes.training_row import TrainingRow

if TYPE_CHECKING:
    from typing_extensions import TypeIs

DataRow = TrainingRow | EvalRow
JsonObject = Mapping[str, object]  # a row that nothing is known of yet
Messages = list[dict[str, str]]


def prompt_messages(row: DataRow) -> Messages:
    """What the model is asked: all messages but the answer."""
    if _is_training(row) and "messages" in row:
        return [
            {"role": message["role"], "content": message["content"]}
            for message in row["messages"][:-1]
        ]
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    content = f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]
    return [*messages, {"role": "user", "content": content}]


def training_messages(row: DataRow) -> Messages:
    """Prompt and answer of a training row."""
    return [*prompt_messages(row), {"role": "assistant", "content": answer(row)}]


def prompt_text(row: DataRow) -> str:
    """The prompt's text, for comparison of rows."""
    return "\n\n".join(message["content"] for message in prompt_messages(row))


def answer(row: DataRow) -> str:
    """The answer that is trained, or expected."""
    if _is_training(row):
        return row["messages"][-1]["content"] if "messages" in row else row["output"]
    return row["expected_output"]


def has_texts(value: JsonObject) -> TypeIs[DataRow]:
    """True if a row has the parts of a prompt and an answer, whatever else is wrong with it."""
    if "messages" in value:
        messages = value["messages"]
        parts = messages if isinstance(messages, list) else []
        return len(parts) > 1 and all(
            isinstance(part, dict) and _are_strings(part, "role", "content") for part in parts
        )
    optional = [key for key in ("system", "input") if value.get(key) is not None]
    return _are_strings(
        value, "instruction", "output" if "output" in value else "expected_output", *optional
    )


def _is_training(row: DataRow) -> TypeIs[TrainingRow]:
    return "messages" in row or "output" in row


def _are_strings(value: JsonObject, *keys: str) -> bool:
    return all(isinstance(value.get(key), str) for key in keys)
