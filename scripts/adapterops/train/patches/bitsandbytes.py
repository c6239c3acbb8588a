"""bitsandbytes 0.50: NF4 weights on a CPU with AVX512-BF16."""

from __future__ import annotations

from typing import Any


def keep_weights_unpacked(network: Any) -> None:
    """Have NF4 weights stay as they were loaded.

    On a CPU with AVX512-BF16 the first forward pass without gradients packs them anew
    (https://github.com/bitsandbytes-foundation/bitsandbytes/pull/1804), as a look at held-back rows
    is one. What reads the weights afterwards reads noise
    (https://github.com/bitsandbytes-foundation/bitsandbytes/issues/2078 is one such case), and the
    packed product has no gradient.
    """
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
