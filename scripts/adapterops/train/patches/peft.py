"""peft 0.21: what FSDP's units hide from it, and the precision of an adapter that it loads.

FSDP lays each decoder layer into a unit, and `_fsdp_wrapped_module.` into the names of all that is
in it. peft takes that away from the beginning of a name alone, as for the modules of
https://github.com/huggingface/peft/pull/2681; for units within a network no issue is known.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners import tuners_utils
from safetensors.torch import load_file

_UNIT = "_fsdp_wrapped_module."


def let_peft_see_units() -> None:
    """Have peft find an adapter's tensors in units.

    It compares names of modules with those of a whole state, from which FSDP removed the units: it
    would write adapters and checkpoints without a tensor.
    """
    prefixes = tuners_utils._get_tuner_state_dict_key_prefixes
    if hasattr(prefixes, "__wrapped__"):
        return

    @functools.wraps(prefixes)
    def without_units(*arguments: Any, **options: Any) -> set[str]:
        return {prefix.replace(_UNIT, "") for prefix in prefixes(*arguments, **options)}

    tuners_utils._get_tuner_state_dict_key_prefixes = without_units


def load_adapter(network: Any, checkpoint: Path) -> None:
    """Put the adapter of a checkpoint into a network in units; every process calls it.

    peft takes the first part of each name for what is missing in the network, whose own names begin
    with the unit's, and then loads nothing and says nothing: a resumed training would begin anew in
    the middle of its schedule.

    Args:
        network: the outermost unit.
        checkpoint: a directory with `adapter_model.safetensors`.

    Raises:
        ValueError: a tensor of the checkpoint has no place in the network, or the network has one
            that the checkpoint lacks.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

    state = load_file(checkpoint / "adapter_model.safetensors")
    named = {
        name.removesuffix(".weight") + ".default.weight": tensor for name, tensor in state.items()
    }
    with (
        FullyShardedDataParallel.state_dict_type(network, StateDictType.FULL_STATE_DICT),
        torch.no_grad(),
    ):
        result = network.load_state_dict(named, strict=False)
    missing = [name for name in result.missing_keys if ".lora_A." in name or ".lora_B." in name]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"{checkpoint}: the adapter does not fit the network:"
            f" {(missing + result.unexpected_keys)[:3]}"
        )


@contextlib.contextmanager
def same_precision(model: Any) -> Iterator[None]:
    """Give the trained parameters back the types that they have now.

    `PeftModel.load_adapter` makes an adapter float32 unless it is told otherwise
    (https://github.com/huggingface/peft/pull/1706), and transformers, which calls it to resume,
    does not tell it: a training would go on in another precision than it began.
    """
    types = {
        name: parameter.dtype
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    yield
    for name, parameter in model.named_parameters():
        if name in types:
            parameter.data = parameter.data.to(types[name])
