"""Rows to batches: padded, or packed back to back without a row seeing its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NotRequired, TypedDict

import torch
from trl import pack_dataset

from adapterops.train.labels import IGNORED, Row

if TYPE_CHECKING:
    from datasets import Dataset


def packed_rows(rows: Dataset, capacity: int) -> Dataset:
    """Packs of at most `capacity` tokens, with the lengths of their rows in `seq_lengths`.

    TRL's best-fit decreasing (Ding et al., "Fewer Truncations Improve Language Modeling",
    arXiv:2404.10830) wastes about 1 % on lengths as they occur. It cuts what is too long without a
    word, so nothing may be.

    Args:
        rows: `input_ids` and `labels`.
        capacity: tokens of a pack.

    Raises:
        ValueError: tokens would be lost.
    """
    lengths = [len(row) for row in rows["input_ids"]]
    if max(lengths) > capacity:
        raise ValueError(f"a row of {max(lengths)} tokens does not fit into a pack of {capacity}")
    packs = pack_dataset(rows, capacity, "bfd", {"batch_size": len(lengths)})
    packed = sorted(length for pack in packs["seq_lengths"] for length in pack)
    if packed != sorted(lengths):
        raise ValueError(
            f"packing turned {len(lengths)} rows of {sum(lengths)} tokens into {len(packed)} of"
            f" {sum(packed)}"
        )
    return packs


class Batch(TypedDict):
    """What a step goes over; lengths and places are described at `Collator`."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    attention_mask: NotRequired[torch.Tensor]  # of padded rows
    position_ids: NotRequired[torch.Tensor]  # of packed ones, like all that follows
    cu_seq_lens_q: NotRequired[torch.Tensor]
    cu_seq_lens_k: NotRequired[torch.Tensor]
    max_length_q: NotRequired[int]
    max_length_k: NotRequired[int]


def model_inputs(batch: Batch, device: torch.device) -> dict[str, object]:
    """What the network takes of a batch, on the device; `labels` are for Trainer to count."""
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name != "labels"
    }


@dataclass(frozen=True)
class Collator:
    """Batches of rows as the tensors that `AnswerTrainer` takes.

    Beside the model's own inputs they hold `labels`, from which Trainer counts the supervised
    tokens of a step, `positions`, where in the flattened hidden states a supervised token is
    predicted, and `targets`, which token that is.

    Args:
        pad_token_id: fills up.
        capacity: tokens of a pack; None for rows that are padded, one a line.
        variable_length: pass the borders of the rows as flash-attention kernels want them
            (`cu_seq_lens_q` and so on) instead of leaving them to be read from the position ids.
    """

    pad_token_id: int
    capacity: int | None = None
    variable_length: bool = False

    def __call__(self, rows: list[Row]) -> Batch:
        """One batch: shape [rows, longest row], or [1, rows × capacity] if packed."""
        return self._padded(rows) if self.capacity is None else self._packed(rows, self.capacity)

    def _padded(self, rows: list[Row]) -> Batch:
        width = max(len(row["input_ids"]) for row in rows)

        def filled(name: str, value: int) -> torch.Tensor:
            return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])

        labels = filled("labels", IGNORED)
        mask = torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        )
        positions, targets = _predictions(labels)
        return {
            "input_ids": filled("input_ids", self.pad_token_id),
            "attention_mask": mask,
            "labels": labels,
            "positions": positions,
            "targets": targets,
        }

    def _packed(self, packs: list[Row], capacity: int) -> Batch:
        # Always full: a constant shape keeps memory constant, and kernels are compiled once.
        size = capacity * len(packs)
        tokens = [token for row in packs for token in row["input_ids"]]
        labels = [label for row in packs for label in row["labels"]]
        lengths = [
            length for row in packs for length in row.get("seq_lengths", [len(row["input_ids"])])
        ]
        if rest := size - len(tokens):
            tokens += [self.pad_token_id] * rest
            labels += [IGNORED] * rest
            lengths.append(rest)
        borders = [0]
        for length in lengths:
            # The first token of a row is not predicted from the row before it.
            labels[borders[-1]] = IGNORED
            borders.append(borders[-1] + length)
        supervised = torch.tensor([labels])
        positions, targets = _predictions(supervised)
        batch: Batch = {
            "input_ids": torch.tensor([tokens]),
            # Anew with each row: transformers masks by that, and rotary embeddings count from it.
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
            "labels": supervised,
            "positions": positions,
            "targets": targets,
        }
        if self.variable_length:
            cumulative, longest = torch.tensor(borders, dtype=torch.int32), max(lengths)
            batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = cumulative
            batch["max_length_q"] = batch["max_length_k"] = longest
        return batch


def _predictions(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where supervised tokens are predicted (one before each, flattened), and which they are.

    Found here, on the host: to find them on a GPU, the host would have to wait for it.
    """
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    positions = (shifted != IGNORED).nonzero().flatten()
    return positions, shifted[positions]
