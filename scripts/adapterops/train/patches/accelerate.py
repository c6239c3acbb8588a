"""accelerate 1.15: buffers under FSDP."""

from __future__ import annotations

import functools
from typing import Any


def keep_buffers_exact(plugin: Any) -> None:
    """Have FSDP leave buffers in float32.

    accelerate tells it one type for parameters and buffers, and rotary frequencies in bf16 turn by
    wrong angles. No issue of accelerate is known; DeepSpeed mended the same in
    https://github.com/deepspeedai/DeepSpeed/pull/8066.

    Args:
        plugin: accelerate's `fsdp_plugin`, before the network is prepared.
    """
    plugin.set_mixed_precision = functools.partial(plugin.set_mixed_precision, buffer_autocast=True)
