"""The shape of `configs/schemas/train_manifest.json`; `make types`."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict


class BaseModel(TypedDict):
    name: str
    source_id: str
    revision: str
    license: str


class LossHistoryItem(TypedDict):
    step: int
    epoch: float
    loss: float
    learning_rate: float


class Prediction(TypedDict):
    """
    As preflight predicts them: peaks of one GPU in GiB (measured: training.peak_memory_gib); on a GPU that configs/pricing.yaml knows also the speed of all (measured: training.tokens_per_second), and minutes and cost of the steps alone (measured: training.seconds, training.usd).
    """

    loading_gib: float
    training_gib: float
    evaluation_gib: float
    gpu: NotRequired[str]
    speed_from: NotRequired[str]
    tokens_per_second: NotRequired[float]
    minutes: NotRequired[float]
    usd: NotRequired[float]


class Environment(TypedDict):
    device: str
    compute_dtype: NotRequired[Literal["bfloat16", "float32"]]
    python: str
    packages: dict[str, str]


Sha256: TypeAlias = str


Count: TypeAlias = int


class Datum(TypedDict):
    path: str
    sha256: Sha256


class Tokens(TypedDict):
    rows: Count
    total: Count
    supervised: Count
    longest_row: Count
    truncated_rows: Count
    truncated_tokens: Count
    truncated_supervised: NotRequired[Count]
    mask_sample: str


class Training(TypedDict):
    steps: Count
    final_loss: float
    loss_history: list[LossHistoryItem]
    seconds: float
    tokens_per_second: float
    usd: NotRequired[float]
    peak_memory_gib: float
    lora_step0_sha256: Sha256


class HeldBackItem(TypedDict):
    step: Count
    loss: float


Quantisation = TypedDict(
    "Quantisation",
    {
        "rows": Count,
        "from": Literal["held_back", "training"],
        "max_loss_increase": float,
        "adapter_nf4": float,
        "adapter_bf16": float,
        "base_nf4": float,
        "base_bf16": float,
    },
)


class Run(TypedDict):
    processes: int
    resumed_from_step: Count
    out_of_memory: list[str]
    stopped: str | None
    held_back: list[HeldBackItem]
    hints: list[str]
    quantisation: NotRequired[Quantisation]


class File(TypedDict):
    name: Literal["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"]
    size: Count
    sha256: Sha256


class Adapter(TypedDict):
    digest: Sha256
    rank: int
    dtype: Literal["bfloat16"]
    files: list[File]


class TrainManifest(TypedDict):
    schema: Literal["train_manifest/v1"]
    training_key: Sha256
    key_inputs: dict[str, Any]
    recipe: str
    base_model: BaseModel
    data: list[Datum]
    licenses: NotRequired[dict[str, Count]]
    tokens: Tokens
    training: Training
    prediction: Prediction
    run: Run
    adapter: Adapter
    environment: Environment
    total_seconds: float
    finished_at: str
