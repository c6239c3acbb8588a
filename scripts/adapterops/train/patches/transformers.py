"""transformers 5.19: the order of rows of like length after a training was resumed.

Trainer draws that order from the global generator and restores the generator only after the order
of a resumed epoch is drawn. For its random order alone accelerate keeps a seed. Upstream:
https://github.com/huggingface/transformers/pull/46628 (closed) and the issue it names, 39215.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_ORDER = "order_rng.json"


class RepeatableOrder(torch.utils.data.Sampler[int]):
    """An order drawn from the global generator, whose state at the draw is kept for a resumption.

    Args:
        inner: the sampler that draws.
        draw_from: the state to draw the next order from; None takes the state as it is.
    """

    def __init__(self, inner: Any, draw_from: torch.Tensor | None = None) -> None:
        self._inner = inner
        self._draw_from = draw_from
        self._drawn_from: torch.Tensor | None = None

    def __iter__(self) -> Iterator[int]:
        if self._draw_from is not None:
            torch.set_rng_state(self._draw_from)
            self._draw_from = None
        self._drawn_from = torch.get_rng_state()
        return iter(list(self._inner))

    def __len__(self) -> int:
        return len(self._inner)

    def write(self, checkpoint: Path) -> None:
        """Lay the state that the last order was drawn from beside a checkpoint."""
        if self._drawn_from is not None:
            state = json.dumps(bytes(self._drawn_from.tolist()).hex())
            (checkpoint / _ORDER).write_text(state, encoding="utf-8")


def order_state(checkpoint: Path) -> torch.Tensor | None:
    """What `RepeatableOrder.write` left there, None if it left nothing."""
    path = checkpoint / _ORDER
    if not path.is_file():
        return None
    state = bytes.fromhex(json.loads(path.read_text(encoding="utf-8")))
    return torch.tensor(list(state), dtype=torch.uint8)
