"""What to try in turn when memory runs out; effective batch and rank stay the recipe's."""

from __future__ import annotations

from adapterops.shapes.recipe import Training


def next_rung(training: Training) -> tuple[Training, str] | None:
    """The next milder settings after an out-of-memory error.

    Args:
        training: the settings that did not fit.

    Returns:
        New settings and what changed in words, or None at the end of the ladder.
    """
    micro = training["per_device_train_batch_size"]
    accumulation = training["gradient_accumulation_steps"]
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
            f"per_device_train_batch_size {micro} → {smaller},"
            f" gradient_accumulation_steps {accumulation} → {larger}",
        )
    checkpointing = training["gradient_checkpointing"]
    if checkpointing is False and training["fused_lora"]:
        return (
            {**training, "gradient_checkpointing": "selective"},
            "gradient_checkpointing false → selective",
        )
    if checkpointing is not True:
        return (
            {**training, "gradient_checkpointing": True},
            f"gradient_checkpointing {str(checkpointing).lower()} → true",
        )
    return _shorter_rows(training)


def _shorter_rows(training: Training) -> tuple[Training, str] | None:
    """Half of `max_length`, if the recipe allows to lose tokens and enough is left."""
    length, accumulation = training["max_length"], training["gradient_accumulation_steps"]
    if training["on_truncation"] != "allow" or length <= 512:
        return None
    if not training["packing"]:
        shorter = max(512, length // 2)
        return {**training, "max_length": shorter}, f"max_length {length} → {shorter}"
    if length < 1024:
        return None
    # A pack is max_length tokens, whatever its rows: of half the length a step takes twice as many.
    return (
        {**training, "max_length": length // 2, "gradient_accumulation_steps": 2 * accumulation},
        f"max_length {length} → {length // 2},"
        f" gradient_accumulation_steps {accumulation} → {2 * accumulation}",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has a class for some cases, and texts for the others."""
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
