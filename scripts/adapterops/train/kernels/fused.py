"""LoRA layers as few large matrix products, which keep little for the backward pass.

peft runs a projection as seven element-wise passes over its output and keeps a dropped-out copy of
its input with a mask; here the update is added by the matrix product itself, projections that read
the same input share one dropout, whose mask is made again from a seed, and the product of
SiLU(gate) × up is computed twice instead of kept. For dropout 0 the mathematics is peft's;
otherwise masks differ from peft's, whose projections of the same input draw one each.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import bitsandbytes
import torch
from peft.tuners.lora import LoraLayer

from adapterops.train.kernels.elementwise import add_dropped_, dropout, silu_mul, silu_mul_backward

_ADAPTER = "default"
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class _Pass:
    """What one call of a group of projections with the same input is about.

    Args:
        weights: for each, how to get its frozen [out, in] weight.
        scales: for each, alpha / r.
        share: dropout of the input of LoRA.
        seed: of the dropout mask.
    """

    weights: tuple[Callable[[], torch.Tensor], ...]
    scales: tuple[float, ...]
    share: float
    seed: int


def fuse(model: Any, *, recompute_mlp: bool = False, keep_dequantized: bool = False) -> int:
    """Replace the forward passes of a peft model's LoRA projections, grouped by their input.

    Args:
        model: a peft model with one adapter.
        recompute_mlp: keep only the input of each MLP and compute its two large projections again
            (selective checkpointing).
        keep_dequantized: hold the frozen weights in bf16 too, instead of dequantising them in every
            pass.

    Returns:
        How many projections were replaced.
    """
    done: set[Any] = set()
    for module in list(model.modules()):
        trio = [getattr(module, name, None) for name in _MLP]
        if all(_fusable(layer) for layer in trio) and isinstance(
            getattr(module, "act_fn", None), torch.nn.SiLU | _silu_classes()
        ):
            sources = tuple(_weight_source(layer, keep_dequantized) for layer in trio)
            _patch(module, _mlp_forward(module, trio, sources, recompute_mlp))
            done.update(trio)
        trio = [getattr(module, name, None) for name in _ATTENTION]
        if all(_fusable(layer) for layer in trio):
            _patch_siblings(trio, tuple(_weight_source(layer, keep_dequantized) for layer in trio))
            done.update(trio)
    for module in list(model.modules()):
        if _fusable(module) and module not in done:
            _patch_siblings([module], (_weight_source(module, keep_dequantized),))
            done.add(module)
    if keep_dequantized:
        wrapped = {module.get_base_layer() for module in done}
        for module in model.modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit) and module not in wrapped:
                _patch(module, _kept_forward(_dequantized(module)))
    return len(done)


def _kept_forward(weight: torch.Tensor) -> Callable[..., Any]:
    """The pass of a layer without LoRA."""
    return lambda module, x: torch.nn.functional.linear(x, weight, module.bias)


def _dequantized(base: Any) -> torch.Tensor:
    weight: torch.Tensor = bitsandbytes.functional.dequantize_4bit(
        base.weight.data, base.weight.quant_state
    )
    return weight if base.compute_dtype is None else weight.to(base.compute_dtype)


def _silu_classes() -> type:
    from transformers.activations import SiLUActivation

    return SiLUActivation  # type: ignore[no-any-return]


def _fusable(layer: Any) -> bool:
    if not isinstance(layer, LoraLayer) or list(layer.lora_A) != [_ADAPTER] or layer.lora_variant:
        return False
    base = layer.get_base_layer()
    return isinstance(base, torch.nn.Linear) and base.bias is None


def _weight_source(layer: Any, keep: bool) -> Callable[[], torch.Tensor]:
    """How to get the layer's frozen weight in the compute type; NF4 is dequantised or kept."""
    base = layer.get_base_layer()
    if not isinstance(base, bitsandbytes.nn.Linear4bit):
        return lambda: base.weight

    kept = _dequantized(base) if keep else None

    def current() -> torch.Tensor:
        if exact := getattr(base, "exact_weight", None):  # see quantisation.compare
            return exact()  # type: ignore[no-any-return]
        return _dequantized(base) if kept is None else kept

    return current


def _patch(module: torch.nn.Module, forward: Callable[..., Any]) -> None:
    module.forward = types.MethodType(forward, module)


def _pass(
    layers: Sequence[Any], sources: tuple[Callable[[], torch.Tensor], ...]
) -> tuple[_Pass, list[torch.Tensor]]:
    """The settings of one call, and the A and B matrices that it trains, A first."""
    drop = layers[0].lora_dropout[_ADAPTER]
    share = float(drop.p) if isinstance(drop, torch.nn.Dropout) and drop.training else 0.0
    # From the host's generator, whose state checkpointing restores: a recomputed pass draws the
    # same seed.
    seed = int(torch.randint(2**31 - 1, ())) if share else 0
    matrices = [layer.lora_A[_ADAPTER].weight for layer in layers] + [
        layer.lora_B[_ADAPTER].weight for layer in layers
    ]
    return _Pass(sources, tuple(layer.scaling[_ADAPTER] for layer in layers), share, seed), matrices


def _plain(layers: Sequence[Any]) -> bool:
    return any(layer.disable_adapters or layer.merged for layer in layers)


def _patch_siblings(layers: Sequence[Any], sources: tuple[Callable[[], torch.Tensor], ...]) -> None:
    """The first projection computes all of the group; the others find theirs done.

    They are called with the same tensor, by which they know.
    """
    pending: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def forward_of(number: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(_module: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            if _plain(layers):
                return original(x, *arguments, **options)
            found = pending.pop(number, None)
            if found is None or found[0] is not x:
                settings, matrices = _pass(layers, sources)
                outputs = _projections(settings, x, *matrices)
                pending.update({place: (x, output) for place, output in enumerate(outputs)})
                found = pending.pop(number)
            return found[1]

        return forward

    for number, layer in enumerate(layers):
        _patch(layer, forward_of(number, layer.forward))


def _mlp_forward(
    module: Any,
    layers: Sequence[Any],
    sources: tuple[Callable[[], torch.Tensor], ...],
    recompute: bool,
) -> Callable[..., Any]:
    original = module.forward

    def forward(_module: Any, x: torch.Tensor) -> Any:
        if _plain(layers):
            return original(x)
        inner, inner_matrices = _pass(layers[:2], sources[:2])
        outer, outer_matrices = _pass(layers[2:], sources[2:])
        return _mlp(inner, outer, recompute, x, *inner_matrices, *outer_matrices)

    return forward


def _split(
    matrices: Sequence[torch.Tensor], dtype: torch.dtype
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The A matrices one below the other, [projections × r, in], and the list of B matrices."""
    typed, half = [matrix.to(dtype) for matrix in matrices], len(matrices) // 2
    return torch.cat(typed[:half]), typed[half:]


def _project(
    settings: _Pass, x: torch.Tensor, dropped: torch.Tensor, matrices: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Outputs [tokens, out], and the input times all A matrices, [tokens, projections × r]."""
    down, ups = _split(matrices, x.dtype)
    low = dropped @ down.T
    outputs = []
    for weight, scale, up, part in zip(
        settings.weights, settings.scales, ups, low.chunk(len(ups), dim=1), strict=True
    ):
        outputs.append((x @ weight().T).addmm_(part, up.T, alpha=scale))
    return outputs, low


def _project_backward(
    settings: _Pass,
    gradients: Sequence[torch.Tensor],
    dropped: torch.Tensor,
    low: torch.Tensor,
    matrices: Sequence[torch.Tensor],
    *,
    needs_input: bool,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """Gradient of the input (None if not needed), and those of the matrices in their types."""
    down, ups = _split(matrices, dropped.dtype)
    parts = low.chunk(len(ups), dim=1)
    low_gradient = torch.cat(
        [
            (g @ up).mul_(scale)
            for g, up, scale in zip(gradients, ups, settings.scales, strict=True)
        ],
        dim=1,
    )
    half = len(matrices) // 2
    down_gradients = (low_gradient.T @ dropped).chunk(half)
    up_gradients = [
        (g.T @ part).mul_(scale)
        for g, part, scale in zip(gradients, parts, settings.scales, strict=True)
    ]
    trained = [
        gradient.to(matrix.dtype)
        for gradient, matrix in zip([*down_gradients, *up_gradients], matrices, strict=True)
    ]
    if not needs_input:
        return None, trained
    total: torch.Tensor | None = None
    for weight, gradient in zip(settings.weights, gradients, strict=True):
        total = gradient @ weight() if total is None else total.addmm_(gradient, weight())
    assert total is not None
    if settings.share:
        return add_dropped_(total, low_gradient @ down, settings.share, settings.seed), trained
    return total.addmm_(low_gradient, down), trained


class _Projections(torch.autograd.Function):
    """Projections of one input, which is kept once, dropped out, for the A matrices' gradients."""

    @staticmethod
    def forward(ctx: Any, settings: _Pass, x: torch.Tensor, *matrices: torch.Tensor) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        dropped = dropout(flat, settings.share, settings.seed)
        outputs, low = _project(settings, flat, dropped, matrices)
        ctx.save_for_backward(dropped, low, *matrices)
        ctx.settings, ctx.shape = settings, x.shape
        return tuple(output.view(*x.shape[:-1], -1) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        dropped, low, *matrices = ctx.saved_tensors
        flat = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        total, trained = _project_backward(
            ctx.settings, flat, dropped, low, matrices, needs_input=ctx.needs_input_grad[1]
        )
        return None, None if total is None else total.view(ctx.shape), *trained


class _Mlp(torch.autograd.Function):
    """down(SiLU(gate(x)) × up(x)). Keeps x, gate and up, or with `recompute` x alone."""

    @staticmethod
    def forward(
        ctx: Any,
        inner: _Pass,
        outer: _Pass,
        recompute: bool,
        x: torch.Tensor,
        *matrices: torch.Tensor,
    ) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        dropped = dropout(flat, inner.share, inner.seed)
        (gate, up), low = _project(inner, flat, dropped, matrices[:4])
        product = silu_mul(gate, up)
        (output,), outer_low = _project(
            outer, product, dropout(product, outer.share, outer.seed), matrices[4:]
        )
        if recompute:
            ctx.save_for_backward(flat, low, outer_low, *matrices)
        else:
            ctx.save_for_backward(dropped, low, outer_low, *matrices, gate, up)
        ctx.settings, ctx.recompute, ctx.shape = (inner, outer), recompute, x.shape
        return output.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        inner, outer = ctx.settings
        kept, low, outer_low, *rest = ctx.saved_tensors
        matrices = rest[:6]
        if ctx.recompute:
            dropped = dropout(kept, inner.share, inner.seed)
            (gate, up), _ = _project(inner, kept, dropped, matrices[:4])
        else:
            dropped, (gate, up) = kept, rest[6:]
        product = dropout(silu_mul(gate, up), outer.share, outer.seed)
        flat = gradients[0].reshape(-1, gradients[0].shape[-1])
        inside, outer_trained = _project_backward(
            outer, [flat], product, outer_low, matrices[4:], needs_input=True
        )
        assert inside is not None
        del product
        gate_gradient, up_gradient = silu_mul_backward(gate, up, inside)
        total, inner_trained = _project_backward(
            inner,
            [gate_gradient, up_gradient],
            dropped,
            low,
            matrices[:4],
            needs_input=ctx.needs_input_grad[3],
        )
        return (
            None,
            None,
            None,
            None if total is None else total.view(ctx.shape),
            *inner_trained,
            *outer_trained,
        )


# PyTorch gives `apply` no types (torch 2.13).
_projections: Any = _Projections.apply
_mlp: Any = _Mlp.apply
