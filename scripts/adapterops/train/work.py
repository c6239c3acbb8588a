"""How much of a training passes through the network: what its price is counted from, and what a
recipe can make of few tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from adapterops.errors import RejectedError
from adapterops.train.encode import EncodedData
from adapterops.train.labels import Row

# Padded rows were measured on batches of which half was padding
# (docs/measurements/training.md): so much is in the speed already.
_MEASURED_PADDING = 2.0
_LEAST = 256  # tokens that a batch takes the time of at least: all weights are read for it
# Of a training step: a look at held-back rows has no backward pass, which costs twice the forward.
_FORWARD = 1 / 3


def work_tokens(training: dict[str, Any], encoded: EncodedData) -> float:
    """Tokens that a training costs, in those that its speed was measured in: real ones of all
    epochs, where nothing is unusual.

    Unusual is: rows of very unlike length, whose batches are little but padding; batches of a few
    tokens, for which the GPU reads all weights too; and looks at held-back rows that cost more than
    the steps between them.

    Args:
        training: settings of the recipe.
        encoded: on what.

    Raises:
        RejectedError: nothing is left to train on.
    """
    lengths = list(map(len, encoded.input_ids))
    epochs, size = training["num_train_epochs"], training["per_device_train_batch_size"]
    padding = max(1.0, padded_share(training, lengths) / _MEASURED_PADDING)
    steps = _batches(training, lengths) * epochs
    stopping = training.get("early_stopping")
    looks = 0.0
    if stopping:
        trained, held = (
            list(map(_length, part)) for part in hold_back(encoded.rows(), stopping["share"])
        )
        updates = math.ceil(
            _batches(training, trained) / training["gradient_accumulation_steps"]
        ) * math.ceil(epochs)
        if training["packing"]:
            seen = _batches(training, held) * size * training["max_length"]
        else:
            seen = sum(
                len(batch) * max(batch)
                for batch in (held[start : start + size] for start in range(0, len(held), size))
            )
        looks = updates // stopping["every_steps"] * max(seen, _LEAST * _batches(training, held))
    return float(max(sum(lengths) * epochs * padding, steps * _LEAST) + _FORWARD * looks)


def _length(row: Row) -> int:
    return len(row["input_ids"])


def _batches(training: dict[str, Any], lengths: Sequence[int]) -> int:
    """Micro-batches of an epoch, at most."""
    units: float = len(lengths)
    if training["packing"]:
        units = min(
            units, 2 * sum(lengths) / training["max_length"] + 1
        )  # packs are at least half full, but for the last
    return math.ceil(units / int(training["per_device_train_batch_size"]))


def padded_share(training: dict[str, Any], lengths: Sequence[int]) -> float:
    """Tokens of the batches, by their real ones: 2 where half of them is padding. Packs and rows of
    like length have next to none.
    """
    if training["packing"] or training["train_sampling_strategy"] == "group_by_length":
        return 1.0
    size, rows = int(training["per_device_train_batch_size"]), len(lengths)
    # The longest of `size` rows is at most the n-th shortest one of all with probability (n / rows)
    # ** size.
    longest: float = sum(
        length * ((number / rows) ** size - ((number - 1) / rows) ** size)
        for number, length in enumerate(sorted(lengths), start=1)
    )
    return longest * rows / sum(lengths)


def hold_back(rows: list[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and a share held back to judge by; the content of a row decides, not its
    place.

    Raises:
        RejectedError: nothing is left to train on.
    """

    def key(row: Row) -> str:
        return hashlib.sha256(repr(row["input_ids"]).encode()).hexdigest()

    count = max(1, round(len(rows) * share))
    held = set(sorted(map(key, rows))[:count])
    kept = [row for row in rows if key(row) not in held]
    if not kept:
        raise RejectedError(
            f"training.early_stopping.share {share} holds back all of {len(rows)} rows, for at"
            " least one is held back, and its equals with it. Add rows, or remove early_stopping"
            " from the recipe."
        )
    return kept, [row for row in rows if key(row) in held]
