"""`configs/serving*.yaml` as data."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapterops.schemas import ROOT, SchemaProblem
from adapterops.shapes.serving import Gateway, Identity, PublicKey, Serving
from adapterops.signing import Trust
from adapterops.specs.base_model import BaseModel, find_base_model, load_base_models, not_allowed
from adapterops.specs.limits import Limits
from adapterops.yamlfile import Sound, load_yaml

_HELD_VERSIONS = 4  # of an adapter; more only when it is deployed again within `keep_warm_s`


@dataclass(frozen=True)
class EngineConfig:
    """How vLLM is started; the fields are its options of the same names, but for the last five.

    Args:
        replicas: engines on this host, on ports from `port` on, each with `tensor_parallel_size`
            GPUs of its own.
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
    write_timeout_s: float
    drain_delay_s: float
    drain_s: float
    api_keys: Path | None
    access_log: bool
    log_prompts: bool
    engine_metrics: bool
    limits: Limits


@dataclass(frozen=True)
class ConnectionSettings:
    """Bounds of the public port's connections; see the comments of `configs/serving.yaml`."""

    max_open: int
    max_per_address: int | None
    head_timeout_s: float
    idle_timeout_s: float
    refusals_per_second: float


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
    connections: ConnectionSettings
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
        UsageError: it breaks its schema, or its settings contradict each other; all problems at
            once.
    """
    values = load_yaml(path, Serving, _together)
    base_model = find_base_model(values["base_model"], f"{path}: base_model")
    return ServingConfig(
        path=path,
        base_model=base_model,
        adapters=tuple(values["adapters"]),
        bucket=values["store"]["bucket"],
        trust=_trust(values["store"]["signed_by"]),
        engine=EngineConfig(**values["engine"]),
        gateway=_gateway(values["gateway"]),
        connections=ConnectionSettings(**values["connections"]),
        interval_s=values["reconciler"]["interval_s"],
        keep_warm_s=values["reconciler"]["keep_warm_s"],
        state_directory=ROOT / values["state_directory"],
    )


def _gateway(said: Gateway) -> GatewaySettings:
    keys = said["api_keys"]
    return GatewaySettings(
        host=said["host"],
        port=said["port"],
        max_body_bytes=said["max_body_bytes"],
        max_in_flight=said["max_in_flight"],
        read_timeout_s=said["read_timeout_s"],
        request_timeout_s=said["request_timeout_s"],
        write_timeout_s=said["write_timeout_s"],
        drain_delay_s=said["drain_delay_s"],
        drain_s=said["drain_s"],
        api_keys=ROOT / keys if keys else None,
        access_log=said["access_log"],
        log_prompts=said["log_prompts"],
        engine_metrics=said["engine_metrics"],
        limits=Limits(**said["limits"]),
    )


def _together(sound: Sound) -> list[SchemaProblem]:
    """Settings that do not go together, or not with the base model."""
    problems: list[SchemaProblem] = []

    def refuse(section: str, setting: str, message: str) -> None:
        problems.append(SchemaProblem((section, setting), message))

    problems += _names(sound)
    _engine_together(sound, refuse)
    _gateway_together(sound, refuse)
    return problems


def _names(sound: Sound) -> list[SchemaProblem]:
    name, adapters = sound("base_model"), sound("adapters") or []
    if name and name not in load_base_models():
        return [SchemaProblem(("base_model",), not_allowed(name))]
    if name in adapters:
        said = f"{name} is the base model's name. Clients could not tell the two apart."
        return [SchemaProblem(("adapters",), said)]
    return []


def _engine_together(sound: Sound, refuse: Callable[[str, str, str], None]) -> None:
    name, adapters = sound("base_model"), sound("adapters")
    base_model = load_base_models().get(name) if name else None
    length, loras, held = (
        sound("engine", key) for key in ("max_model_len", "max_loras", "max_cpu_loras")
    )
    if base_model and length and length > base_model.context_length:
        refuse(
            "engine",
            "max_model_len",
            f"{length} exceeds {base_model.context_length}, the context length of {name}.",
        )
    if held and loras and held < loras:
        refuse("engine", "max_cpu_loras", f"{held} is below max_loras {loras}. vLLM refuses that.")
    wanted = _HELD_VERSIONS * len(adapters) if adapters else 0
    if held and held < wanted:
        refuse(
            "engine",
            "max_cpu_loras",
            f"{held} is below {wanted}. A host holds up to {_HELD_VERSIONS} versions of each of its"
            f" {len(adapters)} adapters: stable, canary, previous, and the one replaced last; what"
            f" does not fit is read from disk again, while no answer goes on. Raise it to {wanted},"
            " or follow fewer adapters.",
        )
    first, replicas, port = (
        sound("engine", "port"),
        sound("engine", "replicas"),
        sound("gateway", "port"),
    )
    if first and replicas and port and first <= port < first + replicas:
        refuse("gateway", "port", f"{port} is an engine's port too.")
    if first and replicas and first + replicas - 1 > 65535:
        refuse(
            "engine", "replicas", f"{replicas} engines from port {first} on go beyond port 65535."
        )


def _gateway_together(sound: Sound, refuse: Callable[[str, str, str], None]) -> None:
    gateway, host = sound("gateway") or {}, sound("gateway", "host")
    length, replicas = sound("engine", "max_model_len"), sound("engine", "replicas")
    if host and "api_keys" in gateway and gateway["api_keys"] is None and not _is_loopback(host):
        refuse(
            "gateway",
            "api_keys",
            f"null with gateway.host {host} lets everybody on the network ask. Make a file of keys"
            " (scripts/api_key.py), or listen on 127.0.0.1.",
        )
    most, requests = sound("connections", "max_open"), sound("gateway", "max_in_flight")
    if most and requests and most <= requests:
        refuse(
            "connections",
            "max_open",
            f"{most} is not above gateway.max_in_flight {requests}. With so many requests under way"
            f" nobody could ask for /health. Expected {2 * requests} or more.",
        )
    for cap in ("max_tokens", "default_tokens"):
        if length and (tokens := sound("gateway", "limits", cap)) and tokens > length:
            refuse(
                "gateway",
                f"limits.{cap}",
                f"{tokens} is above engine.max_model_len {length}. vLLM refuses such an answer.",
            )
    if sound("gateway", "engine_metrics") and replicas and replicas > 1:
        refuse(
            "gateway",
            "engine_metrics",
            f"true with engine.replicas {replicas}. A scheduler takes a host for one engine.",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _trust(signed_by: PublicKey | Identity | None) -> Trust | None:
    if signed_by is None:
        return None
    said = {name: str(value) for name, value in signed_by.items()}
    key = said.get("public_key")
    return Trust(ROOT / key if key else None, said.get("identity"), said.get("issuer"))
