"""What serving changes: an adapter is trained on NF4 weights and served on the bf16 ones.

Losses of adapter and base model on both, over the same rows. Usually bf16 is the better base, since
NF4 only approximates it; an adapter that has learnt to make up for the errors of NF4 is worse
there, and no number of the training shows it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from safetensors import safe_open

from adapterops.errors import UsageError
from adapterops.train.judgement import Losses
from adapterops.train.labels import Row

# The losses are compared on the same tokens, so few rows tell. The small model on one core: 24 rows
# of 75 tokens took 6 s a loss.
ROWS = 12


def sample(rows: list[Row], count: int = ROWS) -> list[Row]:
    """`count` rows or fewer, by their content and not their place.

    The shortest come first, so that batches hold little padding.
    """

    def drawn(row: Row) -> bytes:
        return hashlib.sha256(repr(row["input_ids"]).encode()).digest()

    return sorted(sorted(rows, key=drawn)[:count], key=lambda row: len(row["input_ids"]))


def compare(model: Any, directory: Path, loss: Callable[[], float]) -> Losses:
    """Losses on NF4 and on the weights that NF4 was made from.

    The latter are read from the files one projection at a time, while it is computed: a model that
    fits in NF4 alone is compared as well.

    Args:
        model: a peft model with one adapter on an NF4 base model.
        directory: the base model's.
        loss: mean loss in nats of `model` over some rows.

    Raises:
        UsageError: the directory lacks the weights of a projection.
    """
    adapter_nf4 = loss()
    with model.disable_adapter():
        base_nf4 = loss()
    with _unquantised(model.get_base_model(), directory):
        adapter_bf16 = loss()
        with model.disable_adapter():
            base_bf16 = loss()
    return {
        "adapter_nf4": round(adapter_nf4, 5),
        "base_nf4": round(base_nf4, 5),
        "adapter_bf16": round(adapter_bf16, 5),
        "base_bf16": round(base_bf16, 5),
    }


@contextlib.contextmanager
def _unquantised(network: Any, directory: Path) -> Iterator[None]:
    """Let the network's NF4 projections compute with the weights in `directory`.

    Fused layers ask for `exact_weight`. A layer that is called gets another `forward` of its own: a
    hook would come after its NF4 product, and cost time and memory.
    """
    with contextlib.ExitStack() as until:
        where = {}
        for path in sorted(directory.glob("*.safetensors")):
            file = until.enter_context(safe_open(path, framework="pt"))
            where.update(dict.fromkeys(file.keys(), file))
        for name, module in network.named_modules():
            if not isinstance(module, Linear4bit):
                continue
            key = f"{name.removesuffix('.base_layer')}.weight"
            if key not in where:
                raise UsageError(
                    f"{directory}: no file holds {key}, so the adapter cannot be judged on the"
                    " weights it is served on."
                )
            module.exact_weight = _reader(where[key], key, module)
            until.callback(delattr, module, "exact_weight")
            module.forward = functools.partial(_exact_output, module)
            until.callback(delattr, module, "forward")
        yield


def _reader(file: Any, key: str, module: Any) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        weight: torch.Tensor = file.get_tensor(key).to(module.weight.device, module.compute_dtype)
        return weight

    return read


def _exact_output(module: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, module.exact_weight(), module.bias)
