"""Answers that were generated before, by adapter, prompt, decoding and engine."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from adapterops.documents import sha256_json
from adapterops.engine.answers import Answer, Messages
from adapterops.errors import UsageError

_TABLE = (
    "CREATE TABLE IF NOT EXISTS response"
    " (key TEXT PRIMARY KEY, session TEXT NOT NULL, at REAL NOT NULL, answer TEXT NOT NULL)"
)


class Responses:
    """A file of answers; a context manager.

    An answer is on disk when it was given, so that an interrupted run goes on from there.

    Args:
        path: the SQLite file.
        fresh: take none of the answers that are there; for a forced evaluation.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"{path} is not a file of answers ({error}). Remove it; the answers are generated"
                " again."
            ) from None
        self._fresh = fresh
        self._session = uuid.uuid4().hex
        self._started = time.perf_counter()

    def __enter__(self) -> Responses:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    def start(self) -> None:
        """A new session of requests begins now; its wall time is what throughput is measured on."""
        self._session, self._started = uuid.uuid4().hex, time.perf_counter()

    def find(self, keys: list[str]) -> dict[int, Answer]:
        """The answers that are known, by position."""
        if self._fresh:
            return {}
        rows = (
            (i, self._db.execute("SELECT answer FROM response WHERE key = ?", (key,)).fetchone())
            for i, key in enumerate(keys)
        )
        return {i: Answer(**json.loads(row[0])) for i, row in rows if row}

    def keep(self, key: str, answer: Answer) -> None:
        """Keep one answer; one that failed is not kept."""
        if answer.error is None:
            at = time.perf_counter() - self._started
            content = json.dumps(dataclasses.asdict(answer), ensure_ascii=False)
            self._db.execute(
                "INSERT OR REPLACE INTO response VALUES (?, ?, ?, ?)",
                (key, self._session, at, content),
            )

    def throughput(self, keys: list[str]) -> tuple[int, float]:
        """Tokens and wall seconds of the session that gave most of these answers.

        A resumed rest would not fill the engine.
        """
        sessions: dict[str, list[tuple[float, int]]] = {}
        for key in keys:
            row = self._db.execute(
                "SELECT session, at, answer FROM response WHERE key = ?", (key,)
            ).fetchone()
            if row:
                sessions.setdefault(row[0], []).append((row[1], json.loads(row[2])["tokens"]))
        if not sessions:
            return 0, 0.0
        largest = max(sessions.values(), key=len)
        return sum(tokens for _, tokens in largest), max(at for at, _ in largest)


def response_key(scope: Mapping[str, object], messages: Messages) -> str:
    """What determines an answer: `scope` names adapter, base model, decoding and engine."""
    return sha256_json({"scope": scope, "messages": messages})
