"""The shape of `configs/schemas/serving.json`; `make types`."""

from __future__ import annotations

from typing import Literal, TypeAlias, TypedDict

Adapter: TypeAlias = str


class SignedBy(TypedDict):
    public_key: str


class SignedBy1(TypedDict):
    identity: str
    issuer: str


class Store(TypedDict):
    bucket: str
    signed_by: SignedBy | SignedBy1 | None


class Limits(TypedDict):
    n: int
    prompts: int
    max_tokens: int
    default_tokens: int
    request_tokens: int
    logprobs: int
    logit_bias: int
    messages: int
    tools: int
    schema_nodes: int
    schemas_per_minute: int
    share: float | None
    thumbs_per_minute: int
    grammars: bool
    evidence: bool


class Reconciler(TypedDict):
    interval_s: float
    keep_warm_s: float


Port: TypeAlias = int


Seconds: TypeAlias = float


class Engine(TypedDict):
    host: Literal["127.0.0.1"]
    port: Port
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    max_model_len: int
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512]
    max_loras: int
    max_cpu_loras: int
    max_num_seqs: int
    gpu_memory_utilization: float
    tensor_parallel_size: int
    enforce_eager: bool
    replicas: int
    cpu_kv_cache_gib: int
    start_timeout_s: Seconds
    stop_timeout_s: Seconds
    hang_timeout_s: Seconds


class Gateway(TypedDict):
    host: str
    port: Port
    max_body_bytes: int
    max_in_flight: int
    read_timeout_s: Seconds
    request_timeout_s: Seconds
    write_timeout_s: Seconds
    drain_delay_s: float
    drain_s: float
    api_keys: str | None
    access_log: bool
    log_prompts: bool
    engine_metrics: bool
    limits: Limits


class Connections(TypedDict):
    max_open: int
    max_per_address: int | None
    head_timeout_s: Seconds
    idle_timeout_s: Seconds
    refusals_per_second: float


class Serving(TypedDict):
    base_model: str
    adapters: list[Adapter]
    store: Store
    engine: Engine
    gateway: Gateway
    connections: Connections
    reconciler: Reconciler
    state_directory: str
