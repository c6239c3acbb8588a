"""How much an answer reads like a refusal: a logistic regression on hashed pieces of its text.

The weights are data (`data/labelled/refusal-weights.safetensors`, its card beside it), fitted by
`tests/benchmarks/refusals.py`. Sums are of integers, so that every machine gets the same score to
the last bit.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from adapterops.errors import UsageError
from adapterops.schemas import ROOT

WEIGHTS = ROOT / "data" / "labelled" / "refusal-weights.safetensors"
BUCKETS = 1 << 16
_LONGEST_PIECE = 5  # characters; the shortest has two
_HEAD = 400  # characters: where a refusal is said
_TAIL = 120  # ... or where an answer turns away in its last sentence
_LEAD = 200  # of the first two sentences, which count once more
_SENTENCE_END = re.compile(r"(?<=[.!?。])\s+")
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True)
class Weights:
    """One weight for each bucket, as integers.

    Args:
        values: `int16`, `BUCKETS` of them.
        scale: what one unit is worth.
        bias: added to each score.
    """

    values: npt.NDArray[np.int16]
    scale: float
    bias: float


def score(text: str, weights: Weights | None = None) -> float:
    """Log-odds that an answer declines; above zero more likely than not, on answers like those it
    was fitted to.

    Args:
        text: of `plain_answer.plain`.
        weights: None takes those of the repository.

    Raises:
        UsageError: the weights are missing or damaged.
    """
    weights = weights or load_weights()
    found = buckets(text)
    total = int(weights.values[found].sum(dtype=np.int64))
    return total * weights.scale / math.sqrt(max(1, len(found))) + weights.bias


def buckets(text: str) -> npt.NDArray[np.int64]:
    """The buckets that the pieces of an answer fall into, sorted, each once."""
    text = text.lower()
    head, tail = text[:_HEAD], text[max(_HEAD, len(text) - _TAIL) :]
    lead = " ".join(_SENTENCE_END.split(head, 2)[:2])[:_LEAD]
    parts = [_hashes(f" {head} ", 1), _hashes(f"^{lead}", 3)]
    if tail:
        parts.append(_hashes(f" {tail} ", 2))
    mixed = np.concatenate(parts)
    return np.unique(mixed & np.uint64(BUCKETS - 1)).astype(np.int64)


def _hashes(text: str, place: int) -> npt.NDArray[np.uint64]:
    """Hashes of every piece of two to five characters; `place` keeps equal pieces of head, tail and
    lead apart.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)
    rolling = codes + np.uint64(1)
    found = []
    for length in range(2, min(_LONGEST_PIECE, len(codes)) + 1):
        rolling = rolling[:-1] * _PRIME + codes[length - 1 :]
        mixed = rolling + np.uint64(place * 1000 + length)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIXER
        found.append((mixed ^ (mixed >> np.uint64(32))) >> np.uint64(7))
    return np.concatenate(found) if found else np.zeros(0, np.uint64)


@functools.cache
def load_weights(path: Path = WEIGHTS) -> Weights:
    """The weights.

    Raises:
        UsageError: the file is missing or not what it should be.
    """
    try:
        with safe_open(path, framework="np") as file:
            values: npt.NDArray[Any] = file.get_tensor("weights")
            about = file.metadata() or {}
        scale, bias = float(about["scale"]), float(about["bias"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UsageError(
            f"{path}: the refusal detector's weights cannot be read ({error!r}). Restore the file."
        ) from None
    if (
        values.dtype != np.int16
        or values.shape != (BUCKETS,)
        or not math.isfinite(scale)
        or not math.isfinite(bias)
    ):
        raise UsageError(
            f"{path}: expected {BUCKETS} weights of 16 bits, a scale and a bias. Restore the file."
        )
    return Weights(values, scale, bias)
