"""What to try when memory runs out, in this order; the effective batch stays what the recipe says,
and so does the rank.
"""

from __future__ import annotations

from typing import Any


def next_rung(training: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
    """The next milder settings after an out-of-memory error.

    Args:
        training: the settings that did not fit.

    Returns:
        New settings and what changed in words, or None at the end of the ladder.
    """
    micro, accumulation = (
        training["per_device_train_batch_size"],
        training["gradient_accumulation_steps"],
    )
    if micro > 1:
        # The largest divisor up to the half, so that the product stays exactly what it was.
        smaller = max(size for size in range(1, micro // 2 + 1) if micro % size == 0)
        larger = accumulation * (micro // smaller)
        return (
            {
                **training,
                "per_device_train_batch_size": smaller,
                "gradient_accumulation_steps": larger,
            },
            (
                f"per_device_train_batch_size {micro} → {smaller}, gradient_accumulation_steps"
                f" {accumulation} → {larger}"
            ),
        )
    checkpointing = training["gradient_checkpointing"]
    if checkpointing is False and training["fused_lora"]:
        return {
            **training,
            "gradient_checkpointing": "selective",
        }, "gradient_checkpointing false → selective"
    if checkpointing is not True:
        return {
            **training,
            "gradient_checkpointing": True,
        }, f"gradient_checkpointing {str(checkpointing).lower()} → true"
    length = training["max_length"]
    if training["on_truncation"] != "allow" or length <= 512:
        return None
    if not training["packing"]:
        shorter = max(512, length // 2)
        return {**training, "max_length": shorter}, f"max_length {length} → {shorter}"
    if length < 1024:
        return None
    # A pack is max_length tokens, whatever number of rows: half as long, there must be twice as
    # many in a step.
    return (
        {**training, "max_length": length // 2, "gradient_accumulation_steps": 2 * accumulation},
        (
            f"max_length {length} → {length // 2}, gradient_accumulation_steps {accumulation} →"
            f" {2 * accumulation}"
        ),
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the machine: torch has one class for some cases, and
    texts for the others.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        said in text
        for said in (
            "can't allocate memory",  # the CPU's allocator
            "CUDA error: out of memory",  # AcceleratorError, from what allocates beside torch
            "CUBLAS_STATUS_ALLOC_FAILED",
            "CUDNN_STATUS_ALLOC_FAILED",
            "Triton Error [CUDA]: out of memory",
        )
    )
