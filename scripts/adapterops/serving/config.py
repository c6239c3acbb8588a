"""`configs/serving*.yaml` as data."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from adapterops.basemodels import BaseModel, find_base_model
from adapterops.errors import UsageError
from adapterops.schemas import ROOT
from adapterops.store.signing import Trust
from adapterops.yamlfile import load_yaml

_HELD_VERSIONS = 4  # of an adapter; more only when it is deployed again within `keep_warm_s`


@dataclass(frozen=True)
class EngineConfig:
    """How vLLM is started; the fields are its options of the same names, but for the last five.

    Args:
        replicas: engines on this host, on ports from `port` on, each with `tensor_parallel_size` GPUs of its own.
        cpu_kv_cache_gib: for the CPU build.
        start_timeout_s: until it must be healthy.
        stop_timeout_s: between SIGTERM and SIGKILL.
        hang_timeout_s: without an answer to health checks until it is restarted.
    """

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
    replicas: int
    cpu_kv_cache_gib: int
    start_timeout_s: float
    stop_timeout_s: float
    hang_timeout_s: float


@dataclass(frozen=True)
class GatewaySettings:
    """The public port and its limits; see the comments of `configs/serving.yaml`."""

    host: str
    port: int
    max_body_bytes: int
    max_in_flight: int
    read_timeout_s: float
    request_timeout_s: float
    drain_delay_s: float
    drain_s: float
    api_keys: Path | None
    access_log: bool
    log_prompts: bool
    engine_metrics: bool


@dataclass(frozen=True)
class ServingConfig:
    """One serving host; see the comments of `configs/serving.yaml`."""

    path: Path
    base_model: BaseModel
    adapters: tuple[str, ...]
    bucket: str
    trust: Trust | None
    engine: EngineConfig
    gateway: GatewaySettings
    interval_s: float
    keep_warm_s: float
    state_directory: Path

    @property
    def releases(self) -> Path:
        """Where verified releases lie."""
        return self.state_directory / "releases"


def load_serving_config(path: Path) -> ServingConfig:
    """Read and check a serving configuration.

    Raises:
        UsageError: it breaks its schema, or its settings contradict each other; all problems at once.
    """
    values = load_yaml(path, "serving")
    base_model = find_base_model(values["base_model"], f"{path}: base_model")
    engine = EngineConfig(**values["engine"])
    keys = values["gateway"]["api_keys"]
    problems = []
    if engine.max_model_len > base_model.context_length:
        problems.append(
            f"engine.max_model_len: {engine.max_model_len} exceeds {base_model.context_length}, the context length of {base_model.name}."
        )
    if engine.max_cpu_loras < engine.max_loras:
        problems.append(f"engine.max_cpu_loras: {engine.max_cpu_loras} is below max_loras {engine.max_loras}. vLLM refuses that.")
    held = _HELD_VERSIONS * len(values["adapters"])
    if engine.max_cpu_loras < held:
        problems.append(
            f"engine.max_cpu_loras: {engine.max_cpu_loras} is below {held}. A host holds up to {_HELD_VERSIONS} versions of each of its "
            f"{len(values['adapters'])} adapters: stable, canary, previous, and the one replaced last; what does not fit is read from disk "
            f"again, while no answer goes on. Raise it to {held}, or follow fewer adapters."
        )
    if engine.port <= values["gateway"]["port"] < engine.port + engine.replicas:
        problems.append(f"gateway.port: {values['gateway']['port']} is an engine's port too.")
    if engine.port + engine.replicas - 1 > 65535:
        problems.append(f"engine.replicas: {engine.replicas} engines from port {engine.port} on go beyond port 65535.")
    if base_model.name in values["adapters"]:
        problems.append(f"adapters: {base_model.name} is the base model's name. Clients could not tell the two apart.")
    if keys is None and not _is_loopback(values["gateway"]["host"]):
        problems.append(
            f"gateway.api_keys: null with gateway.host {values['gateway']['host']} lets everybody on the network ask. Make a file of keys "
            "(scripts/api_key.py), or listen on 127.0.0.1."
        )
    if values["gateway"]["engine_metrics"] and engine.replicas > 1:
        problems.append(f"gateway.engine_metrics: true with engine.replicas {engine.replicas}. A scheduler takes a host for one engine.")
    if problems:
        raise UsageError("\n".join(f"{path}: {problem}" for problem in problems))
    return ServingConfig(
        path=path,
        base_model=base_model,
        adapters=tuple(values["adapters"]),
        bucket=values["store"]["bucket"],
        trust=_trust(values["store"]["signed_by"]),
        engine=engine,
        gateway=GatewaySettings(**{**values["gateway"], "api_keys": ROOT / keys if keys else None}),
        interval_s=values["reconciler"]["interval_s"],
        keep_warm_s=values["reconciler"]["keep_warm_s"],
        state_directory=ROOT / values["state_directory"],
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _trust(signed_by: dict[str, str] | None) -> Trust | None:
    if signed_by is None:
        return None
    key = signed_by.get("public_key")
    return Trust(ROOT / key if key else None, signed_by.get("identity"), signed_by.get("issuer"))
