"""A vLLM plug-in for the CPU build: processes that sleep while they wait for each other.

vLLM's scheduler polls the shared memory that its worker answers through, without a pause, up to a
second after the last answer. A step on a CPU takes less, so it always polls, and on two cores takes
half of one from the threads that compute. Here it waits for the message that the writer sends
beside each answer, as vLLM itself does after that second. Some of these are lost when the cores are
busy, so it looks for itself every few milliseconds. The GPU build, where the scheduler has a core
of its own, is not touched.

Found by vLLM through the entry point beside this file when this directory is on PYTHONPATH. For
vLLM 0.32; it can go when vLLM can be told not to poll, for which `tests/unit/test_vllm_plugins.py`
looks (https://github.com/vllm-project/vllm/pull/52814; for a sleep between two looks, 52848).
"""

from __future__ import annotations

import time
from typing import Any

LOOK_AGAIN_MS = 10
QUIET_S = 10  # without an answer for so long, the engine has nothing to do, and no message is lost


def register() -> None:
    """Replace how a reader waits; vLLM calls this in each of its processes."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    wait = SpinCondition.wait

    def wait_asleep(self: Any, timeout_ms: int | None = None) -> None:
        self.busy_loop_s = -1
        if time.monotonic() < self.last_read + QUIET_S:
            timeout_ms = LOOK_AGAIN_MS if timeout_ms is None else min(timeout_ms, LOOK_AGAIN_MS)
        wait(self, timeout_ms)

    setattr(SpinCondition, wait.__name__, wait_asleep)
