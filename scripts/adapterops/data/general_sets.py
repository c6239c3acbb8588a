"""The general sets: rows and texts of no adapter's domain, which say what an adapter lost."""

from __future__ import annotations

from pathlib import Path

from adapterops.data.reader import Row, load_rows
from adapterops.documents import sha256_file
from adapterops.errors import RejectedError
from adapterops.schemas import repository_path
from adapterops.shapes.eval_results import GeneralFile, GeneralSets
from adapterops.shapes.eval_row import EvalRow
from adapterops.specs.adapter import General


def load_general(general: General) -> tuple[list[Row[EvalRow]], list[Row[EvalRow]]]:
    """The rows and the texts that are asked; a text is the `expected_output` of its row.

    Raises:
        UsageError: a file cannot be read.
        RejectedError: a row breaks its schema, or should be refused.
    """
    rows = [row for path in general.rows for row in _asked(path, general.rows_each)]
    texts = [row for path in general.texts for row in _asked(path, general.texts_each)]
    wrong = next((row for row in rows if row.value.get("should_refuse")), None)
    if wrong:
        files = ", ".join(map(repository_path, general.rows))
        raise RejectedError(
            f"general row {wrong.id} should be refused ({files}). A general set holds harmless"
            " rows; move it to the adapter's own evaluation file."
        )
    return rows, texts


def described(general: General) -> GeneralSets:
    """For the results: each file with its digest, its rows, and how many of them are asked."""
    return {
        "rows": [_described(path, general.rows_each) for path in general.rows],
        "texts": [_described(path, general.texts_each) for path in general.texts],
    }


def spread(count: int, wanted: int | None) -> list[int]:
    """Positions of `wanted` of `count` rows, spread evenly: a fixed rule, so that nobody picks.

    The shipped sets mix their tasks evenly, so that such a sample has all of them in their shares.
    """
    taken = count if wanted is None else min(wanted, count)
    return [i * count // taken for i in range(taken)]


def _asked(path: Path, wanted: int | None) -> list[Row[EvalRow]]:
    rows = load_rows(path, "eval")
    return [rows[position] for position in spread(len(rows), wanted)]


def _described(path: Path, wanted: int | None) -> GeneralFile:
    rows = len(load_rows(path, "eval"))
    asked = len(spread(rows, wanted))
    return {
        "path": repository_path(path),
        "sha256": sha256_file(path),
        "rows": rows,
        "asked": asked,
    }
