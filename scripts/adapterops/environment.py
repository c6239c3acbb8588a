"""The environment of programs that are started: what they need, and nothing worth stealing."""

from __future__ import annotations

import os
from collections.abc import Iterable

# Where programs, libraries, certificates and temporary files are, the language, and the way to the
# network.
_BASIC = frozenset(
    {
        "HOME", "LANG", "LANGUAGE", "LOGNAME", "NO_COLOR", "PATH", "PYTHONPATH", "SHELL", "TEMP",
        "TERM", "TMP", "TMPDIR", "TZ", "USER",
        "LD_LIBRARY_PATH", "LD_PRELOAD", "SSL_CERT_DIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
        "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    }
)  # fmt: skip
_BASIC_PREFIXES = ("LC_", "XDG_")
# What computing is set up with.
COMPUTING = (
    "CUDA_",
    "CC",
    "CXX",
    "GOMP_",
    "KMP_",
    "MKL_",
    "NCCL_",
    "NVIDIA_",
    "OMP_",
    "OPENBLAS_",
    "PYTORCH_",
    "TORCH",
    "TRITON_",
    "VLLM_",
)
# A name of this kind is never handed on by a prefix, whatever it begins with.
_SECRET = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "API_KEY", "ACCESS_KEY", "PRIVATE_KEY")


def child_environment(
    keep: Iterable[str] = (), prefixes: Iterable[str] = (), **changes: str
) -> dict[str, str]:
    """The environment for a program: an allow-list of this process' own.

    Args:
        keep: names that this program needs besides the basic ones; a secret goes on in no other
            way.
        prefixes: beginnings of further names; those that sound like a secret are left out.
        changes: variables to set.
    """
    names, begin = _BASIC | set(keep), (*_BASIC_PREFIXES, *prefixes)
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in names
        or (name.startswith(begin) and not any(word in name.upper() for word in _SECRET))
    }
    return {**kept, **changes}
