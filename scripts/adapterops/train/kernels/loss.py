"""Cross-entropy of the supervised tokens alone, without the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch

# Elements of the largest logits tensor: 1 GiB in float32.
_CHUNK = 2**28


def answer_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, kernel: str
) -> torch.Tensor:
    """Summed negative log-likelihood.

    Args:
        hidden: last hidden states where a supervised token is predicted, [tokens, hidden size].
        weight: the frozen LM head, [vocabulary, hidden size].
        targets: the supervised tokens, [tokens].
        kernel: `plain` projects all at once, `chunked` piece by piece, `liger` piece by piece in
            Triton.

    Returns:
        A scalar in nats.
    """
    if kernel == "chunked":
        total: torch.Tensor = _chunked_loss(hidden, weight, targets)
        return total
    if kernel == "liger":
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger_loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        return torch.as_tensor(liger_loss(weight, hidden, targets))
    logits = torch.nn.functional.linear(hidden, weight).float()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradient in the forward pass: no logits are kept or computed twice."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = max(1, _CHUNK // weight.shape[0])
        for start in range(0, len(hidden), size):
            part, wanted = hidden[start : start + size], targets[start : start + size, None]
            logits = (part @ weight.T).float()
            normalisers = logits.logsumexp(dim=1, keepdim=True)
            total += (normalisers - logits.gather(1, wanted)).sum()
            if gradient is not None:
                # d loss / d logits = softmax - one-hot
                probabilities = logits.sub_(normalisers).exp_()
                probabilities.scatter_add_(1, wanted, torch.full_like(normalisers, -1.0))
                torch.mm(probabilities.to(weight.dtype), weight, out=gradient[start : start + size])
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        # In float32 first: the factor is 1 / tokens, and the product is what is rounded.
        gradient = (ctx.gradient * gradients[0]).to(ctx.gradient.dtype)
        ctx.gradient = None
        return gradient, None, None


# PyTorch gives `apply` no types (torch 2.13).
_chunked_loss: Any = _ChunkedLoss.apply


def score_answers_only(network: Any, kernel: str) -> None:
    """Make a causal language model return the summed loss of a batch of `packing.Collator`.

    It has to happen inside `forward`: DistributedDataParallel, FSDP and DeepSpeed see only what
    passes through it.
    """
    original = network.forward

    def forward(
        *arguments: Any,
        positions: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        if positions is None or targets is None:
            return original(*arguments, **inputs)
        given = {name: value for name, value in inputs.items() if value is not None}
        hidden = network.model(*arguments, **given, use_cache=False).last_hidden_state
        return answer_loss(hidden.flatten(0, 1)[positions], network.lm_head.weight, targets, kernel)

    network.forward = forward
