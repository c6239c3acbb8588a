"""A row as the chat messages that training and evaluation render, so that both see the same
prompt.
"""

from __future__ import annotations

from typing import Any

Messages = list[dict[str, str]]


def prompt_messages(row: dict[str, Any]) -> Messages:
    """What the model is asked: all messages but the answer."""
    if "messages" in row:
        return [
            {"role": message["role"], "content": message["content"]}
            for message in row["messages"][:-1]
        ]
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


def has_texts(value: dict[str, Any]) -> bool:
    """True if the row has the parts that make a prompt and an answer, whatever else is wrong with
    it.
    """
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


def _are_strings(value: dict[str, Any], *keys: str) -> bool:
    return all(isinstance(value.get(key), str) for key in keys)
