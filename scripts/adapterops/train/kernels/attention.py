"""PyTorch's variable-length flash attention for packed rows: no mask, nothing to install."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

NAME = "varlen"


def register() -> None:
    """Make `attn_implementation: varlen` known to transformers, which builds no mask for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, varlen_attention)


@functools.cache
def _kernel() -> Callable[..., Any]:
    """The kernel: causal, and with fewer key heads than query heads, as this PyTorch is told so."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in known else {}
    options |= {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    return functools.partial(varlen_attn, **options)


def varlen_attention(
    module: torch.nn.Module,  # transformers calls every attention with these  # noqa: ARG001
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention in which every row sees itself alone.

    Args:
        module: unused.
        query: [1, heads, tokens, head size].
        key: [1, key heads, tokens, head size].
        value: like `key`.
        attention_mask: unused; the borders say it all.
        scaling: factor of the scores; None is 1 / √head size.
        dropout: must be 0.
        sliding_window: must be None.
        softcap: must be None.
        cu_seq_lens_q: where rows begin, and the end; int32, [rows + 1].
        max_length_q: tokens of the longest row.

    Returns:
        [1, tokens, heads, head size], and no weights.

    Raises:
        NotImplementedError: no borders, or an option that the kernel does not have; silence would
            train another model.
    """
    if cu_seq_lens_q is None or max_length_q is None or query.shape[0] != 1:
        raise NotImplementedError(
            "attn_implementation varlen takes packed rows only. Set training.packing: true."
        )
    if dropout or sliding_window is not None or softcap is not None:
        raise NotImplementedError(
            "attn_implementation varlen has neither dropout nor sliding windows nor soft caps. Use"
            " flex_attention."
        )
    by_token = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    borders = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    return _kernel()(*by_token, *borders, scale=scaling)[None], None
