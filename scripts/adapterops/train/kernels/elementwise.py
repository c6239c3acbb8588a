"""Element-wise steps of the fused layers: Triton on CUDA, PyTorch elsewhere.

Dropout keeps no mask: a seed makes the same mask again in the backward pass.
"""

from __future__ import annotations

import torch


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """SiLU(gate) × up (SwiGLU, arXiv:2002.05202)."""
    if gate.is_cuda:
        from adapterops.train.kernels import triton_kernels

        return triton_kernels.silu_mul(gate, up)
    return torch.nn.functional.silu(gate) * up


def silu_mul_backward(
    gate: torch.Tensor, up: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `silu_mul` with respect to `gate` and `up`."""
    if gate.is_cuda:
        from adapterops.train.kernels import triton_kernels

        return triton_kernels.silu_mul_backward(gate, up, gradient)
    gate_gradient = torch.ops.aten.silu_backward(gradient * up, gate)
    return gate_gradient, gradient * torch.nn.functional.silu(gate)


def dropout(values: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """`values` with a share of them zeroed and the rest scaled by 1 / (1 - share)."""
    if share == 0:
        return values
    if values.is_cuda:
        from adapterops.train.kernels import triton_kernels

        return triton_kernels.dropout(values, share, seed)
    return values * _mask(values, share, seed)


def add_dropped_(
    total: torch.Tensor, values: torch.Tensor, share: float, seed: int
) -> torch.Tensor:
    """Add `dropout(values, share, seed)` to `total` in place."""
    if total.is_cuda:
        from adapterops.train.kernels import triton_kernels

        return triton_kernels.add_dropped_(total, values, share, seed)
    return total.add_(values * _mask(values, share, seed))


def _mask(like: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    chance = torch.rand(like.shape, generator=generator, device=like.device)
    return (chance >= share).to(like.dtype) / (1 - share)
