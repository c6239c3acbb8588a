"""A vLLM plug-in for the CPU build: LoRA products grouped by adapter.

vLLM's CPU operators gather the LoRA matrices once for every token of a batch and convert the copies
to float32, which makes an adapter four to five times slower than its base model; they also give
requests without an adapter (index -1) the matrices of the last slot. Here a step's tokens are
grouped by adapter once, and each projection multiplies a group with its adapter's matrices, in the
engine's own type.

Found by vLLM through the entry point beside this file when this directory is on PYTHONPATH; the GPU
build is not touched. For vLLM 0.32; it can go when `vllm/lora/ops/torch_ops/lora_ops.py` no longer
indexes its weights with one row a token, for which `tests/unit/test_vllm_plugins.py` looks.
https://github.com/vllm-project/vllm/pull/48421 mends index -1; for the copies no issue is known.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Replace the operators; vLLM calls this in each of its processes."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    update = PunicaWrapperCPU.update_metadata

    def update_metadata(self: Any, *arguments: Any, **options: Any) -> None:
        update(self, *arguments, **options)
        self.groups = groups(self.token_lora_indices)
        self.sampled_groups = groups(self.sampler_indices)

    for operator in (update_metadata, add_lora_linear, add_lora_logits):
        setattr(PunicaWrapperCPU, operator.__name__, operator)


def groups(indices: Any) -> list[tuple[int, Any]]:
    """For each adapter's slot, the rows [n] that it is asked for; index -1 asks for none.

    A slot that all rows ask for gets a slice, which copies nothing.
    """
    import torch

    slots = torch.unique(indices).tolist()
    if len(slots) == 1:
        return [(slot, slice(len(indices))) for slot in slots if slot >= 0]
    return [(slot, (indices == slot).nonzero().flatten()) for slot in slots if slot >= 0]


def add_lora_linear(
    self: Any,
    y: Any,
    x: Any,
    lora_a_stacked: Any,
    lora_b_stacked: Any,
    scale: float,
    output_slices: Any,
    **_: Any,
) -> None:
    """`y[:, slice] += scale · x · Aᵀ · Bᵀ` for each slice.

    A slice is one of several projections that vLLM has fused.

    y [tokens, sum of slices], x [tokens, in], A [slots, (1,) r, in], B [slots, (1,) out, r].
    """
    for slot, rows in self.groups:
        mine, start = x[rows], 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            _add(y[:, start : start + width], rows, mine, _matrix(a, slot), _matrix(b, slot), scale)
            start += width


def add_lora_logits(
    self: Any, y: Any, x: Any, lora_a_stacked: Any, lora_b_stacked: Any, scale: float, **_: Any
) -> None:
    """`y += scale · x · Aᵀ · Bᵀ` for the tokens that are sampled from."""
    y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
    for slot, rows in self.sampled_groups:
        _add(y, rows, x[rows], _matrix(lora_a_stacked, slot), _matrix(lora_b_stacked, slot), scale)


def _matrix(stacked: Any, slot: int) -> Any:
    return stacked[slot].flatten(0, -2)


def _add(y: Any, rows: Any, x: Any, a: Any, b: Any, scale: float) -> None:
    import torch

    low = torch.nn.functional.linear(x, a.to(x.dtype))
    if isinstance(rows, slice):
        y[rows].addmm_(low.to(y.dtype), b.to(y.dtype).T, alpha=scale)
    else:
        y[rows] += torch.nn.functional.linear(low.to(y.dtype), b.to(y.dtype)) * scale
