"""A vLLM plug-in for the CPU build: an engine starts in 30 seconds instead of 90.

vLLM runs in three processes. On a CPU each is made to import everything anew, some twenty seconds
of one core each, and at the first start a fourth looks at the model's class, because a process that
has touched CUDA cannot be forked. Without CUDA the others are forked from the first one, which has
imported everything, and it looks at the class itself.

Found by vLLM through the entry point beside this file when this directory is on PYTHONPATH; the GPU
build is not touched. For vLLM 0.32; it can go when `vllm/platforms/cpu.py` no longer sets
`VLLM_WORKER_MULTIPROC_METHOD`, for which `tests/unit/test_vllm_plugins.py` looks. No issue is known
that asks for it; why vLLM prefers to spawn is in https://github.com/vllm-project/vllm/pull/8823.
"""

from __future__ import annotations

import os
from typing import Any


def register() -> None:
    """Have vLLM fork; it calls this in its first process before it reads its configuration."""
    from vllm.model_executor.models import registry
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config

    def check_and_fork(vllm_config: Any) -> None:
        check(vllm_config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    setattr(CpuPlatform, check.__name__, staticmethod(check_and_fork))
    registry._run_in_subprocess = lambda look: look()
