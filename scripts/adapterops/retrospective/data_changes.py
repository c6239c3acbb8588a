"""How the data grew: rows of every data file at both ends of the week, by Git."""

from __future__ import annotations

import datetime
import subprocess
import tempfile
from pathlib import Path

from adapterops.data.reader import Block, Entry, read_blocks
from adapterops.environment import child_environment
from adapterops.retrospective.section import Section

_FOLDERS = ("data/training", "data/eval")


def data_growth(root: Path, since: datetime.datetime, until: datetime.datetime) -> Section:
    """Rows before and after, also of files that came or went."""
    before, now = _commit_before(root, since), _commit_before(root, until)
    old, new = _files(root, before), _files(root, now)
    rows = []
    for name in sorted(old | new):
        rows_before = _rows(root, old[name]) if name in old else 0
        rows_now = rows_before
        if old.get(name) != new.get(name):
            rows_now = _rows(root, new[name]) if name in new else 0
        what = " (added)" if name not in old else " (removed)" if name not in new else ""
        rows.append((name, str(rows_before), str(rows_now), f"{rows_now - rows_before:+d}{what}"))
    note = "" if before else "Git knows no commit from before the week; it is counted from nothing."
    return Section("Data", ("file", "rows before", "rows now", "growth"), rows, note)


def _commit_before(root: Path, when: datetime.datetime) -> str:
    return _git(root, "rev-list", "-1", f"--before={when.isoformat()}", "HEAD").decode().strip()


def _files(root: Path, commit: str) -> dict[str, str]:
    """The id of each data file's content in a commit."""
    listed = _git(root, "ls-tree", "-r", "-z", commit, "--", *_FOLDERS).decode() if commit else ""
    entries = [entry.partition("\t") for entry in listed.split("\0") if entry]
    return {
        name: described.split()[2]
        for described, _, name in entries
        if name.endswith((".jsonl", ".json"))
    }


def _rows(root: Path, content: str) -> int:
    """Rows as the data gate reads them: lines of JSONL but blank ones, or elements of an array."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(_git(root, "cat-file", "blob", content))
        file.flush()
        path = Path(file.name)
        blocks = [block for block in read_blocks(path) if isinstance(block, Block)]
        return sum(isinstance(entry, Entry) for block in blocks for entry in block.entries(path))


def _git(root: Path, *command: str) -> bytes:
    """What Git says; nothing where it fails: the report needs no repository."""
    return subprocess.run(
        ["git", *command],  # noqa: S607
        cwd=root,
        capture_output=True,
        check=False,
        env=child_environment(),
    ).stdout
