"""What to try when memory runs out, in this order; the effective batch stays what the recipe says, and so does the rank."""

from __future__ import annotations

from typing import Any


def next_rung(training: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
    """The next milder settings after an out-of-memory error.

    Args:
        training: the settings that did not fit.

    Returns:
        New settings and what changed in words, or None at the end of the ladder.
    """
    micro, accumulation = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
    if micro > 1:
        # The largest divisor up to the half, so that the product stays exactly what it was.
        smaller = max(size for size in range(1, micro // 2 + 1) if micro % size == 0)
        larger = accumulation * (micro // smaller)
        return (
            {**training, "per_device_train_batch_size": smaller, "gradient_accumulation_steps": larger},
            f"per_device_train_batch_size {micro} → {smaller}, gradient_accumulation_steps {accumulation} → {larger}",
        )
    checkpointing = training["gradient_checkpointing"]
    if checkpointing is False and training["fused_lora"]:
        return {**training, "gradient_checkpointing": "selective"}, "gradient_checkpointing false → selective"
    if checkpointing is not True:
        return {**training, "gradient_checkpointing": True}, f"gradient_checkpointing {str(checkpointing).lower()} → true"
    if training["on_truncation"] == "allow" and training["max_length"] > 512:
        shorter = max(512, training["max_length"] // 2)
        return {**training, "max_length": shorter}, f"max_length {training['max_length']} → {shorter}"
    return None
