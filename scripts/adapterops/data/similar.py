"""Near duplicates and contamination by character 5-grams, vectorised over many rows.

Similarity is the Jaccard index of two texts' sets of 5-grams, in their loose form. Candidates come
from MinHash and locality sensitive hashing (Leskovec, Rajaraman, Ullman: Mining of Massive
Datasets, ch. 3) and are verified exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import rensa

Hashes = npt.NDArray[np.uint64]

_K = 5  # characters a shingle
# A pair with J = 0.9 is missed once in 9,000 times, with 0.85 once in 160, with 0.8 once in 20; one
# with J = 0.3 becomes a candidate once in a thousand times, so that unrelated rows of one domain
# are hardly ever compared.
_BANDS, _ROWS_PER_BAND = 16, 8
_PERMUTATIONS = _BANDS * _ROWS_PER_BAND
_SEED = 20241123
# 5-grams in more evaluation rows than this are wording of the task, not of the row (GPT-3, appendix
# C)
_STOP_SHARE = 0.05
_FEWEST_GRAMS = 8
_FILTER_MASK = np.uint64(
    (1 << 22) - 1
)  # a bit map of 4 MB tells at once that most grams stand in no evaluation prompt
_CELLS = 2_000_000  # pairs of a training text and an evaluation prompt that are counted at a time


@dataclass(frozen=True)
class Shingles:
    """Hashes of the 5-grams of many texts, one after the other; text `i` has
    `hashes[offsets[i]:offsets[i + 1]]`.
    """

    hashes: Hashes
    offsets: npt.NDArray[np.uint64]


def shingle(texts: list[str]) -> Shingles:
    """5-grams of texts in loose form; a shorter text is one shingle, filled up with blanks."""
    padded = [text if len(text) >= _K else text.ljust(_K) for text in texts]
    lengths = np.fromiter(map(len, padded), dtype=np.int64, count=len(padded))
    points = np.frombuffer(
        "".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32
    ).astype(np.uint64)
    multiplier = np.uint64(0x9E3779B97F4A7C15)
    count = len(points) - _K + 1
    hashes = np.zeros(max(count, 0), dtype=np.uint64)
    for position in range(_K):
        hashes = hashes * multiplier + points[position : position + count]
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(32)
    ends = np.cumsum(lengths)
    inside = np.ones(len(hashes), dtype=bool)
    for back in range(1, _K):  # windows that reach over the end of a text
        inside[(ends[:-1] - back)] = False
    offsets = np.concatenate([[0], np.cumsum(lengths - (_K - 1))]).astype(np.uint64)
    return Shingles(hashes[inside], offsets)


@dataclass(frozen=True)
class Signatures:
    """MinHash signatures, reduced to what the search needs: 256 bytes a text.

    Args:
        bands: one hash for each band, shape (texts, 16).
        sketch: the lowest byte of each of the 128 minima, shape (texts, 128) (b-bit minwise
            hashing, Li and König 2010).
    """

    bands: Hashes
    sketch: npt.NDArray[np.uint8]


def no_signatures() -> Signatures:
    """Signatures of no texts."""
    return Signatures(np.zeros((0, _BANDS), np.uint64), np.zeros((0, _PERMUTATIONS), np.uint8))


def join(parts: list[Signatures]) -> Signatures:
    """Signatures of several lots of texts, one after the other."""
    return Signatures(
        np.concatenate([no_signatures().bands, *(part.bands for part in parts)]),
        np.concatenate([no_signatures().sketch, *(part.sketch for part in parts)]),
    )


def signatures(shingles: Shingles) -> Signatures:
    """The signature of each text."""
    count = len(shingles.offsets) - 1
    if count == 0:
        return no_signatures()
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        shingles.hashes, shingles.offsets, num_perm=_PERMUTATIONS, seed=_SEED
    )
    flat = np.fromiter(
        itertools.chain.from_iterable(matrix.to_rows()),
        dtype=np.uint64,
        count=count * _PERMUTATIONS,
    )
    banded = flat.reshape(count, _BANDS, _ROWS_PER_BAND)
    mixed = np.zeros((count, _BANDS), dtype=np.uint64)
    for row in range(_ROWS_PER_BAND):
        mixed = (mixed ^ banded[:, :, row]) * np.uint64(0x100000001B3)
        mixed ^= mixed >> np.uint64(31)
    return Signatures(mixed, flat.astype(np.uint8).reshape(count, _PERMUTATIONS))


def candidates(found: Signatures, threshold: float) -> npt.NDArray[np.int64]:
    """Pairs (earlier, later) worth comparing, shape (pairs, 2).

    Texts that agree in a band: each with the first of its group, and neighbours with each other,
    which connects a group without comparing all with all. Of these, the pairs whose signatures come
    near the threshold: four standard errors below it.
    """
    pairs = []
    for column in range(found.bands.shape[1]):
        order = np.argsort(found.bands[:, column], kind="stable")
        ranked = found.bands[order, column]
        same = (
            np.concatenate([[False], ranked[1:] == ranked[:-1]])
            if len(ranked)
            else np.zeros(0, bool)
        )
        members = np.flatnonzero(same)
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(ranked))))
        pairs.append(np.stack([order[first[members]], order[members]], axis=1))
        pairs.append(np.stack([order[members - 1], order[members]], axis=1))
    distinct = (
        np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
        if pairs
        else np.zeros((0, 2), np.int64)
    )
    least = threshold - 4 * (threshold * (1 - threshold) / _PERMUTATIONS) ** 0.5
    kept = [
        part[(found.sketch[part[:, 0]] == found.sketch[part[:, 1]]).mean(axis=1) >= least]
        for start in range(0, len(distinct), 100_000)
        if len(part := distinct[start : start + 100_000])
    ]
    return np.concatenate(kept) if kept else np.zeros((0, 2), np.int64)


def jaccard(first: set[str], second: set[str]) -> float:
    """Size of the intersection over size of the union."""
    common = len(first & second)
    return common / (len(first) + len(second) - common) if first or second else 1.0


def gram_set(loose: str) -> set[str]:
    """The 5-grams of a text in loose form."""
    return {loose[start : start + _K] for start in range(max(len(loose) - _K + 1, 1))}


class Clusters:
    """Union-find over rows; the root of a cluster is its first row."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def root(self, row: int) -> int:
        """The first row of the cluster."""
        path = []
        while (parent := self._parent.get(row, row)) != row:
            path.append(row)
            row = parent
        for step in path:
            self._parent[step] = row
        return row

    def join(self, first: int, second: int) -> None:
        """Make one cluster of two."""
        one, two = sorted((self.root(first), self.root(second)))
        if one != two:
            self._parent[two] = one

    def copies(self) -> dict[int, int]:
        """Every row that is not the first of its cluster, with that first row."""
        return {row: self.root(row) for row in self._parent if self.root(row) != row}


def near_duplicates(
    found: Signatures, loose_text: Callable[[int], str], clusters: Clusters, threshold: float
) -> dict[int, tuple[int, float]]:
    """Join rows whose similarity is at least `threshold` into `clusters`.

    Args:
        found: from `signatures`.
        loose_text: the loose form of a row.
        clusters: holds the exact copies already, which are not compared again.
        threshold: Jaccard index.

    Returns:
        For each later row of a pair that was joined: the earlier row and the similarity.
    """
    joined: dict[int, tuple[int, float]] = {}
    for earlier, later in candidates(found, threshold).tolist():
        if clusters.root(earlier) == clusters.root(later):
            continue
        similarity = jaccard(gram_set(loose_text(earlier)), gram_set(loose_text(later)))
        if similarity >= threshold:
            clusters.join(earlier, later)
            joined[later] = (earlier, similarity)
    return joined


class Coverage:
    """How much of each evaluation prompt stands in a single training row.

    5-grams that many evaluation prompts share are left out. A prompt with fewer than eight grams
    left is judged by exact comparison alone.
    """

    def __init__(self, prompts: list[str]) -> None:
        shingles = shingle(prompts)
        owners = np.repeat(np.arange(len(prompts)), np.diff(shingles.offsets.astype(np.int64)))
        pairs = (
            np.unique(np.stack([shingles.hashes, owners.astype(np.uint64)], axis=1), axis=0)
            if prompts
            else np.zeros((0, 2), np.uint64)
        )
        grams, counts = np.unique(pairs[:, 0], return_counts=True)
        stop = grams[counts > max(10, _STOP_SHARE * len(prompts))]
        pairs = pairs[~np.isin(pairs[:, 0], stop)]
        self._grams, self._starts = np.unique(pairs[:, 0], return_index=True)
        self._ends = np.append(self._starts[1:], len(pairs)).astype(np.int64)
        self._owners = pairs[:, 1].astype(np.int64)
        self._totals = np.bincount(self._owners, minlength=len(prompts))
        self._rows = len(prompts)
        self._filter = np.zeros(int(_FILTER_MASK) + 1, dtype=bool)
        self._filter[self._grams & _FILTER_MASK] = True

    def of(self, shingles: Shingles, threshold: float) -> list[tuple[int, int, float]]:
        """(training text, evaluation prompt, coverage) where coverage is at least `threshold`."""
        if not len(self._grams) or not len(shingles.hashes):
            return []
        maybe = np.flatnonzero(self._filter[shingles.hashes & _FILTER_MASK])
        hashes = shingles.hashes[maybe]
        place = np.minimum(np.searchsorted(self._grams, hashes), len(self._grams) - 1)
        equal = self._grams[place] == hashes
        hit, place = maybe[equal], place[equal]
        rows = (
            np.searchsorted(shingles.offsets, hit.astype(np.uint64), side="right").astype(np.int64)
            - 1
        )
        found: list[tuple[int, int, float]] = []
        lot = max(1, _CELLS // self._rows)
        for first in range(0, len(shingles.offsets) - 1, lot):
            low, high = np.searchsorted(rows, [first, first + lot])
            found += self._of(rows[low:high], place[low:high], first, threshold)
        return found

    def _of(
        self, rows: npt.NDArray[np.int64], place: npt.NDArray[np.int64], base: int, threshold: float
    ) -> list[tuple[int, int, float]]:
        """A lot of training texts; `rows` ascends and begins at `base`."""
        if not len(rows):
            return []
        # Counting a gram as often as it stands in a row is fast and never too little; where it
        # suffices, each is counted once.
        repeats = self._ends[place] - self._starts[place]
        within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        owners = self._owners[np.repeat(self._starts[place], repeats) + within]
        counts = np.bincount(np.repeat(rows - base, repeats) * self._rows + owners)
        needed = np.where(self._totals >= _FEWEST_GRAMS, threshold * self._totals, np.inf)
        prompts = np.arange(len(counts)) % self._rows
        found = []
        for cell in np.flatnonzero(counts >= needed[prompts]).tolist():
            row, prompt = cell // self._rows + base, cell % self._rows
            low, high = np.searchsorted(rows, [row, row + 1])
            grams = np.unique(place[low:high])
            share = sum(
                prompt in self._owners[self._starts[gram] : self._ends[gram]]
                for gram in grams.tolist()
            ) / int(self._totals[prompt])
            if share >= threshold:
                found.append((row, prompt, share))
        return found
