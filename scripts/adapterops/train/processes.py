"""What several processes of `accelerate launch` agree on; a single one agrees with itself."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from adapterops.errors import UsageError

_Value = TypeVar("_Value")


def any_process(*flags: bool) -> list[bool]:
    """Each flag as it is in any of the processes; every process has to call, and waits."""
    if not _several():
        return list(flags)
    found = torch.tensor(flags, dtype=torch.int32, device=PartialState().device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in found.tolist()]


def of_first(value: _Value) -> _Value:
    """The value that the first process has. Every process has to call."""
    if not _several():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=PartialState().device)
    return values[0]


def divided(micro: int, accumulation: int, processes: int, where: object) -> tuple[int, int]:
    """Micro-batch and accumulation of each process; the effective batch stays the recipe's.

    Args:
        micro: `per_device_train_batch_size` of the recipe.
        accumulation: its `gradient_accumulation_steps`, which is divided first.
        processes: how many share a step.
        where: the recipe, for the message.

    Raises:
        UsageError: the product cannot be divided.
    """
    for fewer in range(min(accumulation, processes), 0, -1):
        if (
            accumulation % fewer == 0
            and processes % fewer == 0
            and micro % (processes // fewer) == 0
        ):
            return micro // (processes // fewer), accumulation // fewer
    raise UsageError(
        f"{where}: training.per_device_train_batch_size {micro} × gradient_accumulation_steps"
        f" {accumulation} cannot be divided among {processes} processes, and the effective batch is"
        " the recipe's on however many. Start a number of processes that divides both or one of"
        f" them (--num_processes), or set gradient_accumulation_steps to a multiple of {processes}."
    )


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
