"""vLLM's administrative paths (0.32: `entrypoints/serve/lora`, `entrypoints/openai/models`).

Adapters are loaded under a name that no other content ever gets, and never with `load_inplace`: it
changes weights under requests that are being answered (vllm-project/vllm#31326).
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from adapterops.engine.answers import Messages
from adapterops.errors import InfrastructureError, RejectedError

_LOAD_TIMEOUT = 300  # seconds; loading waits for the engine's loop, and reads up to some GiB


@dataclass(frozen=True)
class Completion:
    """An answer: its text, its length in tokens, and why it ended (`stop` or `length`)."""

    text: str
    tokens: int
    finish_reason: str


def is_healthy(url: str, timeout: float = 5) -> bool:
    """True if the engine is up and its core lives; says nothing on adapters."""
    try:
        return _request(url, "/health", timeout=timeout)[0] == 200
    except InfrastructureError:
        return False


def await_engine(url: str, timeout_s: float) -> None:
    """Return once the engine answers; starting takes from 15 s (GPU, warm) to minutes.

    Raises:
        InfrastructureError: it does not answer within `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while not is_healthy(url):
        if time.monotonic() >= deadline:
            raise InfrastructureError(
                f"the engine at {url} did not answer within {timeout_s:.0f} s. Is it running? Mend"
                " --server-url."
            )
        time.sleep(0.3)


def served_models(url: str, timeout: float = 30) -> dict[str, str]:
    """Name and root of all that is served; an adapter's root is the directory it came from.

    Raises:
        InfrastructureError: the engine does not answer.
    """
    status, body = _request(url, "/v1/models", timeout=timeout)
    try:
        return {str(card["id"]): str(card["root"]) for card in json.loads(body)["data"]}
    except (ValueError, KeyError, TypeError):
        raise InfrastructureError(
            f"{url}/v1/models answered {status} without a list of models. Is this a vLLM server?"
        ) from None


def served_version(url: str) -> str | None:
    """The engine's version, or None where it tells none (another OpenAI-compatible server).

    Raises:
        InfrastructureError: the engine does not answer.
    """
    status, body = _request(url, "/version", timeout=30)
    try:
        return str(json.loads(body)["version"]) if status == 200 else None
    except (ValueError, KeyError, TypeError):
        return None


def load_adapter(url: str, name: str, path: Path) -> None:
    """Load an adapter under a name; loaded already from the very same directory is success.

    Args:
        url: root of the engine, without `/v1`.
        name: what to ask the engine for.
        path: absolute directory with adapter_config.json and adapter_model.safetensors.

    Raises:
        RejectedError: the engine cannot serve this adapter (rank, target modules, missing files),
            or the name is taken by another directory.
        InfrastructureError: the engine does not answer.
    """
    status, body = _request(
        url,
        "/v1/load_lora_adapter",
        {"lora_name": name, "lora_path": str(path)},
        timeout=_LOAD_TIMEOUT,
    )
    if status == 200:
        return
    # Any 400: the name may be taken, by this very adapter. What is served decides, not the wording
    # of a message.
    root = served_models(url).get(name) if status == 400 else None
    if root == str(path):
        return
    if root is not None:
        raise RejectedError(
            f"{name} is loaded in the engine from {root}, not from {path}. Restart the engine to"
            " free the name."
        )
    if status == 404 and "No adapter found" not in _message(body):
        raise InfrastructureError(
            f"{url} does not load adapters at run time (404). Start it with"
            " VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora."
        )
    raise RejectedError(
        f"the engine refused adapter {name} from {path} ({status}): {_message(body)}"
    )


def unload_adapter(url: str, name: str) -> None:
    """Forget an adapter; not loaded is success. Requests under way are answered to their end.

    Raises:
        InfrastructureError: the engine does not answer, or fails.
    """
    status, body = _request(url, "/v1/unload_lora_adapter", {"lora_name": name}, timeout=60)
    if status not in (200, 404):
        raise InfrastructureError(f"the engine did not unload {name} ({status}): {_message(body)}")


def greedy_answer(
    url: str, model: str, messages: Messages, max_tokens: int, timeout: float = 300
) -> Completion:
    """The answer at temperature 0.

    Raises:
        InfrastructureError: the engine does not answer or fails.
        RejectedError: it refuses the request (400, or 404: no such model).
    """
    request = {"model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
    status, body = _request(url, "/v1/chat/completions", request, timeout=timeout)
    if status != 200:
        kind = RejectedError if 400 <= status < 500 else InfrastructureError
        raise kind(f"{url} did not answer as {model} ({status}): {_message(body)}")
    answer = json.loads(body)
    choice = answer["choices"][0]
    return Completion(
        choice["message"]["content"] or "",
        answer["usage"]["completion_tokens"],
        choice["finish_reason"],
    )


def _request(
    url: str, path: str, document: Mapping[str, object] | None = None, *, timeout: float
) -> tuple[int, bytes]:
    method, content = "GET", None
    if document is not None:
        method, content = "POST", json.dumps(document).encode()
    try:
        answer = _client().request(
            method,
            f"{url}{path}",
            content=content,
            timeout=timeout,
            follow_redirects=content is None,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise InfrastructureError(
            f"the engine at {url} does not answer ({path}): {reason}. Is it running?"
        ) from None
    return answer.status_code, answer.content


@functools.cache
def _client() -> httpx.Client:
    """A connection for each request: one that is kept may be of an engine that was restarted."""
    return httpx.Client(
        headers={"content-type": "application/json", "accept-encoding": "identity"},
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        trust_env=False,  # the engine is on loopback: the environment's HTTP proxy is not asked
    )


def _message(body: bytes) -> str:
    """The text of an error: `{"error": {"message": …}}`, else the body itself."""
    try:
        return str(json.loads(body)["error"]["message"]).strip()
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()[:500] or "no message"
