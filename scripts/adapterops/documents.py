"""Documents that stages hand to each other: canonical JSON, digests, all-or-nothing writes."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from adapterops.errors import UsageError
from adapterops.schemas import schema_of, schema_problems

T = TypeVar("T")  # a shape: one of the TypedDicts of `adapterops.shapes`
_JUST_MADE_S = 60  # a staging directory may not be locked yet


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values have equal bytes (as in RFC 8785).

    Raises:
        ValueError: NaN or an infinity, which JSON does not have.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def sha256_json(value: object) -> str:
    """SHA-256 of the canonical JSON, 64 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside, sync, rename: a reader sees the old file or the new one, whole.

    Raises:
        UsageError: the path is a device or something else that a file must not take the place of.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file, which a document would replace. Name a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def readable_json(value: object, *, allow_nan: bool = False) -> bytes:
    """UTF-8 JSON as documents are written, for people and for diffs."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=allow_nan)
    return (text + "\n").encode()


def write_json(path: Path, document: T, shape: type[T]) -> None:
    """Validate `document` against the schema of its shape, then write it.

    Raises:
        RuntimeError: the document breaks its own schema, which is a defect of the stage and not of
            its input.
    """
    schema = schema_of(shape)
    problems = schema_problems(document, schema)
    if problems:
        raise RuntimeError(
            f"{path} would break its schema {schema}: " + "; ".join(str(p) for p in problems[:5])
        )
    write_bytes(path, readable_json(document))


def read_json(path: Path, shape: type[T]) -> T:
    """Read a document that an earlier stage wrote and check it against its schema.

    Raises:
        UsageError: missing, not JSON, or not what the schema says.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist. The stage that writes it has not run; see `--help`."
        ) from None
    except RecursionError:
        raise UsageError(
            f"{path}: nested too deep for a document of any stage. Remove the file and run its"
            " stage again."
        ) from None
    except (UnicodeDecodeError, ValueError) as error:
        line = getattr(error, "lineno", 1)
        raise UsageError(
            f"{path}:{line}: not JSON ({error}). Remove the file and run its stage again."
        ) from None
    schema = schema_of(shape)
    problems = schema_problems(document, schema)
    if problems:
        raise UsageError(
            f"{path} is not a {schema} document:\n"
            + "\n".join(f"  {p}" for p in problems)
            + "\nRun its stage again."
        )
    return document  # type: ignore[no-any-return]  # of that shape, by its schema


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path` that becomes `path` when the block ends well and
    vanishes when it does not.

    A former directory of that name is replaced as a whole. What killed processes left beside it is
    removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    lock = os.open(staging, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, however that ends
    try:
        yield staging
        # mkdtemp made it private, and engines may run as another user.
        os.chmod(staging, 0o755)  # noqa: S103
        for file in staging.rglob("*"):
            if file.is_file():
                os.chmod(file, 0o644)
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            former = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.former."))
            os.replace(path, former / path.name)
            os.replace(staging, path)
            shutil.rmtree(former, ignore_errors=True)
        else:
            os.replace(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        with contextlib.suppress(OSError):  # another process holds it, or removes it too
            if time.time() - left.stat().st_mtime < _JUST_MADE_S:
                continue
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(handle)
