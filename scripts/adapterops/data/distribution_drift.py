"""What a change does to a file: rows added, removed, changed, and shifts in their nature."""

from __future__ import annotations

import collections
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from adapterops.data.normal import fingerprint
from adapterops.data.reader import read_blocks
from adapterops.data.scan import Job, Scanned, scan
from adapterops.diagnostics import Finding
from adapterops.environment import child_environment
from adapterops.errors import UsageError
from adapterops.schemas import ROOT
from adapterops.shapes.data_report import Drift, Figures

# Shifts below these are noise of an ordinary week's change.
_LENGTH_SHIFT = 0.2  # of the mean number of characters
_MIX_SHIFT = 0.1  # total variation distance of languages or tasks
_REFUSAL_SHIFT = 0.05


class Base:
    """Files of a git revision in a temporary directory, which leaving the context removes.

    Args:
        revision: a commit, branch or tag.
        root: the repository.

    Raises:
        UsageError: not a repository, or no such revision.
    """

    def __init__(self, revision: str, root: Path = ROOT) -> None:
        self.revision = revision
        self._root = root
        self._files: dict[Path, Path | None] = {}
        if (
            revision.startswith("-")
            or _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") is None
        ):
            raise UsageError(
                f"--base or --changed-since `{revision}`: git knows no such commit here. In a"
                " shallow clone, fetch it first."
            )
        self._directory = tempfile.TemporaryDirectory()

    def __enter__(self) -> Base:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._directory.cleanup()

    def file(self, path: Path) -> Path | None:
        """The file as it was; None if it did not exist or lies outside the repository."""
        if path not in self._files:
            self._files[path] = None
            resolved, root = path.resolve(), self._root.resolve()
            if resolved.is_relative_to(root):
                content = _git(
                    root, "show", f"{self.revision}:{resolved.relative_to(root).as_posix()}"
                )
                if content is not None:
                    copy = Path(self._directory.name) / f"{len(self._files)}-{path.name}"
                    copy.write_bytes(content)
                    self._files[path] = copy
        return self._files[path]

    def rows(self, path: Path) -> npt.NDArray[np.uint64]:
        """Sorted fingerprints of the texts of the rows that the file had."""
        former = self.file(path)
        if former is None or former.stat().st_size == 0:
            return np.zeros(0, np.uint64)
        texts = (
            fingerprint(entry.text)
            for block in read_blocks(former)
            if not isinstance(block, Finding)
            for entry in block.entries(former)
            if not isinstance(entry, Finding)
        )
        return np.sort(np.fromiter(texts, dtype=np.uint64))


def drift(base: Base, job: Job, now: Scanned) -> Drift:
    """Rows added, removed and changed against the base, and both sides' figures.

    Rows are told apart by id, else by content.
    """
    former = base.file(job.path)
    nothing = np.zeros(0, np.uint64)
    before = (
        scan(replace(job, path=former, coverage=None, base_rows=nothing))
        if former and former.stat().st_size
        else None
    )
    known = _by_identity(before) if before else {}
    current = _by_identity(now)
    return {
        "added": len(current.keys() - known.keys()),
        "removed": len(known.keys() - current.keys()),
        "changed": sum(current[key] != known[key] for key in current.keys() & known.keys()),
        "before": _figures(before) if before else None,
        "after": _figures(now),
    }


def drift_findings(path: Path, change: Drift | None) -> list[Finding]:
    """A hint for each shift that is more than an ordinary week's."""
    before, after = (change["before"], change["after"]) if change else (None, None)
    if not before or not after or not before["rows"] or not after["rows"]:
        return []
    found = []
    length, former = after["mean_characters"], before["mean_characters"]
    if former and abs(length / former - 1) > _LENGTH_SHIFT:
        found.append(f"rows are {length:.0f} characters long on average, before {former:.0f}.")
    found += _mix_shift("languages", before["languages"], after["languages"])
    found += _mix_shift("tasks", before["tasks"], after["tasks"])
    if abs(after["refusals"] - before["refusals"]) > _REFUSAL_SHIFT:
        found.append(
            f"{after['refusals']:.0%} of the answers are refusals, before {before['refusals']:.0%}."
        )
    return [Finding(str(path), 1, "H701", message, "hint") for message in found]


def _mix_shift(what: str, before: dict[str, float], after: dict[str, float]) -> list[str]:
    moves = {key: abs(after.get(key, 0) - before.get(key, 0)) for key in {*after, *before}}
    distance = sum(moves.values()) / 2
    if distance <= _MIX_SHIFT:
        return []
    most = max(moves, key=lambda key: moves[key])
    return [
        f"the mix of {what} shifted by {distance:.0%}; most of all `{most}`:"
        f" {after.get(most, 0):.0%}, before {before.get(most, 0):.0%}."
    ]


def _by_identity(scanned: Scanned) -> dict[int, int]:
    columns = scanned.columns
    return {
        (identity or source): source
        for identity, source in zip(columns["id"].tolist(), columns["source"].tolist(), strict=True)
    }


def _figures(scanned: Scanned) -> Figures:
    rows = max(scanned.rows, 1)
    detected = collections.Counter(
        language or "none" for language in scanned.columns["language"].tolist()
    )
    return {
        "rows": scanned.rows,
        "mean_characters": round(float(scanned.columns["characters"].sum()) / rows, 1),
        "languages": {key: round(count / rows, 4) for key, count in detected.most_common()},
        "tasks": {key: round(count / rows, 4) for key, count in scanned.tasks.most_common()},
        "refusals": round(int(scanned.columns["refused"].sum()) / rows, 4),
    }


def _git(root: Path, *arguments: str) -> bytes | None:
    """Standard output, or None if git fails."""
    result = subprocess.run(
        ["git", "-C", str(root), *arguments],  # noqa: S607
        capture_output=True,
        check=False,
        env=child_environment(),
    )  # git of the runner
    return result.stdout if result.returncode == 0 else None
