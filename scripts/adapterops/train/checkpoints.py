"""Checkpoints of one training key: sealed when whole, found again by the same command, and in S3 so that another runner finds them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from adapterops.command import error_console
from adapterops.documents import sha256_file, sha256_json, write_bytes
from adapterops.errors import InfrastructureError

if TYPE_CHECKING:
    from adapterops.store.objects import ObjectStore

_SEAL = "SHA256SUMS.json"
_FAILURES = 3
_STEP = re.compile(r"checkpoint-(\d+)")


class Checkpoints:
    """Checkpoints in `<directory>/<first 16 of the key>/checkpoint-<step>`, the newest two kept.

    Args:
        directory: of all keys.
        key: the training key; only its own checkpoints are ever resumed.
        store: a bucket in which they lie too, under `candidates/<key>/checkpoints/`, or None.
    """

    def __init__(self, directory: Path, key: str, store: ObjectStore | None = None) -> None:
        self.directory = directory / key[:16]
        self._root = directory
        self._prefix = f"candidates/{key}/checkpoints"
        self._store = store
        self._failures = 0

    def seal(self, step: int) -> None:
        """Record the digests of the files of a step, upload them, and remove older checkpoints.

        Raises:
            InfrastructureError: the store.
        """
        directory = self.directory / f"checkpoint-{step}"
        digests = {str(file.relative_to(directory)): sha256_file(file) for file in sorted(directory.rglob("*")) if file.is_file()}
        write_bytes(directory / _SEAL, (json.dumps(digests, indent=2) + "\n").encode())
        for older in self._local()[:-2]:
            shutil.rmtree(older)
        if self._store:
            # Named by content as well: a repeated step that came out differently must not meet an object that never changes.
            remote = f"{self._prefix}/{step:08d}-{sha256_json(digests)[:12]}"
            for name in digests:
                self._store.put_new(f"{remote}/{name}", directory / name)
            self._store.put_new(f"{remote}/{_SEAL}", directory / _SEAL, "application/json")
        self._failures = 0

    def failed(self, step: int, reason: str) -> None:
        """Count a checkpoint that could not be written; training goes on without, but not for ever.

        Raises:
            InfrastructureError: the third in a row.
        """
        shutil.rmtree(self.directory / f"checkpoint-{step}", ignore_errors=True)
        self._failures += 1
        error_console.print(f"checkpoint of step {step} failed: {reason}", markup=False, soft_wrap=True)
        if self._failures >= _FAILURES:
            raise InfrastructureError(
                f"{self._failures} checkpoints in a row failed ({reason}): an interruption would lose everything. Free space below "
                f"{self._root}, or mend the object store, and run the same command again."
            )

    def newest(self) -> Path | None:
        """The newest whole checkpoint, fetched from the store if that has a newer one; None if there is none."""
        found = next((path for path in reversed(self._local()) if _whole(path)), None)
        if self._store:
            step = _step(found) if found else -1
            for key in sorted(self._store.keys(f"{self._prefix}/"), reverse=True):
                if key.endswith(f"/{_SEAL}") and int(key[len(self._prefix) + 1 :].split("-")[0]) > step:
                    with contextlib.suppress(InfrastructureError):  # damaged: the one before it will do
                        return self._fetch(key)
        return found

    def clear(self) -> None:
        """Remove what lies here; the training is done."""
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._root.rmdir()  # only if no other key has any

    def _fetch(self, seal: str) -> Path:
        assert self._store
        fetched = self._store.get(seal)
        if fetched is None:
            raise InfrastructureError(f"{seal} vanished")
        digests: dict[str, str] = json.loads(fetched.content)
        step = int(seal[len(self._prefix) + 1 :].split("-", maxsplit=1)[0])
        target = self.directory / f"checkpoint-{step}"
        shutil.rmtree(target, ignore_errors=True)
        for name, digest in digests.items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise InfrastructureError(f"{seal} names a file outside the checkpoint")
            content = self._store.get(seal.removesuffix(_SEAL) + name)
            if content is None:
                raise InfrastructureError(f"{seal} names a file that is missing")
            write_bytes(target / name, content.content)
            if sha256_file(target / name) != digest:
                raise InfrastructureError(f"{seal}: {name} is damaged")
        write_bytes(target / _SEAL, fetched.content)
        return target

    def _local(self) -> list[Path]:
        paths = [path for path in self.directory.glob("checkpoint-*") if _STEP.fullmatch(path.name)]
        return sorted(paths, key=_step)


def _step(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    return int(match.group(1)) if match else -1


def _whole(path: Path) -> bool:
    try:
        digests: dict[str, str] = json.loads((path / _SEAL).read_text(encoding="utf-8"))
        return bool(digests) and all(sha256_file(path / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False
