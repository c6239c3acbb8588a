"""A vLLM plug-in for the CPU build: LoRA products grouped by adapter.

vLLM's CPU operators gather the LoRA matrices once for every token of a batch and convert the copies, which makes an adapter four to
five times slower than its base model; they also give requests without an adapter (index -1) the matrices of the last slot. Here each
adapter's tokens are multiplied together.

Found by vLLM through the entry point beside this file when this directory is on PYTHONPATH; the GPU build is not touched. It can go
when `vllm/lora/ops/torch_ops/lora_ops.py` no longer indexes its weights with one row a token.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Replace the operators; vLLM calls this in each of its processes."""
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for operator in (bgmv_shrink, bgmv_expand, bgmv_expand_slice):
        setattr(lora_ops, operator.__name__, operator)  # the sgmv operators of this module call these by name
        setattr(punica_cpu, operator.__name__, operator)


def bgmv_shrink(inputs: Any, lora_b_weights: Any, output_tensor: Any, lora_indices_tensor: Any, scaling: float = 1.0) -> None:
    """`output[:, :r] = scaling · inputs · Aᵀ`; inputs [tokens, in], weights [slots, (1,) r, in], indices [tokens]."""
    product = grouped_linear(inputs, lora_b_weights, lora_indices_tensor, output_tensor.dtype)
    output_tensor[:, : product.shape[1]] = scaling * product


def bgmv_expand(inputs: Any, lora_b_weights: Any, output_tensor: Any, lora_indices_tensor: Any, add_inputs: bool = True) -> None:
    """`output[:, :out] (+)= inputs · Bᵀ`; inputs [tokens, r], weights [slots, (1,) out, r], indices [tokens]."""
    width = min(output_tensor.shape[1], lora_b_weights.shape[-2])
    bgmv_expand_slice(inputs, lora_b_weights, output_tensor, lora_indices_tensor, 0, width, add_inputs)


def bgmv_expand_slice(
    inputs: Any,
    lora_b_weights: Any,
    output_tensor: Any,
    lora_indices_tensor: Any,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """As `bgmv_expand`, into the columns from `slice_offset` on: one of several projections that vLLM has fused."""
    product = grouped_linear(inputs, lora_b_weights, lora_indices_tensor, output_tensor.dtype)
    target = output_tensor[: product.shape[0], slice_offset : slice_offset + slice_size]
    if add_inputs:
        target += product[:, :slice_size]
    else:
        target.copy_(product[:, :slice_size])


def grouped_linear(inputs: Any, weights: Any, indices: Any, dtype: Any) -> Any:
    """Each row of `inputs` [tokens, in] times the matrix of its slot, in `dtype`; zeros for index -1. Returns [tokens, out]."""
    import torch

    if weights.dim() == 4:
        weights = weights.squeeze(dim=1)
    slots = torch.unique(indices).tolist()
    inputs = inputs.to(dtype)
    if len(slots) == 1 and slots[0] >= 0:
        return torch.nn.functional.linear(inputs, weights[slots[0]].to(dtype))
    output = inputs.new_zeros(inputs.shape[0], weights.shape[-2])
    for slot in slots:
        if slot >= 0:
            rows = indices == slot
            output[rows] = torch.nn.functional.linear(inputs[rows], weights[slot].to(dtype))
    return output
