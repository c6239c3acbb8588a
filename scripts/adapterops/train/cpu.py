"""What makes training on CPU cores bearable."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch
from trl import SFTTrainer

from adapterops.train.encode import IGNORED

# Option numbers of glibc's mallopt(3), from <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of returning every large tensor to the kernel.

    By default each tensor above 32 MiB is mapped and unmapped anew, and a third of the run is page faults. Elsewhere than on
    glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


class AnswerLossTrainer(SFTTrainer):  # type: ignore[misc]  # trl ships no types
    """`SFTTrainer` that projects only supervised positions through the LM head.

    trl does so on Triton devices alone; on CPU it scores every position, ignored ones too, and twice. The loss is the same:
    the mean negative log-likelihood over the supervised tokens of the whole batch.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Mean cross-entropy in nats over supervised tokens; `num_items_in_batch` counts those of all micro-batches.

        Raises:
            NotImplementedError: `return_outputs`, which only evaluation with `compute_metrics` asks for.
        """
        if return_outputs:
            raise NotImplementedError("the logits are not kept")
        network = model.get_base_model()
        targets = inputs["labels"][:, 1:]
        supervised = targets != IGNORED
        hidden = network.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).last_hidden_state
        logits = network.lm_head(hidden[:, :-1][supervised]).float()
        total = torch.nn.functional.cross_entropy(logits, targets[supervised], reduction="sum")
        count = supervised.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        return total / count.clamp(min=1)
