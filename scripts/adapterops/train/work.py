"""How many tokens of work a training is: what its price is counted from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from adapterops.errors import RejectedError
from adapterops.shapes.recipe import EarlyStopping, Training
from adapterops.train.encode import EncodedData
from adapterops.train.labels import Row

# The speed of padded rows was measured where half of a batch was padding
# (docs/measurements/training.md).
_MEASURED_PADDING = 2.0
_LEAST = 256  # tokens that a batch takes the time of at least: all weights are read for it
# Of a training step: a look at held-back rows has no backward pass, which costs twice the forward.
_FORWARD = 1 / 3


def work_tokens(training: Training, encoded: EncodedData) -> float:
    """What a training costs, in tokens of the kind that its speed was measured in.

    These are the real tokens of all epochs, unless something is unusual: rows of very unlike
    length, whose batches are little but padding; batches of a few tokens, for which the GPU reads
    all weights too; and looks at held-back rows that cost more than the steps between them.

    Args:
        training: settings of the recipe.
        encoded: on what.

    Raises:
        RejectedError: nothing is left to train on.
    """
    lengths = list(map(len, encoded.input_ids))
    epochs = training["num_train_epochs"]
    padding = max(1.0, padded_share(training, lengths) / _MEASURED_PADDING)
    steps = _batches(training, lengths) * epochs
    stopping = training.get("early_stopping")
    looks = _look_tokens(training, stopping, encoded) if stopping else 0
    return float(max(sum(lengths) * epochs * padding, steps * _LEAST) + _FORWARD * looks)


def _look_tokens(training: Training, stopping: EarlyStopping, encoded: EncodedData) -> int:
    """Tokens of all looks at held-back rows."""
    trained, held = (
        list(map(_length, part)) for part in hold_back(encoded.rows(), stopping["share"])
    )
    size = training["per_device_train_batch_size"]
    updates = math.ceil(
        _batches(training, trained) / training["gradient_accumulation_steps"]
    ) * math.ceil(training["num_train_epochs"])
    if training["packing"]:
        seen = _batches(training, held) * size * training["max_length"]
    else:
        batches = (held[start : start + size] for start in range(0, len(held), size))
        seen = sum(len(batch) * max(batch) for batch in batches)
    return updates // stopping["every_steps"] * max(seen, _LEAST * _batches(training, held))


def _length(row: Row) -> int:
    return len(row["input_ids"])


def _batches(training: Training, lengths: Sequence[int]) -> int:
    """Micro-batches of an epoch, at most."""
    units: float = len(lengths)
    if training["packing"]:  # packs are at least half full, but for the last
        units = min(units, 2 * sum(lengths) / training["max_length"] + 1)
    return math.ceil(units / training["per_device_train_batch_size"])


def padded_share(training: Training, lengths: Sequence[int]) -> float:
    """Tokens of the batches for each real one: 2 where half is padding, 1 for packed rows."""
    if training["packing"] or training["train_sampling_strategy"] == "group_by_length":
        return 1.0
    size, rows = training["per_device_train_batch_size"], len(lengths)
    # With probability (n / rows) ** size, none of `size` rows is longer than the n-th shortest.
    longest: float = sum(
        length * ((number / rows) ** size - ((number - 1) / rows) ** size)
        for number, length in enumerate(sorted(lengths), start=1)
    )
    return longest * rows / sum(lengths)


def hold_back(rows: list[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and a share held back to judge by, chosen by content and not by place.

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
