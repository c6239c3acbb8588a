"""How much GPU memory a training needs, from the shape of the model: nothing is loaded to find out.

Every term is a tensor that lives at the peak: in the backward pass, when everything that the
forward pass kept is still there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapterops.shapes.recipe import Lora, Quantization, Training

_BF16, _FP32 = 2, 4
# NF4: half a byte a weight. Its constants: one float32 for 64 weights, or, quantised again, one
# byte and a float32 for 256 of those.
_NF4 = 0.5
_CONSTANTS = {False: 4 / 64, True: 1 / 64 + 4 / (64 * 256)}
# State of the optimiser, bytes a trained parameter: two moments, in bf16 like the parameter or in 8
# bits. Paged, they are in memory that the driver moves to the host when something else needs the
# room: they never add to the peak.
_OPTIMISER = {
    "adamw_torch": 2 * _BF16,
    "adamw_torch_fused": 2 * _BF16,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 0,
    "paged_adamw_32bit": 0,
}
# CUDA context, cuBLAS workspace and kernels of torch, bitsandbytes and Triton: seen by nvidia-smi,
# not by torch.
CONTEXT_BYTES = 0.7e9


@dataclass(frozen=True)
class Shape:
    """Dimensions of a decoder; the names are those of a Hugging Face `config.json`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From the content of a `config.json`."""
        return cls(
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            head_dim=config.get("head_dim")
            or config["hidden_size"] // config["num_attention_heads"],
            vocab_size=config["vocab_size"],
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Input and output width of each projection of a layer."""
        query = self.num_attention_heads * self.head_dim
        key = self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (self.hidden_size, query),
            "k_proj": (self.hidden_size, key),
            "v_proj": (self.hidden_size, key),
            "o_proj": (query, self.hidden_size),
            "gate_proj": (self.hidden_size, self.intermediate_size),
            "up_proj": (self.hidden_size, self.intermediate_size),
            "down_proj": (self.intermediate_size, self.hidden_size),
        }

    @property
    def linear_parameters(self) -> int:
        """Weights in the projections of all layers: what is quantised."""
        return self.num_hidden_layers * sum(
            inputs * outputs for inputs, outputs in self.projections.values()
        )

    @property
    def passed_parameters(self) -> int:
        """Weights that a token is multiplied with: projections and LM head, not embeddings."""
        return self.linear_parameters + self.vocab_size * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """Weights of embeddings and LM head, which stay in bf16."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    def lora_parameters(self, lora: Lora) -> int:
        """Trained parameters: r × (in + out) for each projection of the recipe's `lora`."""
        wide = sum(sum(self.projections[name]) for name in lora["target_modules"])
        return self.trained_layers(lora) * lora["r"] * wide

    def trained_layers(self, lora: Lora) -> int:
        """How many layers get LoRA: all, or the recipe's `last_layers`."""
        return lora.get("last_layers", self.num_hidden_layers)


@dataclass(frozen=True)
class Estimate:
    """Predicted bytes on one GPU, by what they hold."""

    weights: float
    quantisation_constants: float
    embeddings: float
    lora: float
    gradients: float
    optimiser: float
    activations: float
    working: float
    logits: float
    staging: float
    forward: float
    pieces: int = 1

    @property
    def loading(self) -> float:
        """Peak while the base model is loaded: all of it, and one tensor on its way to NF4.

        One, because transformers 5.19 reads synchronously where it quantises (5.0 read ahead, and
        filled the GPU with bf16: https://github.com/huggingface/transformers/issues/43032). On one
        GPU it is never the largest of the three: a step holds all of this too. FSDP and ZeRO stage
        3 have each process load the whole, and cut it then (seen on two H200 GPUs, 2026-11-29).
        """
        return (
            self.weights + self.quantisation_constants + self.embeddings
        ) * self.pieces + self.staging

    @property
    def training(self) -> float:
        """Peak of a training step; of the last layer's activations and the logits one is there."""
        held = (
            self.weights
            + self.quantisation_constants
            + self.embeddings
            + self.lora
            + self.gradients
            + self.optimiser
        )
        return held + self.activations + max(self.working, self.logits)

    @property
    def evaluation(self) -> float:
        """Peak of a forward pass during a training, whose optimiser's state is still there."""
        held = (
            self.weights
            + self.quantisation_constants
            + self.embeddings
            + self.lora
            + self.optimiser
        )
        return held + max(self.forward, self.logits)


def estimate(
    shape: Shape,
    quantization: Quantization,
    lora: Lora,
    training: Training,
    tokens: int,
    supervised: int | None = None,
    pieces: int = 1,
    *,
    float32_copies: bool = False,
) -> Estimate:
    """Memory of training with the recipe's settings.

    Args:
        shape: of the base model.
        quantization: the recipe's section.
        lora: the recipe's section.
        training: the recipe's section.
        tokens: of the largest micro-batch, padding counted.
        supervised: of these, those with a loss; None counts all.
        pieces: over how many GPUs FSDP or ZeRO stage 3 lays the network. Each gathers the layer it
            is at, and the next one meanwhile.
        float32_copies: of benchmarks and in no recipe: what peft's
            `prepare_model_for_kbit_training` and a loss over all logits at once cost.
    """
    stored = _FP32 if float32_copies else _BF16  # bytes a weight that is not quantised
    constants = shape.linear_parameters * _CONSTANTS[quantization["double_quant"]]
    dequantised = shape.linear_parameters * _BF16 if training.get("keep_dequantized") else 0
    parameters = shape.lora_parameters(lora)
    working = _backward_bytes(shape, lora, training, tokens)
    forward = _forward_bytes(shape, training, tokens)
    if pieces > 1:
        gathered = _gathered_bytes(shape, quantization, stored)
        working, forward = working + gathered, forward + gathered
    supervised = tokens if supervised is None else supervised
    return Estimate(
        weights=(shape.linear_parameters * _NF4 + dequantised) / pieces,
        quantisation_constants=constants / pieces,
        embeddings=shape.embedding_parameters * stored / pieces,
        lora=parameters * stored / pieces,
        gradients=parameters * stored / pieces,
        optimiser=parameters * _OPTIMISER[training["optim"]] / pieces,
        activations=_kept_bytes(shape, lora, training, stored) * tokens,
        working=working,
        logits=_logits(shape, training, supervised, float32_copies=float32_copies),
        # The widest projection in bf16, and its constants before they are quantised themselves.
        staging=_widest_bytes(shape)
        + shape.hidden_size * shape.intermediate_size * _CONSTANTS[False],
        forward=forward,
        pieces=pieces,
    )


def _widest_bytes(shape: Shape) -> int:
    """The widest projection, dequantised to bf16."""
    return shape.hidden_size * shape.intermediate_size * _BF16


def _kept_bytes(shape: Shape, lora: Lora, training: Training, stored: int) -> float:
    """What all layers keep of a token for the backward pass; below the trained ones, nothing."""
    hidden = shape.hidden_size * stored  # embeddings in float32 make the residual stream float32
    checkpointed = training["gradient_checkpointing"] is True
    layer = hidden if checkpointed else layer_activations(shape, lora, training)
    return shape.trained_layers(lora) * layer + 3 * hidden


def _backward_bytes(shape: Shape, lora: Lora, training: Training, tokens: int) -> float:
    """What is there for a moment in the backward pass, whose peak is in an MLP.

    Fused, the gradients of product, gate and up are there at once. Layer by layer, when those of
    gate and up are made, what the down projection kept is gone: the peak is at its own, with the
    product's gradient through weight and LoRA.
    """
    inner = 3 if training["fused_lora"] else 2
    wide = inner * shape.intermediate_size + 4 * shape.hidden_size
    working: float = wide * _BF16 * tokens + 2 * _widest_bytes(shape)
    if training["gradient_checkpointing"] is True:
        working += layer_activations(shape, lora, training) * tokens
    elif training["gradient_checkpointing"] == "selective":
        working += 2 * shape.intermediate_size * _BF16 * tokens
    return working + _mask_bytes(training, tokens)


def _forward_bytes(shape: Shape, training: Training, tokens: int) -> float:
    """What is there at once in a pass that keeps nothing.

    Residual stream and norm; gate, up and product of one layer; and a projection in bf16, be it
    dequantised or, in the comparison with the weights that are served, read from the files.
    """
    wide = 3 * shape.intermediate_size + 4 * shape.hidden_size
    return wide * _BF16 * tokens + _widest_bytes(shape) + _mask_bytes(training, tokens)


def _mask_bytes(training: Training, tokens: int) -> int:
    """The mask of packed rows, where the attention needs one."""
    masked = training["packing"] and training["attn_implementation"] in {"sdpa", "eager"}
    return tokens**2 * _BF16 if masked else 0


def _gathered_bytes(shape: Shape, quantization: Quantization, stored: int) -> float:
    """What a GPU gathers of a network in pieces: two layers, or in TRL's loss the whole LM head."""
    weight = _NF4 + _CONSTANTS[quantization["double_quant"]]
    layers = 2 * shape.linear_parameters / shape.num_hidden_layers * weight
    return max(layers, shape.vocab_size * shape.hidden_size * stored)


def layer_activations(shape: Shape, lora: Lora, training: Training) -> float:
    """Bytes a token that one layer keeps for its backward pass."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    query = shape.num_attention_heads * shape.head_dim
    key = shape.num_key_value_heads * shape.head_dim
    # Inputs of both norms; query, key, value and the output of the attention, with its float32
    # normaliser a head.
    kept: float = (2 * hidden + 2 * query + 2 * key) * _BF16 + shape.num_attention_heads * _FP32
    if not training["liger"]:
        kept += 2 * hidden * (_FP32 + _BF16)  # the norms' float32 copies and normalised values
    if training["fused_lora"]:
        # Inputs of the attention's and of the MLP's projections, once each; the output projection's
        # is the attention's output.
        kept += (2 * hidden + (query if lora["dropout"] else 0)) * _BF16 + 7 * lora["r"] * _BF16
        recomputed = training["gradient_checkpointing"] == "selective"
        return kept if recomputed else kept + 2 * inner * _BF16
    kept += 2 * inner * _BF16  # gate and up
    if not training["liger"]:
        kept += 2 * inner * _BF16  # SiLU(gate) and the product
    for name in lora["target_modules"]:
        width = shape.projections[name][0]
        # peft keeps a dropped-out copy of each projection's input and its mask; without dropout
        # those of the attention share one input.
        if lora["dropout"]:
            kept += width * (_BF16 + 1)
        else:
            kept += width * _BF16 // (3 if name in {"q_proj", "k_proj", "v_proj"} else 1)
        kept += lora["r"] * _BF16
    return kept


def _logits(shape: Shape, training: Training, supervised: int, *, float32_copies: bool) -> float:
    """Bytes of `loss.answer_loss`: logits of a chunk in bf16 and float32, and their gradient."""
    if float32_copies:  # log-probabilities, their gradient, and that of the logits
        return 3 * supervised * shape.vocab_size * _FP32
    gradient = supervised * shape.hidden_size * _BF16
    if training["liger"]:
        # Liger's chunks hold hidden size × tokens / vocabulary rows, rounded up to a power of two.
        wanted = supervised / max(1, -(-shape.vocab_size // shape.hidden_size))
        rows = 1 << max(0, int(wanted - 1).bit_length())
        return rows * shape.vocab_size * (_BF16 + _FP32) + gradient
    rows = min(supervised, max(1, 2**28 // shape.vocab_size))
    return rows * shape.vocab_size * (_BF16 + 2 * _FP32) + gradient
