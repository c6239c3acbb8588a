"""The one way in which bytes from the store become files here: by a plain name, through no link.

Whatever a document of the store says, nothing else is written.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from adapterops.errors import InfrastructureError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}")


@contextlib.contextmanager
def incoming(directory: Path, name: str) -> Iterator[IO[bytes]]:
    """Yield a file that becomes `directory/name` when the block ends well, and vanishes when it
    does not.

    A file or link of that name is replaced, not followed.

    Raises:
        InfrastructureError: `name` is no plain name, `directory` is a link or none, or it cannot be
            written.
    """
    handle = _open(directory, _checked(name))
    scratch = f".{name}.{uuid.uuid4().hex[:12]}"
    try:
        with writing(directory / name):
            descriptor = os.open(
                scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=handle
            )
        # Unbuffered, so that a full disk shows in write() and closing has nothing left to fail
        # with.
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            yield file
            with writing(directory / name):
                os.fsync(file.fileno())
        with writing(directory / name):
            os.replace(scratch, name, src_dir_fd=handle, dst_dir_fd=handle)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(scratch, dir_fd=handle)
        raise
    finally:
        os.close(handle)


def inner(directory: Path, name: str) -> Path:
    """The directory `directory/name`, made if it is not there; one that is a link is refused when
    it is written to.

    Raises:
        InfrastructureError: as `incoming`.
    """
    handle = _open(directory, _checked(name))
    try:
        with writing(directory / name), contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=handle)
    finally:
        os.close(handle)
    return directory / name


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of an OSError that `path` cannot be written.

    Raises:
        InfrastructureError: instead of the OSError.
    """
    try:
        yield
    except OSError as error:
        raise InfrastructureError(
            f"{path} cannot be written: {error.strerror or error}. Check free space and"
            " permissions."
        ) from None


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InfrastructureError(
            f"a document of the store names the file {name!r}, which is no plain name. Nothing is"
            " written."
        )
    return name


def _open(directory: Path, name: str) -> int:
    with writing(directory / name):
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
