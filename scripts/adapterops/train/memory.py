"""How much GPU memory a training needs, from the shape of the model: nothing is loaded to find out.

Every term is a tensor that lives at the peak: in the backward pass, when everything that the
forward pass kept is still there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    def of(cls, config: dict[str, Any]) -> Shape:
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
        query, key = (
            self.num_attention_heads * self.head_dim,
            self.num_key_value_heads * self.head_dim,
        )
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
        """Weights that a token is multiplied with: the projections and the LM head, tied or not;
        embeddings are only looked up.
        """
        return self.linear_parameters + self.vocab_size * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """Weights of embeddings and LM head, which stay in bf16."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    def lora_parameters(self, lora: dict[str, Any]) -> int:
        """Trained parameters: r × (in + out) for each projection of the recipe's `lora`."""
        wide = sum(sum(self.projections[name]) for name in lora["target_modules"])
        return self.trained_layers(lora) * int(lora["r"]) * wide

    def trained_layers(self, lora: dict[str, Any]) -> int:
        """How many layers get LoRA: all, or the recipe's `last_layers`."""
        return int(lora.get("last_layers", self.num_hidden_layers))


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
        """Peak of a training step. Activations of the last layer and the logits are not there at
        once: the larger counts.
        """
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
        """Peak of a forward pass without gradients, during a training or after it: the optimiser's
        state is still there.
        """
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
    quantization: dict[str, Any],
    lora: dict[str, Any],
    training: dict[str, Any],
    tokens: int,
    supervised: int | None = None,
    pieces: int = 1,
) -> Estimate:
    """Memory of training with the recipe's settings.

    Args:
        shape: of the base model.
        quantization: the recipe's section.
        lora: the recipe's section.
        training: the recipe's section. `float32_copies` is of benchmarks and in no recipe: what
            peft's `prepare_model_for_kbit_training` and a loss over all logits at once cost.
        tokens: of the largest micro-batch, padding counted.
        supervised: of these, those with a loss; None counts all.
        pieces: over how many GPUs FSDP or ZeRO stage 3 lays the network. Each gathers the layer it
            is at, and the next one meanwhile.
    """
    parameters = shape.lora_parameters(lora)
    layer = layer_activations(shape, lora, training)
    copies = bool(training.get("float32_copies"))
    trained = _FP32 if copies else _BF16
    hidden = shape.hidden_size * trained  # embeddings in float32 make the residual stream float32
    # Below the first trained layer nothing is kept: no gradient goes there.
    kept = (
        shape.trained_layers(lora)
        * (hidden if training["gradient_checkpointing"] is True else layer)
        + 3 * hidden
    )
    widest = shape.hidden_size * shape.intermediate_size * _BF16  # a projection, dequantised
    # The backward pass of an MLP. Fused, the gradients of product, gate and up are there at once;
    # layer by layer, when those of gate and up are made, what the down projection kept is gone: the
    # peak is at its own, with the product's gradient through weight and LoRA.
    inner = 3 if training["fused_lora"] else 2
    working: float = (
        inner * shape.intermediate_size + 4 * shape.hidden_size
    ) * _BF16 * tokens + 2 * widest
    if training["gradient_checkpointing"] is True:
        working += layer * tokens
    elif training["gradient_checkpointing"] == "selective":
        working += 2 * shape.intermediate_size * _BF16 * tokens
    # A forward pass keeps nothing: residual stream and norm, gate, up and product of one layer, and
    # a projection in bf16, be it dequantised or, in the comparison with the weights that are
    # served, read from the files.
    forward: float = (3 * shape.intermediate_size + 4 * shape.hidden_size) * _BF16 * tokens + widest
    if training["attn_implementation"] in {"sdpa", "eager"} and training["packing"]:
        working += tokens**2 * _BF16  # the mask
        forward += tokens**2 * _BF16
    if pieces > 1:
        gathered = (
            2
            * shape.linear_parameters
            / shape.num_hidden_layers
            * (_NF4 + _CONSTANTS[quantization["double_quant"]])
        )
        # In TRL's loss the LM head is whole, and so are the embeddings at the other end.
        gathered = max(gathered, shape.vocab_size * shape.hidden_size * trained)
        working, forward = working + gathered, forward + gathered
    kept_weights = shape.linear_parameters * _BF16 if training.get("keep_dequantized") else 0
    return Estimate(
        weights=(shape.linear_parameters * _NF4 + kept_weights) / pieces,
        quantisation_constants=shape.linear_parameters
        * _CONSTANTS[quantization["double_quant"]]
        / pieces,
        embeddings=shape.embedding_parameters * trained / pieces,
        lora=parameters * trained / pieces,
        gradients=parameters * trained / pieces,
        optimiser=parameters * _OPTIMISER[training["optim"]] / pieces,
        activations=kept * tokens,
        working=working,
        logits=_logits(shape, training, tokens if supervised is None else supervised),
        # The widest projection in bf16, and its constants before they are quantised themselves.
        staging=widest + shape.hidden_size * shape.intermediate_size * _CONSTANTS[False],
        forward=forward,
        pieces=pieces,
    )


def layer_activations(shape: Shape, lora: dict[str, Any], training: dict[str, Any]) -> float:
    """Bytes a token that one layer keeps for its backward pass."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    query, key = (
        shape.num_attention_heads * shape.head_dim,
        shape.num_key_value_heads * shape.head_dim,
    )
    # Inputs of both norms; query, key, value and the output of the attention, with its float32
    # normaliser a head.
    kept: float = (2 * hidden + 2 * query + 2 * key) * _BF16 + shape.num_attention_heads * _FP32
    if not training["liger"]:
        kept += 2 * hidden * (_FP32 + _BF16)  # the norms' float32 copies and normalised values
    if training["fused_lora"]:
        # Inputs of the attention's and of the MLP's projections, once each; the output projection's
        # is the attention's output.
        kept += (2 * hidden + (query if lora["dropout"] else 0)) * _BF16 + 7 * lora["r"] * _BF16
        return (
            kept if training["gradient_checkpointing"] == "selective" else kept + 2 * inner * _BF16
        )
    kept += 2 * inner * _BF16 + (
        0 if training["liger"] else 2 * inner * _BF16
    )  # gate and up, without Liger SiLU(gate) and the product too
    for name in lora["target_modules"]:
        width = shape.projections[name][0]
        # peft keeps a dropped-out copy of each projection's input and its mask; without dropout
        # they share the input.
        kept += (
            width * (_BF16 + 1)
            if lora["dropout"]
            else width * _BF16 // (3 if name in {"q_proj", "k_proj", "v_proj"} else 1)
        )
        kept += lora["r"] * _BF16
    return kept


def _logits(shape: Shape, training: dict[str, Any], supervised: int) -> float:
    """Bytes of the loss: logits of a chunk in bf16 and float32 and their gradient
    (`loss.answer_loss`).
    """
    if training.get("float32_copies"):
        return (
            3 * supervised * shape.vocab_size * _FP32
        )  # log-probabilities, their gradient, and that of the logits
    gradient = supervised * shape.hidden_size * _BF16
    if training["liger"]:
        # Liger's chunks hold hidden size × tokens / vocabulary rows, rounded up to a power of two.
        wanted = supervised / max(1, -(-shape.vocab_size // shape.hidden_size))
        rows = 1 << max(0, int(wanted - 1).bit_length())
        return rows * shape.vocab_size * (_BF16 + _FP32) + gradient
    rows = min(supervised, max(1, 2**28 // shape.vocab_size))
    return rows * shape.vocab_size * (_BF16 + 2 * _FP32) + gradient
