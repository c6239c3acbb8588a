"""What serving changes: an adapter is trained on NF4 weights and served on the bf16 ones.

Losses of adapter and base model on both, over the same rows. Usually bf16 is the better base, since
NF4 only approximates it; an adapter that has learnt to make up for the errors of NF4 is worse
there, and no number of the training shows it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from safetensors import safe_open

from adapterops.errors import UsageError
from adapterops.train.labels import Row

# The losses are compared on the same tokens, so few rows tell. The small model on one core: 24 rows
# of 75 tokens took 6 s a loss.
ROWS = 12


def sample(rows: list[Row], count: int = ROWS) -> list[Row]:
    """`count` rows or fewer, by their content and not their place; the shortest first, so that
    batches hold little padding.
    """
    chosen = sorted(rows, key=lambda row: hashlib.sha256(repr(row["input_ids"]).encode()).digest())[
        :count
    ]
    return sorted(chosen, key=lambda row: len(row["input_ids"]))


def compare(model: Any, directory: Path, loss: Callable[[], float]) -> dict[str, float]:
    """Losses on NF4 and on the weights that NF4 was made from.

    The latter are read from the files one projection at a time, while it is computed: a model that
    fits in NF4 alone is compared as well.

    Args:
        model: a peft model with one adapter on an NF4 base model.
        directory: the base model's.
        loss: mean loss in nats of `model` over some rows.

    Returns:
        `adapter_nf4`, `adapter_bf16`, `base_nf4`, `base_bf16`, in nats a supervised token; the
        exponential is the perplexity.

    Raises:
        UsageError: the directory lacks the weights of a projection.
    """
    found = {"adapter_nf4": loss()}
    with model.disable_adapter():
        found["base_nf4"] = loss()
    with _unquantised(model.get_base_model(), directory):
        found["adapter_bf16"] = loss()
        with model.disable_adapter():
            found["base_bf16"] = loss()
    return {name: round(value, 5) for name, value in found.items()}


@contextlib.contextmanager
def _unquantised(network: Any, directory: Path) -> Iterator[None]:
    """Let the network's NF4 projections compute with the weights in `directory`."""
    with contextlib.ExitStack() as files:
        where = {}
        for path in sorted(directory.glob("*.safetensors")):
            file = files.enter_context(safe_open(path, framework="pt"))
            where.update(dict.fromkeys(file.keys(), file))
        projections = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, Linear4bit)
        }
        try:
            for name, module in projections.items():
                key = f"{name.removesuffix('.base_layer')}.weight"
                if key not in where:
                    raise UsageError(
                        f"{directory}: no file holds {key}, so the adapter cannot be judged on the"
                        " weights it is served on."
                    )
                module.exact_weight = _reader(where[key], key, module)
                module.forward = _linear(module)
            yield
        finally:
            for module in projections.values():
                module.__dict__.pop("exact_weight", None)
                module.__dict__.pop("forward", None)


def _reader(file: Any, key: str, module: Any) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        weight: torch.Tensor = file.get_tensor(key).to(module.weight.device, module.compute_dtype)
        return weight

    return read


def _linear(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, module.exact_weight(), module.bias)

    return forward
