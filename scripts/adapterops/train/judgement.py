"""Whether a trained adapter may be written or used again: recipe settings outside of its key."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from adapterops.errors import RejectedError
from adapterops.shapes.train_manifest import TrainManifest
from adapterops.specs.recipe import Recipe


class Losses(TypedDict):
    """Mean losses in nats a supervised token, of adapter and base model on two kinds of weights."""

    adapter_nf4: float
    adapter_bf16: float
    base_nf4: float
    base_bf16: float


def judge(losses: Losses, limit: float, where: Path) -> None:
    """Refuse an adapter that loses too much on the weights it is served on.

    Args:
        losses: what `quantisation.compare` returned.
        limit: by how many nats its loss may be higher there than on NF4.
        where: the recipe, for the message.

    Raises:
        RejectedError: it is higher by more, or not a number.
    """
    served, trained = losses["adapter_bf16"], losses["adapter_nf4"]
    if not served - trained <= limit:
        raise RejectedError(
            "the adapter does not carry over to the bf16 weights that are served: its loss is"
            f" {trained:.4f} nats on the NF4 weights it was trained on and {served:.4f} there,"
            f" {served - trained:+.4f} where quantization.max_loss_increase allows {limit} (the"
            f" base model alone: {losses['base_nf4']:.4f} and {losses['base_bf16']:.4f}). It is not"
            f" written or used. In {where}: lower training.learning_rate or num_train_epochs, or"
            " raise max_loss_increase, which trains nothing anew, and leave it to the gate, which"
            " judges what is served."
        )


def judge_again(manifest: TrainManifest, recipe: Recipe) -> None:
    """Hold an adapter that was trained before to the recipe of today.

    Args:
        manifest: its train manifest, of the recipe's training key.
        recipe: today's.

    Raises:
        RejectedError: it would not be written today.
    """
    if quantisation := manifest["run"].get("quantisation"):
        judge(quantisation, recipe.quantization["max_loss_increase"], recipe.path)
    cut = manifest["tokens"]["truncated_rows"]
    if cut and recipe.training["on_truncation"] == "error":
        raise RejectedError(
            f"the adapter of this training key was trained with {cut} rows cut at max_length, and"
            f" {recipe.path} has training.on_truncation error. Shorten these rows, raise"
            f" training.max_length {recipe.training['max_length']}, or set on_truncation: allow."
        )
