"""Checkpoints of one training key: sealed when whole, kept here and in S3 for other runners."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterops.command import error_console
from adapterops.documents import new_directory, sha256_file, sha256_json, write_bytes
from adapterops.errors import AdapterOpsError, InfrastructureError, RejectedError
from adapterops.schemas import schema_problems
from adapterops.shapes.checkpoint_seal import CheckpointSeal, File
from adapterops.store.incoming import inner
from adapterops.store.objects import DamagedError
from adapterops.store.signed import SignedDocument, check_signature, parse, write_once

if TYPE_CHECKING:
    from adapterops.signing import Signer, Trust
    from adapterops.store.objects import ObjectStore

_SEAL = "seal.json"
_FAILURES = 3
_KEPT = 2
_LOOKED_AT = 20  # seals, before a training starts anew
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError)  # what reading no seal raises
_STEP = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Remote:
    """Where checkpoints lie for other machines.

    Args:
        store: the bucket.
        signer: who signs each; None leaves them unsigned.
        trust: whose signature one must carry to be gone on from; None asks for none.
        renew: called before each use of the store: its credentials may end sooner than a training.
        until_kept: whether they stay when the training is done, until `candidate.py keep` has the
            adapter.
    """

    store: ObjectStore
    signer: Signer | None = None
    trust: Trust | None = None
    renew: Callable[[], None] = lambda: None
    until_kept: bool = False


class Checkpoints:
    """The newest two checkpoints of `<directory>/<first 16 of the key>/rung-<n>/checkpoint-<step>`.

    Args:
        directory: of all keys.
        key: the training key; only its own checkpoints are ever resumed.
        remote: where they lie too, under `checkpoints/<key>/`, or None.
        processes: how many train; others divide the rows in another way, and have checkpoints of
            their own.

    Attributes:
        rung: how often memory ran out: settings of another rung count other micro-batches, and have
            other checkpoints.
        uploaded: whether the last checkpoint is in the store as well.
    """

    def __init__(
        self, directory: Path, key: str, remote: Remote | None = None, processes: int = 1
    ) -> None:
        self._key = key
        self._root = directory
        self._remote = remote
        self._processes = processes
        self._failures = 0
        self.rung = 0
        self.uploaded = False

    @property
    def directory(self) -> Path:
        """Where Trainer writes them."""
        return self._root / self._key[:16] / self._name

    @property
    def _name(self) -> str:
        return f"rung-{self.rung}" + (f"-of-{self._processes}" if self._processes > 1 else "")

    @property
    def _prefix(self) -> str:
        return f"{_remote_prefix(self._key)}{self._name}/"

    def find_rung(self) -> int:
        """The rung of an earlier call, here or on another machine; from now on this one's.

        Raises:
            InfrastructureError: the store.
        """
        names = [path.name for path in self.directory.parent.glob("rung-*")]
        if self._remote:
            self._remote.renew()
            start = _remote_prefix(self._key)
            names += [
                key.removeprefix(start).partition("/")[0] for key in self._remote.store.keys(start)
            ]
        several = f"-of-{self._processes}" if self._processes > 1 else ""
        found = [re.fullmatch(rf"rung-(\d+){several}", name) for name in names]
        self.rung = max((int(match.group(1)) for match in found if match), default=0)
        return self.rung

    def take_rung(self, what: str) -> None:
        """Memory ran out: checkpoints so far are of no more use, and the same command, here or
        elsewhere, starts from the next rung.

        Args:
            what: changes, for whoever looks into the store.

        Raises:
            InfrastructureError: the third failure in a row.
        """
        shutil.rmtree(self.directory, ignore_errors=True)
        self.rung += 1
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._remote:
            try:
                self._remote.renew()
                self._remote.store.put_new(f"{self._prefix}taken", what.encode(), "text/plain")
            except (OSError, AdapterOpsError) as error:
                self._count(
                    f"that memory ran out could not be written to the object store: {error}"
                )

    def seal(self, step: int) -> None:
        """Record the digests of the files of a step, upload them, and remove older checkpoints.

        One that cannot be uploaded stays here.

        Raises:
            InfrastructureError: the third in a row that could not be written or uploaded.
        """
        directory = self.directory / f"checkpoint-{step}"
        self.uploaded = False
        try:
            seal = self._seal_of(directory, step)
            write_bytes(directory / _SEAL, _content(seal))
            # What is ahead may be another run's.
            for older in [path for path in self._local() if _step(path) <= step][:-_KEPT]:
                shutil.rmtree(older)
        except OSError as error:
            self.failed(step, str(error))
            return
        if self._remote:
            try:
                self._upload(self._remote, directory, seal)
            except (OSError, AdapterOpsError) as error:
                self._count(
                    f"checkpoint of step {step} is in {directory}, and could not be uploaded:"
                    f" {error}"
                )
                return
            self.uploaded = True
        self._failures = 0

    def _seal_of(self, directory: Path, step: int) -> CheckpointSeal:
        files: list[File] = [
            {
                "name": str(file.relative_to(directory)),
                "size": file.stat().st_size,
                "sha256": sha256_file(file),
            }
            for file in sorted(directory.rglob("*"))
            if file.is_file()
        ]
        return {"training_key": self._key, "place": self._name, "step": step, "files": files}

    def failed(self, step: int, reason: str) -> None:
        """Count a checkpoint that could not be written; training goes on without, but not for ever.

        Raises:
            InfrastructureError: the third in a row.
        """
        shutil.rmtree(self.directory / f"checkpoint-{step}", ignore_errors=True)
        self._count(f"checkpoint of step {step} failed: {reason}")

    def _count(self, what: str) -> None:
        self._failures += 1
        error_console.print(what, markup=False, soft_wrap=True)
        if self._failures >= _FAILURES:
            raise InfrastructureError(
                f"{self._failures} checkpoints in a row failed ({what}): an interruption would lose"
                f" what was trained. Free space below {self._root}, or mend the object store, and"
                " run the same command again: it goes on from the newest whole checkpoint."
            )

    def newest(self) -> Path | None:
        """The newest whole checkpoint of this rung, here or from the store; None if there is none.

        Raises:
            InfrastructureError: the store.
        """
        found = next((path for path in reversed(self._local()) if _whole(path)), None)
        if self._remote:
            self._remote.renew()
            step = _step(found) if found else -1
            seals = [
                key
                for key in self._remote.store.keys(self._prefix)
                if key.endswith(f"/{_SEAL}") and _remote_step(key) > step
            ]
            # Not all of them: who may write here could keep a GPU waiting with thousands that are
            # none.
            for key in sorted(seals, reverse=True)[:_LOOKED_AT]:
                try:
                    return self._fetch(self._remote, key)
                except (RejectedError, DamagedError) as error:
                    # Damaged, or not to be trusted: the one before it will do.
                    error_console.print(
                        f"checkpoint {key} is not used: {error}", markup=False, soft_wrap=True
                    )
        return found

    def clear(self) -> None:
        """Remove what lies here, and in the store unless it is to stay; the training is done."""
        shutil.rmtree(self.directory.parent, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._root.rmdir()  # only if no other key has any
        if self._remote and not self._remote.until_kept:
            try:
                self._remote.renew()
            except AdapterOpsError as error:
                error_console.print(
                    f"checkpoints stay in the object store: {error}", markup=False, soft_wrap=True
                )
                return
            remove_remote(self._remote.store, self._key)

    def _upload(self, remote: Remote, directory: Path, seal: CheckpointSeal) -> None:
        remote.renew()
        if problems := schema_problems(seal, "checkpoint_seal"):
            raise RejectedError(f"its seal would break its schema: {problems[0]}")
        # Named by content as well: a repeated step that came out differently must not meet an
        # object that never changes.
        place = f"{self._prefix}{seal['step']:08d}-{sha256_json(seal)[:12]}"
        for file in seal["files"]:
            remote.store.put_new(f"{place}/{file['name']}", directory / file["name"])
        write_once(remote.store, _signed(f"{place}/{_SEAL}", _content(seal)), remote.signer)
        keys = list(remote.store.keys(self._prefix))
        # What is ahead may be another run's, which this one could not use.
        steps = {_remote_step(key) for key in keys if key.endswith(f"/{_SEAL}")}
        kept = sorted(step for step in steps if step <= seal["step"])[-_KEPT:]
        _remove(remote.store, [key for key in keys if 0 <= _remote_step(key) < kept[0]])

    def _fetch(self, remote: Remote, key: str) -> Path:
        fetched = remote.store.get(key)
        if fetched is None:
            raise RejectedError("it vanished")
        if remote.trust:
            check_signature(remote.store, _signed(key, fetched.content), remote.trust)
        seal, problem = parse(fetched.content, CheckpointSeal)
        if seal is None:
            raise RejectedError(f"its seal is none: {problem}")
        place, step = key.removesuffix(_SEAL), _remote_step(key)
        if (seal["training_key"], seal["place"], seal["step"]) != (self._key, self._name, step):
            raise RejectedError("it is a checkpoint of something else")
        target = self.directory / f"checkpoint-{step}"
        with new_directory(target) as staging:
            for file in seal["files"]:
                folder, _, name = file["name"].rpartition("/")  # one at most, by the schema
                into = inner(staging, folder) if folder else staging
                remote.store.download(
                    place + file["name"], into, name, sha256=file["sha256"], size=file["size"]
                )
            (staging / _SEAL).write_bytes(fetched.content)
        return target

    def _local(self) -> list[Path]:
        paths = [path for path in self.directory.glob("checkpoint-*") if _STEP.fullmatch(path.name)]
        return sorted(paths, key=_step)


def remove_remote(store: ObjectStore, key: str) -> None:
    """Remove a training key's checkpoints from the store; a line says which may not be removed."""
    try:
        _remove(store, list(store.keys(_remote_prefix(key))))
    except InfrastructureError as error:
        error_console.print(
            f"checkpoints stay in the object store: {error}", markup=False, soft_wrap=True
        )


def _remove(store: ObjectStore, keys: list[str]) -> None:
    # The seal first, or what is left would look whole.
    for key in sorted(keys, key=lambda key: not key.endswith(f"/{_SEAL}")):
        try:
            store.delete(key)
        except InfrastructureError as error:
            error_console.print(
                f"checkpoints that are not needed stay in the object store: {error}",
                markup=False,
                soft_wrap=True,
            )
            return


def _signed(key: str, content: bytes) -> SignedDocument:
    return SignedDocument(key, content, f"{key}.signature")


def _content(seal: CheckpointSeal) -> bytes:
    return (json.dumps(seal, indent=2) + "\n").encode()


def _remote_prefix(key: str) -> str:
    return f"checkpoints/{key}/"


def _remote_step(key: str) -> int:
    match = re.match(r"checkpoints/[^/]+/[^/]+/(\d{8})-[0-9a-f]{12}/", key)
    return int(match.group(1)) if match else -1


def _step(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    return int(match.group(1)) if match else -1


def _whole(path: Path) -> bool:
    try:
        seal: CheckpointSeal = json.loads((path / _SEAL).read_text(encoding="utf-8"))
        files = seal["files"]
        return bool(files) and all(
            sha256_file(path / file["name"]) == file["sha256"] for file in files
        )
    except (OSError, *_DAMAGED):
        return False
