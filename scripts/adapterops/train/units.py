"""What FSDP's units, in which the network lies in pieces, hide from others.

FSDP lays each decoder layer into a unit, and `_fsdp_wrapped_module.` into the names of all that is
in it. Seen with peft 0.21.2, accelerate 1.15 and transformers 5.19; `test_train_units.py` fails
when a version no longer needs this.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from peft.tuners import tuners_utils
from safetensors.torch import load_file

_UNIT = "_fsdp_wrapped_module."


def let_peft_see_units() -> None:
    """Have peft find an adapter's tensors in units.

    It compares names of modules with those of a whole state, and takes the units' prefix from their
    beginning alone: it would write adapters and checkpoints without a tensor.
    """
    prefixes = tuners_utils._get_tuner_state_dict_key_prefixes
    if hasattr(prefixes, "__wrapped__"):
        return

    @functools.wraps(prefixes)
    def without_units(*arguments: Any, **options: Any) -> set[str]:
        return {prefix.replace(_UNIT, "") for prefix in prefixes(*arguments, **options)}

    tuners_utils._get_tuner_state_dict_key_prefixes = without_units


def keep_buffers_exact(plugin: Any) -> None:
    """Have FSDP leave buffers in float32: transformers tells it bf16 for all, and rotary
    frequencies in bf16 turn by wrong angles.

    Args:
        plugin: accelerate's `fsdp_plugin`, before the network is prepared.
    """
    plugin.set_mixed_precision = functools.partial(plugin.set_mixed_precision, buffer_autocast=True)


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
