"""The shape of `configs/schemas/recipe.json`; `make types`."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class Quantization(TypedDict):
    type: Literal["nf4"]
    double_quant: bool
    max_loss_increase: float
    compute_dtype: Literal["bfloat16"]


class Lora(TypedDict):
    r: Literal[8, 16, 32, 64, 128, 256]
    alpha: float
    dropout: float
    last_layers: NotRequired[int]
    use_dora: NotRequired[Literal[False]]
    bias: NotRequired[Literal["none"]]
    modules_to_save: NotRequired[list[Any]]
    target_modules: list[
        Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    ]


class EarlyStopping(TypedDict):
    share: float
    every_steps: int
    patience: int


class Training(TypedDict):
    num_train_epochs: float
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"]
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    max_length: int
    on_truncation: Literal["error", "allow"]
    packing: bool
    train_sampling_strategy: Literal["random", "group_by_length"]
    gradient_checkpointing: Literal[True, False, "selective"]
    optim: Literal[
        "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"
    ]
    attn_implementation: Literal["sdpa", "eager", "flex_attention", "varlen", "flash_attention_2"]
    liger: bool
    fused_lora: bool
    keep_dequantized: NotRequired[bool]
    logging_steps: int
    report_to: NotRequired[Literal["tensorboard", "wandb", "trackio", "none"]]
    early_stopping: NotRequired[EarlyStopping]


class Recipe(TypedDict):
    base_model: str
    seed: int
    quantization: Quantization
    lora: Lora
    training: Training
