"""The best weights of a training, by the loss on held-back rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_FILE = "best_weights.safetensors"


class BestWeights:
    """A copy of the trained weights as they were at one step.

    Args:
        model: whose weights.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._copies: dict[str, torch.Tensor] = {}

    def keep(self) -> None:
        """Copy them, in place of what was kept before."""
        self._copies = {
            name: value.detach().to("cpu", copy=True)
            for name, value in self._model.named_parameters()
            if value.requires_grad
        }

    def restore(self) -> None:
        """Put the copy back; without one, nothing."""
        with torch.no_grad():
            for name, value in self._model.named_parameters():
                if name in self._copies:
                    value.copy_(self._copies[name])

    def write(self, checkpoint: Path) -> None:
        """Lay the copy beside a checkpoint."""
        if self._copies:
            save_file(self._copies, checkpoint / _FILE)

    def read(self, checkpoint: Path) -> None:
        """Take over what `write` left there."""
        if (checkpoint / _FILE).is_file():
            self._copies = load_file(checkpoint / _FILE)
