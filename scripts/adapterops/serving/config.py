"""`configs/serving*.yaml` as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapterops.basemodels import BaseModel, find_base_model
from adapterops.errors import UsageError
from adapterops.schemas import ROOT
from adapterops.yamlfile import load_yaml


@dataclass(frozen=True)
class EngineConfig:
    """How vLLM is started; the fields are its options of the same names."""

    host: str
    port: int
    dtype: str
    max_model_len: int
    max_lora_rank: int
    max_loras: int
    max_cpu_loras: int
    max_num_seqs: int
    gpu_memory_utilization: float
    tensor_parallel_size: int
    enforce_eager: bool
    cpu_kv_cache_gib: int
    start_timeout_s: float
    stop_timeout_s: float


@dataclass(frozen=True)
class GatewaySettings:
    """The public port, the largest request, and how long the engine may be silent."""

    host: str
    port: int
    max_body_bytes: int
    read_timeout_s: float


@dataclass(frozen=True)
class ServingConfig:
    """One serving host; see the comments of `configs/serving.yaml`."""

    path: Path
    base_model: BaseModel
    adapters: tuple[str, ...]
    bucket: str
    engine: EngineConfig
    gateway: GatewaySettings
    interval_s: float
    state_directory: Path


def load_serving_config(path: Path) -> ServingConfig:
    """Read and check a serving configuration.

    Raises:
        UsageError: it breaks its schema, or its settings contradict each other; all problems at once.
    """
    values = load_yaml(path, "serving")
    base_model = find_base_model(values["base_model"], f"{path}: base_model")
    engine = EngineConfig(**values["engine"])
    problems = []
    if engine.max_model_len > base_model.context_length:
        problems.append(
            f"engine.max_model_len: {engine.max_model_len} exceeds {base_model.context_length}, the context length of {base_model.name}."
        )
    if engine.max_cpu_loras < engine.max_loras:
        problems.append(f"engine.max_cpu_loras: {engine.max_cpu_loras} is below max_loras {engine.max_loras}. vLLM refuses that.")
    if values["gateway"]["port"] == engine.port:
        problems.append(f"gateway.port: {engine.port} is the engine's port too.")
    if base_model.name in values["adapters"]:
        problems.append(f"adapters: {base_model.name} is the base model's name. Clients could not tell the two apart.")
    if problems:
        raise UsageError("\n".join(f"{path}: {problem}" for problem in problems))
    return ServingConfig(
        path=path,
        base_model=base_model,
        adapters=tuple(values["adapters"]),
        bucket=values["store"]["bucket"],
        engine=engine,
        gateway=GatewaySettings(**values["gateway"]),
        interval_s=values["reconciler"]["interval_s"],
        state_directory=ROOT / values["state_directory"],
    )
