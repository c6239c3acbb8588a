"""S3 through boto3: conditional writes, verified reads, errors in one sentence.

Endpoint, region and credentials are boto3's own business (environment, profile, role), so any S3 implementation will do.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

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
from adapterops.schemas import schema_problems

_Result = TypeVar("_Result")
# Answers of the conditional-write protocol, not failures.
_LOST = ("PreconditionFailed", "NoSuchKey", "404")
# A concurrent conditional write to the same key; S3 asks to try again.
_TRY_AGAIN = "ConditionalRequestConflict"
_ATTEMPTS = 6
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html; an access point's ARN may stand for a bucket.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]|arn:[^/]+[/:].+")
# A server that takes connections and never answers ends a call after about a minute: three attempts of 20 s, and pauses of 3 s.
_TIMEOUT_S = 20.0
_TRIES = 3
_SLOWEST_BYTES_PER_S = 256 * 1024


class ConflictError(Exception):
    """A compare-and-swap lost: somebody else wrote in between."""


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
                f"S3 bucket {bucket!r}: expected 3 to 63 lower-case letters, digits, dashes and dots, with a letter or digit at both ends "
                "and no s3:// before it. Mend --bucket or ADAPTER_BUCKET."
            )
        self.bucket = bucket
        self._timeout_s = timeout_s
        # "standard" retries connection errors, 5xx and SlowDown with backoff and leaves 412 alone.
        config = Config(
            connect_timeout=min(5.0, timeout_s), read_timeout=timeout_s, retries={"mode": "standard", "total_max_attempts": _TRIES}
        )
        try:
            self._s3 = boto3.client("s3", config=config)
        except (BotoCoreError, ValueError) as error:
            raise UsageError(f"S3 cannot be used: {error}. Check the AWS settings in the environment.") from None

    def put_new(self, key: str, content: bytes | Path, content_type: str = "application/octet-stream") -> None:
        """Create an immutable object in a single PUT whose SHA-256 the server verifies.

        An object with the very same bytes that is there already is success.

        Raises:
            RejectedError: the key holds other bytes; what is released does not change.
        """
        body = content.read_bytes() if isinstance(content, Path) else content
        try:
            self._put(key, body, content_type, IfNoneMatch="*")
        except ConflictError:
            present = self.get(key)
            if present is None or hashlib.sha256(present.content).digest() != hashlib.sha256(body).digest():
                raise RejectedError(f"s3://{self.bucket}/{key} exists with other content. Releases are never overwritten.") from None

    def put_known(self, key: str, content: bytes | Path) -> bool:
        """Write the only bytes that may lie under a key, for their digest is part of it: others there are damage, and are replaced.

        Returns:
            Whether anything was written.
        """
        body = content.read_bytes() if isinstance(content, Path) else content
        present = self.get(key)
        if present and present.content == body:
            return False
        if present:
            with contextlib.suppress(ConflictError):  # somebody else wrote since, hopefully the same bytes
                self._put(key, body, "application/octet-stream", IfMatch=present.etag)
                return True
        self.put_new(key, body)
        return True

    def _put(self, key: str, body: bytes, content_type: str, **condition: str) -> None:
        checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
        # S3 checks the value in any case; ministack does when the algorithm is named beside it.
        named = {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": checksum}
        self._call(lambda: self._s3.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=content_type, **named, **condition))

    def get(self, key: str) -> Fetched | None:
        """An object, or None if there is none."""

        def fetch() -> Fetched:
            answer = self._s3.get_object(Bucket=self.bucket, Key=key)
            return Fetched(b"".join(self._chunks(answer)), answer["ETag"])

        try:
            return self._call(fetch)
        except ConflictError:
            return None

    def download(self, key: str, path: Path, *, sha256: str, size: int) -> None:
        """Write an object to `path` and verify size and SHA-256; the caller discards the file if this raises.

        Raises:
            InfrastructureError: missing, cut short, or other bytes than promised; or `path` cannot be written.
        """

        def fetch() -> tuple[int, str]:
            answer = self._s3.get_object(Bucket=self.bucket, Key=key)
            digest, length = hashlib.sha256(), 0
            # Unbuffered, so that a full disk shows in write() and closing has nothing left to fail with.
            with _writing(path):
                file = path.open("wb", buffering=0)
            with file:
                for chunk in self._chunks(answer):
                    digest.update(chunk)
                    length += len(chunk)
                    with _writing(path):
                        _write_all(file, chunk)
                with _writing(path):
                    os.fsync(file.fileno())
            return length, digest.hexdigest()

        try:
            found_size, found = self._call(fetch)
        except ConflictError:
            raise InfrastructureError(f"s3://{self.bucket}/{key} is missing, though its manifest names it.") from None
        if (found_size, found) != (size, sha256):
            raise InfrastructureError(
                f"s3://{self.bucket}/{key}: got {found_size} bytes with SHA-256 {found}, expected {size} bytes with {sha256}. "
                "The object was damaged or replaced; it is not used."
            )

    def swap(self, key: str, content: bytes, etag: str | None) -> None:
        """Replace an object if it still has `etag`, or create it if `etag` is None and it does not exist.

        Raises:
            ConflictError: somebody else wrote in between.
        """
        self._put(key, content, "application/json", **({"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}))

    def keys(self, prefix: str) -> Iterator[str]:
        """Every key with the prefix, page by page."""
        return (key for key, _ in self.entries(prefix))

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is success."""
        with contextlib.suppress(ConflictError):
            self._call(lambda: self._s3.delete_object(Bucket=self.bucket, Key=key))

    def entries(self, prefix: str) -> Iterator[tuple[str, datetime.datetime]]:
        """Every key with the prefix and when it was written, page by page."""
        token: dict[str, str] = {}
        while True:
            page = self._call(functools.partial(self._s3.list_objects_v2, Bucket=self.bucket, Prefix=prefix, **token))
            yield from ((item["Key"], item["LastModified"]) for item in page.get("Contents", []))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _chunks(self, answer: dict[str, Any]) -> Iterator[bytes]:
        """An object's bytes, as the store has them; what comes slower than the slowest network that is worth waiting for is given up."""
        limit = _TRIES * self._timeout_s + answer["ContentLength"] / _SLOWEST_BYTES_PER_S
        started, missing, digest = time.monotonic(), answer["ContentLength"], hashlib.sha256()
        # read1() returns what has come, so that the clock is looked at however slowly it trickles.
        while chunk := answer["Body"]._raw_stream.read1(1 << 20):
            missing -= len(chunk)
            digest.update(chunk)
            yield chunk
            if time.monotonic() - started > limit:
                raise OSError(f"an object of {answer['ContentLength']} bytes did not arrive within {limit:.0f} s")
        if missing:
            raise OSError(f"an object of {answer['ContentLength']} bytes ended {missing} bytes early")
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
                    time.sleep(random.uniform(0, 0.1 * 2**attempt))  # noqa: S311  # jitter, not a secret
                    continue
                raise InfrastructureError(self._explain(code, error)) from None
            except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
                raise InfrastructureError(
                    f"{self._where()}: {error}. Give credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or a role."
                ) from None
            except ParamValidationError as error:
                raise UsageError(f"{self._where()}: {error}") from None
            except (BotoCoreError, HTTPError, OSError) as error:
                raise InfrastructureError(f"{self._where()}: {error}. Check the network and the endpoint.") from None
        raise InfrastructureError(f"{self._where()}: still contended after {_ATTEMPTS} attempts.")

    def _explain(self, code: str, error: ClientError) -> str:
        operation = error.operation_name
        match code:
            case "NoSuchBucket":
                return f"{self._where()}: the bucket does not exist. Create it, or mend ADAPTER_BUCKET."
            case "AccessDenied" | "403" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken":
                return f"{self._where()}: {operation} was denied ({code}). Check the role and its policy for this prefix."
            case _:
                return f"{self._where()}: {operation} failed ({code}): {error.response.get('Error', {}).get('Message', '')}"

    def _where(self) -> str:
        return f"S3 bucket {self.bucket} at {self._s3.meta.endpoint_url}"


def parse(content: bytes, schema: str) -> tuple[Any, list[str]]:
    """A document, and what is wrong with it: that it is not JSON, or each way in which it is not what its schema says."""
    try:
        document = json.loads(content)
        json.dumps(document, ensure_ascii=False).encode()  # half of a surrogate pair can be read, and neither shown nor written again
        return document, [str(problem) for problem in schema_problems(document, schema)]
    except (ValueError, RecursionError) as error:  # the latter: brackets nested a thousand deep
        return None, [f"it is not JSON ({error})"]


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be written: {error.strerror or error}. Check free space and permissions.") from None


def _write_all(file: IO[bytes], chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]
