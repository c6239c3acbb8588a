"""An adapter and its base model as one bf16 model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterops.basemodels.materialize import base_model_directory, load_tokenizer
from adapterops.documents import new_directory, read_json
from adapterops.errors import RejectedError, UsageError
from adapterops.shapes.train_manifest import TrainManifest
from adapterops.specs.base_model import find_base_model
from adapterops.store.releases import adapter_digest

if TYPE_CHECKING:
    import torch

_PROBES = (
    "Hello! How can I help you today?",
    "주문한 상품을 환불받고 싶어요. 어떻게 하나요?",
    '{"order": 1234, "item": "chair", "quantity": 2}',
    "The quick brown fox jumps over the lazy dog, and then it rests.",
)


@dataclass(frozen=True)
class Difference:
    """How the merged model differs from adapter on base, in nats of log-probability.

    Args:
        mean: over all tokens and words of the vocabulary, weighted by probability.
        largest: the largest such mean of one token.
        agreement: share of tokens whose likeliest successor is the same.
        tokens: how many were compared.
    """

    mean: float
    largest: float
    agreement: float
    tokens: int


def merge(adapter: Path, output: Path, tolerance: float) -> Difference:
    """Write the merged model to `output`, as a whole or not at all.

    Raises:
        UsageError: not an intact adapter directory, trained on another revision of the base model,
            or `output` holds something else.
        RejectedError: the merged model differs by more than `tolerance`.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    manifest = read_json(adapter / "train_manifest.json", TrainManifest)
    if adapter_digest(adapter) != manifest["adapter"]["digest"]:
        raise UsageError(
            f"{adapter}: the files are not those that its train_manifest.json names. Train it"
            " again."
        )
    empty = output.is_dir() and not any(output.iterdir())
    if output.exists() and not empty and not (output / "config.json").is_file():
        raise UsageError(
            f"--output {output} exists and is not a model directory. Choose another path or"
            " remove it."
        )
    base_model = find_base_model(manifest["base_model"]["name"], str(adapter))
    if base_model.revision != manifest["base_model"]["revision"]:
        raise UsageError(
            f"{adapter}: trained on {base_model.name} at revision"
            f" {manifest['base_model']['revision']}, and configs/base_models.yaml has"
            f" {base_model.revision} now. Train it again, or merge it with the repository as it was"
            " then."
        )
    tokenizer = load_tokenizer(base_model)
    # In float32: bf16 arithmetic moves log-probabilities four times as far as merging does.
    base = AutoModelForCausalLM.from_pretrained(
        base_model_directory(base_model), dtype=torch.float32, trust_remote_code=False
    )
    model = PeftModel.from_pretrained(base, adapter).eval()
    apart = _log_probabilities(model, tokenizer)
    merged = model.merge_and_unload(safe_merge=True).to(torch.bfloat16)
    difference = _compare(apart, _log_probabilities(merged.float(), tokenizer))
    if not difference.mean <= tolerance:  # also if it is not a number
        raise RejectedError(
            f"the merged model differs from adapter on base by {difference.mean:.4f} nats on"
            f" average, more than --tolerance {tolerance}. Nothing is written; serve the adapter"
            " apart."
        )
    with new_directory(output) as staging:
        merged.to(torch.bfloat16).save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        (staging / "chat_template.jinja").write_text(base_model.chat_template(), encoding="utf-8")
    return difference


def _log_probabilities(model: Any, tokenizer: Any) -> list[torch.Tensor]:
    import torch

    found = []
    for text in _PROBES:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            found.append(model(input_ids=ids).logits[0].float().log_softmax(-1))
    return found


def _compare(first: list[torch.Tensor], second: list[torch.Tensor]) -> Difference:
    import torch

    one, two = torch.cat(first), torch.cat(second)
    by_token = (one.exp() * (one - two).abs()).sum(-1)
    agreement = (one.argmax(-1) == two.argmax(-1)).float().mean()
    return Difference(float(by_token.mean()), float(by_token.max()), float(agreement), len(one))
