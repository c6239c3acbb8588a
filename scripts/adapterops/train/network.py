"""The network that is trained: an NF4 base model, LoRA on its projections, a recipe's kernels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adapterops.cpu_number_format import cpu_dtype
from adapterops.errors import UsageError
from adapterops.shapes.recipe import Lora, Quantization
from adapterops.train.kernels import attention
from adapterops.train.kernels.loss import score_answers_only
from adapterops.train.labels import IGNORED, Row
from adapterops.train.packing import Collator, model_inputs
from adapterops.train.patches.bitsandbytes import keep_weights_unpacked

if TYPE_CHECKING:
    from peft import LoraConfig


# Attention is tried on a small network, and on rows of so many tokens. Flex attention has no kernel
# for heads of 64 and packs of 64 (torch 2.11 on a GPU).
_SMALL_PACK = 256
_SMALL_VOCABULARY = 128
_ROW = 24


def nf4(
    quantization: Quantization,
    compute_dtype: torch.dtype = torch.bfloat16,
    *,
    sharded: bool = False,
) -> Any:
    """The recipe's `quantization` as transformers wants it.

    With `sharded`, NF4 is stored as if it were of the compute type: FSDP cuts only parameters of
    one type, and would turn others to noise.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization["type"],
        bnb_4bit_use_double_quant=quantization["double_quant"],
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=compute_dtype if sharded else torch.uint8,
    )


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16, as recipes say; float32 on a CPU that would emulate it."""
    return torch.bfloat16 if device.type == "cuda" or cpu_dtype() == "bfloat16" else torch.float32


def load_base(
    directory: Path,
    quantization: Quantization,
    attn_implementation: str,
    device: torch.device,
    *,
    sharded: bool = False,
) -> Any:
    """A base model in NF4, all that is not quantised in the format that the device computes in.

    It lies on `device`, or, with `sharded`, where FSDP or DeepSpeed put its pieces.
    """
    from transformers import AutoModelForCausalLM

    attention.register()
    dtype = compute_dtype(device)
    return AutoModelForCausalLM.from_pretrained(
        directory,
        quantization_config=nf4(quantization, dtype, sharded=sharded),
        dtype=dtype,
        device_map=None if sharded else {"": device},
        attn_implementation=attn_implementation,
        trust_remote_code=False,
    )


def lora_config(lora: Lora, layers: int) -> LoraConfig:
    """The recipe's `lora` as peft wants it, for a network of that many layers."""
    from peft import LoraConfig

    last = lora.get("last_layers", layers)
    return LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=sorted(lora["target_modules"]),
        layers_to_transform=None if last == layers else list(range(layers - last, layers)),
        bias="none",
        task_type="CAUSAL_LM",
    )


def apply_kernels(
    model: Any,
    *,
    liger: bool,
    fused_lora: bool,
    selective_checkpointing: bool = False,
    keep_dequantized: bool = False,
    loss: str | None = None,
) -> None:
    """Give a peft model the loss over the answers alone, and the kernels that a recipe asks for.

    Args:
        model: a peft model with one adapter.
        liger: Liger's Triton kernels for norms, rotary embeddings and the loss.
        fused_lora: the LoRA layers of `adapterops.train.kernels.fused`.
        selective_checkpointing: recompute the projections of the MLPs; needs `fused_lora`.
        keep_dequantized: see `fused.fuse`.
        loss: kernel of `answer_loss`; None takes the one that fits the device.

    Raises:
        UsageError: Liger is asked for where it cannot run.
    """
    network = model.get_base_model()
    keep_weights_unpacked(network)
    if liger:
        _apply_liger(network)
    on_gpu = next(network.parameters()).is_cuda
    score_answers_only(network, loss or ("liger" if liger else "chunked" if on_gpu else "plain"))
    if fused_lora:
        from adapterops.train.kernels.fused import fuse

        fuse(model, recompute_mlp=selective_checkpointing, keep_dequantized=keep_dequantized)


def _apply_liger(network: Any) -> None:
    try:
        import liger_kernel.transformers  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"training.liger true: Liger cannot be used here ({error}). Install liger-kernel, or"
            " set it to false."
        ) from None
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(
        network,
        {
            "rope": True,
            "rms_norm": True,
            "swiglu": True,
            "geglu": True,
            "cross_entropy": False,  # the loss is ours
            "fused_linear_cross_entropy": False,
        },
    )


def try_attention(
    directory: Path, attn_implementation: str, device: torch.device, collate: Collator, where: Path
) -> None:
    """Try attention on two small layers of the base model's kind, before gigabytes are loaded.

    Args:
        directory: the base model's; only its configuration is read.
        attn_implementation: the recipe's.
        device: what will be trained on.
        collate: how rows come.
        where: the recipe, for messages.

    Raises:
        UsageError: the attention cannot be had here, or lets a row see the one before it: training
            would learn from context that serving never shows.
    """
    setting = f"{where}: training.attn_implementation {attn_implementation}"
    try:
        losses = _losses_beside_two_neighbours(directory, attn_implementation, device, collate)
    except (ImportError, NotImplementedError) as error:
        here = "a GPU" if device.type == "cuda" else "a CPU"
        others = (
            "varlen or flex_attention" if device.type == "cuda" and collate.capacity else "sdpa"
        )
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"{setting} cannot be used here, on {here}: {reason.rstrip('.')}. Set {others}."
        ) from None
    # Kernels may sum in another order; a row that is seen changes the loss by tenths.
    if abs(losses[0] - losses[1]) > 0.01:
        raise UsageError(
            f"{setting} lets packed rows see each other: the loss of a row changes from"
            f" {losses[0]:.3f} to {losses[1]:.3f} with its neighbour. Set packing: false, or"
            " another attention."
        )


def _losses_beside_two_neighbours(
    directory: Path, attn_implementation: str, device: torch.device, collate: Collator
) -> list[float]:
    """Loss in nats a token of one row, behind one row and behind another, with gradients."""
    network = _small_network(directory, attn_implementation, device)
    small = dataclasses.replace(collate, pad_token_id=0, capacity=collate.capacity and _SMALL_PACK)
    generator = torch.Generator().manual_seed(0)
    first, other, row = torch.randint(_SMALL_VOCABULARY, (3, _ROW), generator=generator).tolist()
    losses = []
    for neighbour in (first, other):
        rows = _packed_behind(neighbour, row) if collate.capacity else _beside(neighbour, row)
        loss = network(**model_inputs(small(rows), device)) / (_ROW - 1)
        loss.backward()
        losses.append(float(loss.detach()))
    return losses


def _packed_behind(neighbour: list[int], row: list[int]) -> list[Row]:
    labels = [IGNORED] * _ROW + row
    return [{"input_ids": neighbour + row, "labels": labels, "seq_lengths": [_ROW, _ROW]}]


def _beside(neighbour: list[int], row: list[int]) -> list[Row]:
    return [
        {"input_ids": neighbour, "labels": [IGNORED] * _ROW},
        {"input_ids": row, "labels": row},
    ]


def _small_network(directory: Path, attn_implementation: str, device: torch.device) -> Any:
    """Two layers of the base model's kind with random weights, which draw no global number.

    Heads stay as wide, and as many for a key head: kernels care for that. Weights are large, so
    that what is seen shows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    attention.register()
    config = AutoConfig.from_pretrained(directory)
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads or 1
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    config.num_attention_heads, config.num_key_value_heads = heads // key_heads, 1
    config.hidden_size = config.intermediate_size = 64
    config.num_hidden_layers, config.vocab_size = 2, _SMALL_VOCABULARY
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    config.initializer_range = 0.5
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[0], config.layer_types[-1]]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(
            config, dtype=compute_dtype(device), attn_implementation=attn_implementation
        ).to(device)
    score_answers_only(network, "plain")
    return network
