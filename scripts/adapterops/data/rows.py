"""A row as the chat messages that training and evaluation render, so that both see the same prompt."""

from __future__ import annotations

from typing import Any

Messages = list[dict[str, str]]


def prompt_messages(row: dict[str, Any]) -> Messages:
    """What the model is asked: all messages but the answer."""
    if "messages" in row:
        return [{"role": message["role"], "content": message["content"]} for message in row["messages"][:-1]]
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    content = f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]
    return [*messages, {"role": "user", "content": content}]


def training_messages(row: dict[str, Any]) -> Messages:
    """Prompt and answer of a training row."""
    return [*prompt_messages(row), {"role": "assistant", "content": answer(row)}]


def prompt_text(row: dict[str, Any]) -> str:
    """The prompt's text, for comparison of rows."""
    return "\n\n".join(message["content"] for message in prompt_messages(row))


def answer(row: dict[str, Any]) -> str:
    """The answer that is trained, or expected."""
    if "messages" in row:
        return str(row["messages"][-1]["content"])
    return str(row["output"] if "output" in row else row["expected_output"])
