"""S3 through boto3: conditional writes, verified reads, errors in one sentence.

Endpoint, region and credentials are boto3's own business (environment, profile, role), so any S3
implementation will do.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NotRequired, TypedDict, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from urllib3.exceptions import HTTPError

from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.store.incoming import incoming, writing

if TYPE_CHECKING:
    from botocore.response import StreamingBody

_Result = TypeVar("_Result")
# Answers of the conditional-write protocol, not failures.
_LOST = ("PreconditionFailed", "NoSuchKey", "404")
# A concurrent conditional write to the same key; S3 asks to try again.
_TRY_AGAIN = "ConditionalRequestConflict"
_ATTEMPTS = 6
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html; an access point's
# ARN may stand for a bucket.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]|arn:[^/]+[/:].+")
# A server that takes connections and never answers ends a call after about a minute: three attempts
# of 20 s, and pauses of 3 s.
_TIMEOUT_S = 20.0
_TRIES = 3
_SLOWEST_BYTES_PER_S = 256 * 1024
# Documents are kilobytes. What is larger is none, and must not fill the memory of who asks for one.
_DOCUMENT_BYTES = 4 * 2**20
_LISTED = 200_000


class _Answer(TypedDict):
    """What S3 says of an object that is read (boto3 ships no types)."""

    Body: StreamingBody
    ContentLength: int
    ETag: str
    ChecksumSHA256: NotRequired[str]


class ConflictError(Exception):
    """A compare-and-swap lost: somebody else wrote in between."""


class DamagedError(InfrastructureError):
    """The store answers, and what it has is not what a document says."""


@dataclass(frozen=True)
class Fetched:
    """An object's bytes and its entity tag."""

    content: bytes
    etag: str


def open_store(bucket: str | None = None, timeout_s: float = _TIMEOUT_S) -> ObjectStore:
    """The store in `bucket`, else in `$ADAPTER_BUCKET`; `timeout_s` as in `ObjectStore`.

    Raises:
        UsageError: neither is given, or it cannot be a bucket's name.
    """
    name = bucket or os.environ.get("ADAPTER_BUCKET")
    if not name:
        raise UsageError("no S3 bucket. Name one with --bucket or in ADAPTER_BUCKET.")
    return ObjectStore(name, timeout_s)


class ObjectStore:
    """One bucket.

    Args:
        bucket: its name.
        timeout_s: how long the server may be silent, in each of three attempts.

    Raises:
        UsageError: that is no bucket's name, or the AWS settings are wrong.

    Every method raises `InfrastructureError` where the store cannot be reached or refuses access.
    """

    def __init__(self, bucket: str, timeout_s: float = _TIMEOUT_S) -> None:
        if not _BUCKET.fullmatch(bucket):
            raise UsageError(
                f"S3 bucket {bucket!r}: expected 3 to 63 lower-case letters, digits, dashes and"
                " dots, with a letter or digit at both ends and no s3:// before it. Mend --bucket"
                " or ADAPTER_BUCKET."
            )
        self.bucket = bucket
        self._timeout_s = timeout_s
        # "standard" retries connection errors, 5xx and SlowDown with backoff and leaves 412 alone.
        config = Config(
            connect_timeout=min(5.0, timeout_s),
            read_timeout=timeout_s,
            retries={"mode": "standard", "total_max_attempts": _TRIES},
        )
        try:
            self._s3 = boto3.client("s3", config=config)
        except (BotoCoreError, ValueError) as error:
            raise UsageError(
                f"S3 cannot be used: {error}. Check the AWS settings in the environment."
            ) from None

    def put_new(
        self, key: str, content: bytes | Path, content_type: str = "application/octet-stream"
    ) -> None:
        """Create an immutable object in a single PUT whose SHA-256 the server verifies.

        An object with the very same bytes that is there already is success.

        Raises:
            RejectedError: the key holds other bytes; what is released does not change.
        """
        body = content.read_bytes() if isinstance(content, Path) else content
        try:
            self._put(key, body, content_type, IfNoneMatch="*")
        except ConflictError:
            if not self._holds(key, body):
                raise RejectedError(
                    f"s3://{self.bucket}/{key} exists with other content. Releases are never"
                    " overwritten."
                ) from None

    def put_known(self, key: str, content: bytes | Path) -> bool:
        """Write the only bytes that may lie under a key, for their digest is part of it: others
        there are damage, and are replaced.

        Returns:
            Whether anything was written.
        """
        body = content.read_bytes() if isinstance(content, Path) else content
        etag = self._etag(key)
        if etag and self._holds(key, body):
            return False
        if etag:
            # Or somebody else wrote since, hopefully the same bytes.
            with contextlib.suppress(ConflictError):
                self._put(key, body, "application/octet-stream", IfMatch=etag)
                return True
        self.put_new(key, body)
        return True

    def _put(self, key: str, body: bytes, content_type: str, **condition: str) -> None:
        checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
        # S3 checks the value in any case; ministack does when the algorithm is named beside it.
        named = {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": checksum}
        self._call(
            lambda: self._s3.put_object(
                Bucket=self.bucket,
                Key=key,
                Body=body,
                ContentType=content_type,
                **named,
                **condition,
            )
        )

    def get(self, key: str, max_bytes: int = _DOCUMENT_BYTES) -> Fetched | None:
        """An object that fits into memory, or None if there is none.

        Raises:
            DamagedError: it is larger than `max_bytes`; no byte of it is read.
        """

        def fetch() -> Fetched:
            answer = self._s3.get_object(Bucket=self.bucket, Key=key)
            with contextlib.closing(answer["Body"]):
                if (size := answer["ContentLength"]) > max_bytes:
                    raise DamagedError(
                        f"s3://{self.bucket}/{key} has {size} bytes, and at most {max_bytes} are"
                        " read of such an object. Somebody wrote something else there. Bring its"
                        " former version back."
                    )
                return Fetched(b"".join(self._chunks(answer)), answer["ETag"])

        try:
            return self._call(fetch)
        except ConflictError:
            return None

    def download(self, key: str, directory: Path, name: str, *, sha256: str, size: int) -> None:
        """Write an object to `directory/name` if it has this size and SHA-256; else there is none.

        Args:
            key: of the object.
            directory: where the file goes; see `store.incoming`.
            name: of the file, as a document may say it.
            sha256: that it must have, 64 hex digits.
            size: that it must have, in bytes; of an object that has another no byte is read.

        Raises:
            DamagedError: missing, or other bytes than promised.
            InfrastructureError: cut short, no plain name, or the file cannot be written.
        """

        def fetch() -> None:
            answer = self._s3.get_object(Bucket=self.bucket, Key=key)
            with contextlib.closing(answer["Body"]), incoming(directory, name) as file:
                length, digest = answer["ContentLength"], hashlib.sha256()
                if length == size:
                    for chunk in self._chunks(answer):
                        digest.update(chunk)
                        with writing(directory / name):
                            _write_all(file, chunk)
                if length != size or digest.hexdigest() != sha256:
                    found = f"{length} bytes" + (
                        f" with SHA-256 {digest.hexdigest()}" if length == size else ""
                    )
                    raise DamagedError(
                        f"s3://{self.bucket}/{key}: got {found}, expected {size} bytes with SHA-256"
                        f" {sha256}. The object was damaged or replaced; it is not used."
                    )

        try:
            self._call(fetch)
        except ConflictError:
            raise DamagedError(
                f"s3://{self.bucket}/{key} is missing, though its manifest names it."
            ) from None

    def _etag(self, key: str) -> str | None:
        """An object's entity tag, or None if there is none; nothing of it is read."""
        try:
            head = self._call(lambda: self._s3.head_object(Bucket=self.bucket, Key=key))
        except ConflictError:
            return None
        return str(head["ETag"])

    def _holds(self, key: str, body: bytes) -> bool:
        """Whether an object with just these bytes is there."""

        def compare() -> bool:
            answer = self._s3.get_object(Bucket=self.bucket, Key=key)
            with contextlib.closing(answer["Body"]):
                if answer["ContentLength"] != len(body):
                    return False
                digest = hashlib.sha256()
                for chunk in self._chunks(answer):
                    digest.update(chunk)
                return digest.digest() == hashlib.sha256(body).digest()

        try:
            return self._call(compare)
        except ConflictError:
            return False

    def swap(self, key: str, content: bytes, etag: str | None) -> None:
        """Replace an object that still has `etag`, or create it if `etag` is None.

        Raises:
            ConflictError: somebody else wrote in between.
        """
        self._put(
            key,
            content,
            "application/json",
            **({"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}),
        )

    def keys(self, prefix: str) -> Iterator[str]:
        """Every key with the prefix, page by page; errors as `entries`."""
        return (key for key, _ in self.entries(prefix))

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is success."""
        with contextlib.suppress(ConflictError):
            self._call(lambda: self._s3.delete_object(Bucket=self.bucket, Key=key))

    def entries(self, prefix: str) -> Iterator[tuple[str, datetime.datetime]]:
        """Every key with the prefix and when it was written, page by page.

        Raises:
            InfrastructureError: there are more than 200,000.
        """
        token: dict[str, str] = {}
        listed = 0
        while True:
            page = self._call(
                functools.partial(
                    self._s3.list_objects_v2, Bucket=self.bucket, Prefix=prefix, **token
                )
            )
            found = page.get("Contents", [])
            listed += len(found)
            if listed > _LISTED:
                raise InfrastructureError(
                    f"s3://{self.bucket}/{prefix} has more than {_LISTED} objects. Somebody fills"
                    " it: find out who, and remove what is not the project's."
                )
            yield from ((item["Key"], item["LastModified"]) for item in found)
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _chunks(self, answer: _Answer) -> Iterator[bytes]:
        """An object's bytes, as the store has them; what comes slower than the slowest network that
        is worth waiting for is given up.
        """
        limit = _TRIES * self._timeout_s + answer["ContentLength"] / _SLOWEST_BYTES_PER_S
        started, missing, digest = time.monotonic(), answer["ContentLength"], hashlib.sha256()
        # read1() returns what has come, so that the clock is looked at however slowly it trickles.
        while chunk := answer["Body"]._raw_stream.read1(1 << 20):
            missing -= len(chunk)
            if missing < 0:
                raise OSError(f"an object of {answer['ContentLength']} bytes goes on after its end")
            digest.update(chunk)
            yield chunk
            if time.monotonic() - started > limit:
                raise OSError(
                    f"an object of {answer['ContentLength']} bytes did not arrive within"
                    f" {limit:.0f} s"
                )
        if missing:
            raise OSError(
                f"an object of {answer['ContentLength']} bytes ended {missing} bytes early"
            )
        # The checksum that it was put with; what came by another way has none.
        expected = answer.get("ChecksumSHA256")
        if expected and expected != base64.b64encode(digest.digest()).decode():
            raise OSError("an object arrived with other bytes than the store says that it has")

    def _call(self, request: Callable[[], _Result]) -> _Result:
        for attempt in range(_ATTEMPTS):
            try:
                return request()
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code", "")
                if code in _LOST:
                    raise ConflictError(code) from None
                if code == _TRY_AGAIN and attempt + 1 < _ATTEMPTS:
                    jitter = random.uniform(0, 0.1 * 2**attempt)  # no secret  # noqa: S311
                    time.sleep(jitter)
                    continue
                raise InfrastructureError(self._explain(code, error)) from None
            except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
                raise InfrastructureError(
                    f"{self._where()}: {error}. Give credentials: AWS_ACCESS_KEY_ID and"
                    " AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or a role."
                ) from None
            except ParamValidationError as error:
                raise UsageError(f"{self._where()}: {error}") from None
            except (BotoCoreError, HTTPError, OSError) as error:
                raise InfrastructureError(
                    f"{self._where()}: {error}. Check the network and the endpoint."
                ) from None
        raise InfrastructureError(f"{self._where()}: still contended after {_ATTEMPTS} attempts.")

    def _explain(self, code: str, error: ClientError) -> str:
        operation = error.operation_name
        match code:
            case "NoSuchBucket":
                return (
                    f"{self._where()}: the bucket does not exist. Create it, or mend"
                    " ADAPTER_BUCKET."
                )
            case (
                "AccessDenied"
                | "403"
                | "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "ExpiredToken"
            ):
                return (
                    f"{self._where()}: {operation} was denied ({code}). Check the role and its"
                    " policy for this prefix."
                )
            case _:
                return (
                    f"{self._where()}: {operation} failed ({code}):"
                    f" {error.response.get('Error', {}).get('Message', '')}"
                )

    def _where(self) -> str:
        return f"S3 bucket {self.bucket} at {self._s3.meta.endpoint_url}"


def _write_all(file: IO[bytes], chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]
