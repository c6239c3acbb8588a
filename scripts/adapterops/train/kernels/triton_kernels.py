"""The Triton half of `elementwise`; imported only where a tensor is on a GPU."""

# mypy: disable-error-code=no-untyped-def
# Arguments of a Triton kernel have no types of Python: pointers and numbers of the GPU.

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024


@triton.jit
def _silu_mul(gate, up, out, count, block: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    g = tl.load(gate + at, mask=inside).to(tl.float32)
    u = tl.load(up + at, mask=inside).to(tl.float32)
    tl.store(out + at, g * tl.sigmoid(g) * u, mask=inside)


@triton.jit
def _silu_mul_backward(gate, up, gradient, gate_gradient, up_gradient, count, block: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    g = tl.load(gate + at, mask=inside).to(tl.float32)
    u = tl.load(up + at, mask=inside).to(tl.float32)
    d = tl.load(gradient + at, mask=inside).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    tl.store(gate_gradient + at, d * u * sigmoid * (1 + g * (1 - sigmoid)), mask=inside)
    tl.store(up_gradient + at, d * g * sigmoid, mask=inside)


@triton.jit
def _drop_quarter(source, target, at, count, chance, share, scale, add: tl.constexpr):
    inside = at < count
    value = tl.where(chance >= share, tl.load(source + at, mask=inside).to(tl.float32) * scale, 0.0)
    if add:
        value += tl.load(target + at, mask=inside).to(tl.float32)
    tl.store(target + at, value, mask=inside)


@triton.jit(do_not_specialize=["seed"])
def _drop(source, target, count, share, scale, seed, add: tl.constexpr, block: tl.constexpr):
    # One Philox call makes four numbers; seven rounds pass BigCrush (Salmon et al., SC'11,
    # "Parallel random numbers: as easy as 1, 2, 3").
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, block)
    first, second, third, fourth = tl.rand4x(seed, program * block + lane, n_rounds=7)
    at = program * block * 4 + lane
    _drop_quarter(source, target, at, count, first, share, scale, add)
    _drop_quarter(source, target, at + block, count, second, share, scale, add)
    _drop_quarter(source, target, at + 2 * block, count, third, share, scale, add)
    _drop_quarter(source, target, at + 3 * block, count, fourth, share, scale, add)


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """See `elementwise.silu_mul`."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    _silu_mul[(triton.cdiv(gate.numel(), _BLOCK),)](gate, up, out, gate.numel(), block=_BLOCK)
    return out


def silu_mul_backward(
    gate: torch.Tensor, up: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `elementwise.silu_mul_backward`."""
    gate, up, gradient = gate.contiguous(), up.contiguous(), gradient.contiguous()
    gradients = torch.empty_like(gate), torch.empty_like(up)
    _silu_mul_backward[(triton.cdiv(gate.numel(), _BLOCK),)](
        gate, up, gradient, *gradients, gate.numel(), block=_BLOCK
    )
    return gradients


def dropout(values: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """See `elementwise.dropout`."""
    values = values.contiguous()
    out = torch.empty_like(values)
    _launch(values, out, share, seed, add=False)
    return out


def add_dropped_(
    total: torch.Tensor, values: torch.Tensor, share: float, seed: int
) -> torch.Tensor:
    """See `elementwise.add_dropped_`; `total` must be contiguous."""
    if not total.is_contiguous():
        raise ValueError("a copy of `total` would be written to")
    _launch(values.contiguous(), total, share, seed, add=True)
    return total


def _launch(
    source: torch.Tensor, target: torch.Tensor, share: float, seed: int, *, add: bool
) -> None:
    blocks = triton.cdiv(source.numel(), 4 * _BLOCK)
    _drop[(blocks,)](
        source, target, source.numel(), share, 1 / (1 - share), seed, add=add, block=_BLOCK
    )
