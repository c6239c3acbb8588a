"""The release store against real S3 servers: nothing half-published, nothing overwritten, nothing
unverified served.

Against moto and ministack, and with `STORE_TEST_S3=1` also against the S3 that the environment's
AWS settings lead to: it makes a bucket for each test (`s3:CreateBucket`, names begin with `test-`),
and removes it. What needs a faulty line before the server is not asked of that one.
"""

import base64
import collections
import contextlib
import hashlib
import http.client
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import numpy
import pytest
from botocore.exceptions import ClientError
from rich.console import Console
from safetensors.numpy import save_file

from adapterops.deploy.deploy import deploy
from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.schemas import ROOT
from adapterops.store import channels, releases
from adapterops.store.channels import (
    abort_canary,
    change_channel,
    history,
    promote,
    read_channel,
    roll_back,
    start_canary,
)
from adapterops.store.objects import ConflictError, ObjectStore, open_store
from adapterops.store.releases import (
    adapter_digest,
    adapter_files,
    fetch_release,
    find_release,
    find_version,
    list_releases,
    publish,
)
from adapterops.store.withdrawn import Withdrawn, withdraw
from processes import AWS, s3_server
from release_documents import whole_manifest
from rollouts import UNJUDGED

pytestmark = pytest.mark.integration

NAME = "support-demo"
BASE = "smollm2-135m-instruct"
SOURCE = {"commit": "c" * 40, "pr": 7, "actor": "test"}
BASE_ENTRY = {"name": BASE, "source_id": "test/base", "revision": "main", "license": "Apache-2.0"}
SECRET = "do-not-print-5b1c"
A, B, C = "a" * 64, "b" * 64, "c" * 64


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- servers
# -------------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=["moto", "ministack", *(["own"] if os.environ.get("STORE_TEST_S3") else [])],
)
def s3(request, tmp_path_factory):
    """An S3 server process; boto3's environment points to it for this module. Yields its port, None
    for the environment's own S3."""
    if request.param == "own":
        with pytest.MonkeyPatch.context() as patch:
            for name in ("ADAPTER_BUCKET", "GITHUB_ACTOR", "GITHUB_SHA"):
                patch.delenv(name, raising=False)
            yield None
        return
    with (
        s3_server(tmp_path_factory.mktemp("s3") / "server.log", request.param) as port,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}", **AWS}.items():
            patch.setenv(name, value)
        for name in (
            "AWS_PROFILE",
            "AWS_SESSION_TOKEN",
            "ADAPTER_BUCKET",
            "GITHUB_ACTOR",
            "GITHUB_SHA",
        ):
            patch.delenv(name, raising=False)
        yield port


class Front(ThreadingHTTPServer):
    """Stands before the S3 server: lets one write through at a time, as S3 does and moto does not,
    and loses what it is told to.

    `faults` is a list of (method, end of the path, what goes wrong), each used once.
    """

    daemon_threads = True

    def __init__(self, port):
        super().__init__(("127.0.0.1", 0), FrontHandler)
        self.port, self.writing, self.faults, self.checksums = port, threading.Lock(), [], []

    def fault(self, method, path):
        for fault in self.faults:
            if fault[0] == method and path.partition("?")[0].endswith(fault[1]):
                self.faults.remove(fault)
                return fault[2]
        return None


class FrontHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.checksums.append(self.headers.get("x-amz-checksum-sha256"))
        fault = self.server.fault(self.command, self.path)
        if fault == "slow down":
            return self.answer(
                503,
                {},
                b"<Error><Code>SlowDown</Code><Message>Please reduce your request"
                b" rate.</Message></Error>",
            )
        if fault == "conflict":
            return self.answer(
                409,
                {},
                b"<Error><Code>ConditionalRequestConflict</Code><Message>try"
                b" again</Message></Error>",
            )
        if fault == "denied":
            return self.answer(
                403, {}, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
            )
        if fault == "flip" and self.command == "PUT":
            body = flipped(body)
        with self.server.writing if self.command == "PUT" else contextlib.nullcontext():
            upstream = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
            upstream.request(self.command, self.path, body, {**self.headers, "Connection": "close"})
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
        if fault == "flip" and self.command == "GET":
            content = flipped(content)
        self.close_connection = fault is not None
        if fault == "answer lost":
            return None
        return self.answer(
            answer.status,
            dict(answer.getheaders()),
            content,
            cut=len(content) // 2 if fault == "cut" else None,
        )

    def answer(self, status, headers, content, cut=None):
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in (
                "connection",
                "content-length",
                "transfer-encoding",
                "date",
                "server",
            ):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut])

    do_GET = do_PUT = do_HEAD = do_POST = handle_any  # http.server's names  # noqa: N815


@contextlib.contextmanager
def served(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def front(s3, monkeypatch):
    """The server with a front before it, for stores that are opened from now on."""
    if s3 is None:
        pytest.skip("requests are signed for the server's own name")
    with served(Front(s3)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_address[1]}")
        yield server


@pytest.fixture
def client(s3):
    """S3 without the project's code: to look, and to damage."""
    return (
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{s3}", region_name="us-east-1")
        if s3
        else boto3.client("s3")
    )


@pytest.fixture
def bucket(client):
    name, region = f"test-{uuid.uuid4().hex[:12]}", client.meta.region_name
    where = (
        {}
        if region == "us-east-1"
        else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    )
    client.create_bucket(Bucket=name, **where)
    yield name
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for item in page.get("Contents", []):
            client.delete_object(Bucket=name, Key=item["Key"])
    client.delete_bucket(Bucket=name)


@pytest.fixture
def checks(request):
    """Whether the server compares bytes with their SHA-256, as S3 does: ministack does, moto does
    not."""
    return request.node.callspec.params["s3"] != "moto"


@pytest.fixture
def store(bucket):
    return ObjectStore(bucket)


def content(client, bucket, key):
    return client.get_object(Bucket=bucket, Key=key)["Body"].read()


def keys(client, bucket):
    return [item["Key"] for item in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def flipped(body):
    """Bytes with one bit changed in the middle; their size stays."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def flip(client, bucket, key):
    client.put_object(Bucket=bucket, Key=key, Body=flipped(content(client, bucket, key)))


def truncate(client, bucket, key):
    client.put_object(Bucket=bucket, Key=key, Body=content(client, bucket, key)[:-1])


def lengthen(client, bucket, key):
    client.put_object(Bucket=bucket, Key=key, Body=content(client, bucket, key) + b"\0")


def remove(client, bucket, key):
    client.delete_object(Bucket=bucket, Key=key)


def at_once(function, arguments):
    """Call it with each of the arguments in a thread of its own, all at the same moment; exceptions
    are results."""
    barrier = threading.Barrier(len(arguments))

    def call(argument):
        barrier.wait(30)
        try:
            return function(argument)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(call, arguments))


# --- adapters and their documents
# --------------------------------------------------------------------------------------------


def make_adapter(directory, value=1.0, base=BASE):
    """What train_qlora.py leaves: three files and how they were made."""
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}\n')
    save_file(
        {"layer.lora_A": numpy.full((2, 4), value, dtype=numpy.float32)},
        directory / "adapter_model.safetensors",
    )
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}\n")
    (directory / "train_manifest.json").write_text(json.dumps(train_manifest(directory, base)))
    return directory


def train_manifest(directory, base=BASE):
    files = [
        {
            "name": name,
            "size": (directory / name).stat().st_size,
            "sha256": hashlib.sha256((directory / name).read_bytes()).hexdigest(),
        }
        for name in adapter_files
    ]
    return whole_manifest(
        adapter_digest(directory), 2, (base, BASE_ENTRY["source_id"], BASE_ENTRY["revision"]), files
    )


def gate_report(directory, verdict="PASS", **changes):
    gate = {
        "metric": "rouge_l",
        "relation": "min",
        "threshold": 0.65,
        "value": 0.7,
        "n": 50,
        "description": "d",
    }
    gate |= {
        "rule": "point",
        "confidence": 0.95,
        "count": None,
        "interval": [0.6, 0.8],
        "extended": False,
        "blocking": False,
    }
    return {
        "schema": "gate_report/v1",
        "gate_key": "4" * 64,
        "verdict": verdict,
        "reason": "rouge_l 0.7 against 0.65.",
        "errors": [],
        "warnings": [],
        "adjudicated": {"path": None, "labels": 0, "used": 0, "changed": 0, "open": []},
        "production": {"name": None, "digest": None, "note": "Nothing is in production yet."},
        "comparisons": [],
        "slices": [],
        "extension": {"registered": False, "drawn": False, "wanted": False},
        "judged_at": "2026-01-01T00:00:00+00:00",
        "former_verdicts": [],
        "adapter": {
            "name": NAME,
            "digest": adapter_digest(directory),
            "training_key": "1" * 64,
            "base_model": BASE,
        },
        "gate_config": {"path": "configs/quality_gate.demo.yaml", "sha256": "5" * 64},
        "gates": [{**gate, "verdict": verdict, "reason": "measured"}],
        "base": {"verdict": "FAIL", "gates": []},
        "probes": [{"messages": [{"role": "user", "content": "Hello?"}], "output": "Hi."}],
        "evaluation": {
            "eval_key": "6" * 64,
            "pinned": True,
            "path": "data/eval/support.jsonl",
            "sha256": "7" * 64,
            "rows": 50,
        },
        **changes,
    }


def published(store, directory, name=NAME):
    trained = json.loads((directory / "train_manifest.json").read_bytes())
    return publish(store, name, directory, gate_report(directory), trained, source=SOURCE)


@pytest.fixture
def adapter(tmp_path):
    return make_adapter(tmp_path / "adapter")


@pytest.fixture
def release(store, adapter):
    return published(store, adapter)


def edit_manifest(client, bucket, release, **changes):
    key = f"{release.uri}/manifest.json"
    manifest = json.loads(content(client, bucket, key)) | changes
    client.put_object(Bucket=bucket, Key=key, Body=json.dumps(manifest).encode())


def dies_writing(bucket, end_of_key, code):
    """Run Python that is killed in the moment in which it would create an object whose key ends
    so."""
    program = (
        "import os, sys\nfrom adapterops.store.objects import ObjectStore\nput_new ="
        " ObjectStore.put_new\nObjectStore.put_new = lambda self, key, *rest: os._exit(9) if"
        f" key.endswith({end_of_key!r}) else put_new(self, key, *rest)\nstore ="
        f" ObjectStore({bucket!r})\n"
    )
    paths = os.pathsep.join(
        [str(ROOT / "scripts"), str(ROOT / "tests"), str(ROOT / "tests" / "integration")]
    )
    done = subprocess.run(
        [sys.executable, "-c", program + code],
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
        timeout=120,
    )
    assert done.returncode == 9


# --- objects
# -------------------------------------------------------------------------------------------------


def test_the_same_bytes_may_be_put_twice(store, client, bucket, tmp_path):
    (tmp_path / "file").write_bytes(b"first")
    store.put_new("k", b"first")
    store.put_new("k", b"first")
    store.put_new("k", tmp_path / "file")
    assert content(client, bucket, "k") == b"first"


def test_other_bytes_under_a_taken_key_are_refused_and_the_first_stay(store, client, bucket):
    store.put_new("k", b"first")
    with pytest.raises(RejectedError, match=rf"s3://{bucket}/k exists with other content"):
        store.put_new("k", b"other")
    assert content(client, bucket, "k") == b"first"


def test_ten_writers_of_one_new_key_leave_the_bytes_of_the_only_one_that_succeeded(
    front, client, bucket
):
    stores = [ObjectStore(bucket) for _ in range(10)]
    results = at_once(lambda number: stores[number].put_new("k", b"%d" % number), range(10))
    winners = [number for number, result in enumerate(results) if result is None]
    assert [b"%d" % number for number in winners] == [content(client, bucket, "k")]
    assert [type(result) for result in results].count(RejectedError) == 9


def test_a_put_tells_the_server_the_sha256_of_its_bytes(front, bucket):
    ObjectStore(bucket).put_new("k", b"bytes")
    assert front.checksums == [base64.b64encode(hashlib.sha256(b"bytes").digest()).decode()]


def test_a_put_whose_answer_is_lost_on_the_way_succeeds(front, client, bucket):
    front.faults.append(("PUT", "/k", "answer lost"))
    ObjectStore(bucket).put_new("k", b"bytes")
    assert front.faults == []
    assert content(client, bucket, "k") == b"bytes"


def test_s3s_request_to_try_again_is_followed(front, client, bucket):
    front.faults += [("PUT", "/k", "conflict")] * 2
    ObjectStore(bucket).put_new("k", b"bytes")
    assert front.faults == []
    assert content(client, bucket, "k") == b"bytes"


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_s3s_request_to_slow_down_is_followed(front, bucket, method):
    store = ObjectStore(bucket)
    front.faults += [(method, "/k", "slow down")] * 2
    store.put_new("k", b"bytes")
    assert store.get("k").content == b"bytes"
    assert front.faults == []


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_store_that_stays_too_busy_is_said_to_be(front, bucket, method):
    store = ObjectStore(bucket)
    front.faults += [(method, "/k", "slow down")] * 3
    with pytest.raises(
        InfrastructureError,
        match=rf"{bucket} at http.*: {method.title()}Object failed \(SlowDown\): Please reduce",
    ):
        store.get("k") if method == "GET" else store.put_new("k", b"bytes")
    assert front.faults == []


def write_new(store):
    store.put_new("k", b"bytes")


def replace_channel(store):
    store.swap("k", b"bytes", None)


@pytest.mark.parametrize("write", [write_new, replace_channel])
def test_bytes_that_change_on_the_way_to_the_store_are_rejected_by_their_checksum(
    front, client, bucket, checks, write
):
    """Moto takes every checksum for right and keeps it: there the reader notices."""
    front.faults.append(("PUT", "/k", "flip"))
    store = ObjectStore(bucket)
    if checks:
        with pytest.raises(
            InfrastructureError, match=rf"{bucket} at http.*: PutObject failed \(BadDigest\)"
        ):
            write(store)
        assert keys(client, bucket) == []
    else:
        write(store)
        with pytest.raises(
            InfrastructureError, match="arrived with other bytes than the store says that it has"
        ):
            store.get("k")
    assert front.faults == []


def test_a_wrong_checksum_is_rejected_by_the_server(client, bucket, checks):
    """What `put_new` relies on, asked of the server itself."""
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    put = partial(
        client.put_object,
        Bucket=bucket,
        Key="k",
        Body=b"bytes",
        ChecksumAlgorithm="SHA256",
        ChecksumSHA256=wrong,
    )
    if not checks:
        assert (
            put()["ResponseMetadata"]["HTTPStatusCode"] == 200
        )  # if this fails, moto checks too: let it be asked as the others
        return
    with pytest.raises(ClientError, match="BadDigest"):
        put()
    assert keys(client, bucket) == []


def test_bytes_that_change_on_the_way_are_not_used_and_the_next_try_gets_the_right_ones(
    front, bucket, tmp_path
):
    store = ObjectStore(bucket)
    store.put_new("k", b"bytes")
    download = partial(
        store.download, "k", tmp_path, "file", sha256=hashlib.sha256(b"bytes").hexdigest(), size=5
    )
    for read in (lambda: store.get("k"), download):
        front.faults.append(("GET", "/k", "flip"))
        with pytest.raises(
            InfrastructureError,
            match=rf"{bucket} at http.*: an object arrived with other bytes than the store says",
        ):
            read()
        assert front.faults == []
        read()
    assert (store.get("k").content, (tmp_path / "file").read_bytes()) == (b"bytes", b"bytes")


def test_bytes_that_change_on_the_way_are_refused_by_digest_where_the_store_keeps_no_checksum(
    front, client, bucket, tmp_path
):
    client.put_object(Bucket=bucket, Key="k", Body=b"bytes")
    front.faults.append(("GET", "/k", "flip"))
    with pytest.raises(InfrastructureError, match="damaged or replaced"):
        ObjectStore(bucket).download(
            "k", tmp_path, "file", sha256=hashlib.sha256(b"bytes").hexdigest(), size=5
        )


def test_a_missing_object_is_none_and_an_object_is_its_bytes_and_tag(store, client, bucket):
    assert store.get("k") is None
    client.put_object(Bucket=bucket, Key="k", Body=b"bytes")
    fetched = store.get("k")
    assert (fetched.content, fetched.etag) == (
        b"bytes",
        client.head_object(Bucket=bucket, Key="k")["ETag"],
    )


def test_an_intact_object_is_downloaded(store, tmp_path):
    store.put_new("k", b"bytes")
    store.download("k", tmp_path, "file", sha256=hashlib.sha256(b"bytes").hexdigest(), size=5)
    assert (tmp_path / "file").read_bytes() == b"bytes"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "got 5 bytes"),
        (truncate, "got 4 bytes"),
        (lengthen, "got 6 bytes"),
        (remove, "is missing"),
    ],
)
def test_a_damaged_object_is_not_downloaded(store, client, bucket, tmp_path, damage, reason):
    store.put_new("k", b"bytes")
    damage(client, bucket, "k")
    with pytest.raises(InfrastructureError, match=rf"s3://{bucket}/k.*{reason}"):
        store.download("k", tmp_path, "file", sha256=hashlib.sha256(b"bytes").hexdigest(), size=5)


def test_a_download_that_is_cut_off_on_the_way_is_an_error(front, store, bucket, tmp_path):
    store.put_new("k", b"bytes")
    front.faults.append(("GET", "/k", "cut"))
    with pytest.raises(InfrastructureError, match=bucket):
        ObjectStore(bucket).download(
            "k", tmp_path, "file", sha256=hashlib.sha256(b"bytes").hexdigest(), size=5
        )
    assert front.faults == []


def test_swap_creates_what_is_absent_and_replaces_what_is_as_read(store):
    store.swap("k", b"1", None)
    store.swap("k", b"2", store.get("k").etag)
    assert store.get("k").content == b"2"


@pytest.mark.parametrize("present", ["written again", "created", "deleted"])
def test_a_lost_swap_changes_nothing(store, client, bucket, present):
    store.swap("k", b"1", None)
    etag = None if present == "created" else store.get("k").etag
    if present == "written again":
        store.swap("k", b"2", etag)
    elif present == "deleted":
        remove(client, bucket, "k")
    before = store.get("k")
    with pytest.raises(ConflictError):
        store.swap("k", b"3", etag)
    assert store.get("k") == before


@pytest.mark.parametrize("exists", [True, False])
def test_of_ten_concurrent_swaps_exactly_one_wins(front, client, bucket, exists):
    stores = [ObjectStore(bucket) for _ in range(10)]
    if exists:
        stores[0].swap("k", b"read by all", None)
    etags = [fetched.etag if (fetched := store.get("k")) else None for store in stores]
    results = at_once(
        lambda number: stores[number].swap("k", b"%d" % number, etags[number]), range(10)
    )
    winners = [number for number, result in enumerate(results) if result is None]
    assert [b"%d" % number for number in winners] == [content(client, bucket, "k")]
    assert [type(result) for result in results].count(ConflictError) == 9


def test_keys_go_on_after_a_thousand(store, client, bucket):
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda number: client.put_object(Bucket=bucket, Key=f"many/{number:04d}", Body=b""),
                range(1005),
            )
        )
    client.put_object(Bucket=bucket, Key="other", Body=b"")
    assert list(store.keys("many/")) == [f"many/{number:04d}" for number in range(1005)]
    assert list(store.keys("none/")) == []


def test_the_bucket_is_named_by_argument_or_environment(s3, monkeypatch):
    with pytest.raises(UsageError, match="--bucket or in ADAPTER_BUCKET"):
        open_store()
    monkeypatch.setenv("ADAPTER_BUCKET", "from-environment")
    assert open_store().bucket == "from-environment"
    assert open_store("named").bucket == "named"


@pytest.mark.parametrize(
    "name",
    [
        "ab",
        "x" * 64,
        "Upper",
        "under_score",
        "-dash",
        "dot.",
        "s3://bucket",
        "a b",
        "a/b",
        "a\n",
        "ä" * 5,
    ],
)
def test_what_is_no_buckets_name_is_refused_with_the_rule(s3, name):
    with pytest.raises(
        UsageError, match="3 to 63 lower-case letters, digits, dashes and dots"
    ) as error:
        open_store(name)
    assert repr(name) in str(error.value)


def test_without_credentials_it_is_said_how_to_give_them(bucket, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    for name in (
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
    # boto3 keeps what an earlier client of the process found.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(
        InfrastructureError,
        match=(
            f"{bucket} at .*AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or a role"
        ),
    ):
        ObjectStore(bucket).get("k")


def test_a_server_that_takes_connections_and_never_answers_is_given_up(s3, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        store, started = ObjectStore("silent", timeout_s=0.2), time.monotonic()
        with pytest.raises(
            InfrastructureError, match=r"S3 bucket silent at http://127.0.0.1:\d+: Read timeout"
        ):
            store.get("k")
        # Three times 0.2 s, and at most 3 s of pauses.
        assert time.monotonic() - started < 3 * 0.2 + 3 + 1


def test_a_full_disk_ends_a_download_with_the_path(store, tmp_path):
    store.put_new("k", b"bytes")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (2, former[1])
    )  # as a full disk, this fails the write that crosses it
    try:
        with pytest.raises(
            InfrastructureError, match=rf"{tmp_path}/file cannot be written: File too large"
        ):
            store.download(
                "k", tmp_path, "file", sha256=hashlib.sha256(b"bytes").hexdigest(), size=5
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../file", "a/b", ".", "..", "", ".hidden", "a\n", "a\0", "x" * 200]
)
def test_what_is_no_plain_name_is_not_written_whatever_a_document_says(store, tmp_path, name):
    store.put_new("k", b"bytes")
    with pytest.raises(InfrastructureError, match="which is no plain name"):
        store.download("k", tmp_path, name, sha256=hashlib.sha256(b"bytes").hexdigest(), size=5)
    assert list(tmp_path.iterdir()) == []


def test_a_download_follows_no_link(store, tmp_path):
    store.put_new("k", b"bytes")
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "file").symlink_to(tmp_path / "victim")
    store.download("k", tmp_path, "file", sha256=hashlib.sha256(b"bytes").hexdigest(), size=5)
    assert ((tmp_path / "victim").read_text(), (tmp_path / "file").is_symlink()) == ("kept", False)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(InfrastructureError, match="cannot be written"):
        store.download(
            "k", tmp_path / "link", "file", sha256=hashlib.sha256(b"bytes").hexdigest(), size=5
        )
    assert list((tmp_path / "there").iterdir()) == []


def test_of_an_object_that_is_too_large_no_byte_is_read(store, client, bucket, tmp_path):
    """A channel of 150 MiB took a host to 764 MiB."""
    client.put_object(Bucket=bucket, Key="k", Body=bytes(32 * 2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(4):
        with pytest.raises(
            InfrastructureError,
            match=rf"s3://{bucket}/k has 33554432 bytes, and at most 4194304 are read",
        ):
            store.get("k")
        with pytest.raises(InfrastructureError, match="got 33554432 bytes, expected 5 bytes"):
            store.download("k", tmp_path, "file", sha256="0" * 64, size=5)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 16 * 1024  # KiB
    assert list(tmp_path.iterdir()) == []


def test_a_listing_without_an_end_is_given_up(store, client, bucket, monkeypatch):
    monkeypatch.setattr("adapterops.store.objects._LISTED", 3)
    for number in range(4):
        client.put_object(Bucket=bucket, Key=f"many/{number}", Body=b"")
    with pytest.raises(InfrastructureError, match=rf"s3://{bucket}/many/ has more than 3 objects"):
        list(store.keys("many/"))


def test_a_wrong_bucket_and_a_denied_access_say_what_to_mend(front, bucket):
    with pytest.raises(
        InfrastructureError,
        match=r"S3 bucket no-such-bucket at http://127.0.0.1:\d+: the bucket does not exist",
    ):
        ObjectStore("no-such-bucket").get("k")
    front.faults.append(("GET", "/k", "denied"))
    with pytest.raises(
        InfrastructureError,
        match=rf"{bucket} at http.*GetObject was denied \(AccessDenied\). Check the role",
    ):
        ObjectStore(bucket).get("k")


# --- publishing
# -------------------------------------------------------------------------------------------------


def test_an_adapter_is_published_whole_and_only_once(store, client, bucket, adapter):
    first = published(store, adapter)
    assert (first.name, first.digest, first.new) == (NAME, adapter_digest(adapter), True)
    assert keys(client, bucket) == sorted(
        f"adapters/{NAME}/sha256-{first.digest}/{name}"
        for name in (*adapter_files, "manifest.json")
    )
    for name in adapter_files:
        assert content(client, bucket, f"{first.uri}/{name}") == (adapter / name).read_bytes()
    again = published(store, adapter)
    assert again == replace(first, new=False)
    assert find_release(store, NAME, first.digest) == first.manifest


def test_the_manifest_says_what_was_published_from_what_and_on_which_verdict(release, adapter):
    report, trained = gate_report(adapter), train_manifest(adapter)
    assert release.manifest["base_model"] == {
        "name": BASE,
        "source_id": "test/base",
        "revision": "main",
    }
    assert release.manifest["files"] == trained["adapter"]["files"]
    assert (release.manifest["training_key"], release.manifest["gate_key"]) == (
        trained["training_key"],
        report["gate_key"],
    )
    assert (release.manifest["metrics"], release.manifest["probes"]) == (
        {"rouge_l": 0.7},
        report["probes"],
    )
    assert release.manifest["source"] == SOURCE


@pytest.mark.parametrize("killed_at", [adapter_files[1], "manifest.json"])
def test_a_killed_upload_is_no_release_and_the_next_one_completes_it(
    store, client, bucket, adapter, tmp_path, killed_at
):
    dies_writing(
        bucket,
        killed_at,
        "import pathlib, test_store\ntest_store.published(store,"
        f" pathlib.Path({str(adapter)!r}))\n",
    )
    digest = adapter_digest(adapter)
    assert 0 < len(keys(client, bucket)) < 4
    assert find_release(store, NAME, digest) is None
    assert list_releases(store, NAME) == []
    with pytest.raises(UsageError, match="has no releases"):
        find_version(store, NAME, "latest")
    with pytest.raises(RejectedError, match="is not published"):
        fetch_release(store, NAME, digest, tmp_path / "local", base_model=BASE)
    assert published(store, adapter).new
    assert find_version(store, NAME, "latest") == digest
    fetch_release(store, NAME, digest, tmp_path / "local", base_model=BASE)


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE", "ERROR"])
def test_without_a_pass_nothing_reaches_the_bucket(store, client, bucket, adapter, verdict):
    with pytest.raises(
        RejectedError,
        match=(
            rf"{NAME}: the gate's verdict is {verdict}: rouge_l 0.7 against 0.65. Nothing is"
            r" published"
        ),
    ):
        publish(
            store,
            NAME,
            adapter,
            gate_report(adapter, verdict),
            train_manifest(adapter),
            source=SOURCE,
        )
    assert keys(client, bucket) == []


def test_a_verdict_on_another_adapter_is_refused(store, client, bucket, adapter, tmp_path):
    other = make_adapter(tmp_path / "other", 2.0)
    with pytest.raises(
        RejectedError,
        match=(
            rf"the gate report is on adapter {adapter_digest(other)[:12]}.*holds"
            rf" {adapter_digest(adapter)[:12]}"
        ),
    ):
        publish(store, NAME, adapter, gate_report(other), train_manifest(adapter), source=SOURCE)
    assert keys(client, bucket) == []


@pytest.mark.parametrize("name", ["../x", "x/../y", "/x", "", ".", "X", "a b", "a\n", "x" * 64])
def test_names_that_are_no_names_are_refused(store, client, bucket, adapter, name):
    with pytest.raises(UsageError, match="expected lower-case letters, digits and dashes"):
        published(store, adapter, name)
    with pytest.raises(UsageError, match="expected lower-case letters, digits and dashes"):
        find_version(store, name, "latest")
    assert keys(client, bucket) == []


@pytest.mark.parametrize("file", adapter_files)
def test_an_incomplete_adapter_directory_is_refused(store, client, bucket, adapter, file):
    report, trained = gate_report(adapter), train_manifest(adapter)
    (adapter / file).unlink()
    with pytest.raises(UsageError, match=f"{file} missing"):
        publish(store, NAME, adapter, report, trained, source=SOURCE)
    assert keys(client, bucket) == []


def test_a_file_that_lies_damaged_where_a_release_is_to_be_is_replaced(
    store, client, bucket, adapter, tmp_path
):
    digest = adapter_digest(adapter)
    client.put_object(
        Bucket=bucket, Key=f"adapters/{NAME}/sha256-{digest}/adapter_config.json", Body=b"{}"
    )
    release = published(store, adapter)
    assert (release.new, release.mended) == (True, ())
    fetch_release(store, NAME, digest, tmp_path / "local", base_model=BASE)


@pytest.mark.parametrize("damage", [flip, truncate, lengthen, remove])
def test_publishing_again_mends_files_that_were_damaged_in_the_store(
    store, release, client, bucket, adapter, tmp_path, damage
):
    manifest = content(client, bucket, f"{release.uri}/manifest.json")
    for file in adapter_files[1:]:
        damage(client, bucket, f"{release.uri}/{file}")
    assert published(store, adapter) == replace(release, new=False, mended=adapter_files[1:])
    assert published(store, adapter) == replace(release, new=False)
    fetch_release(store, NAME, release.digest, tmp_path / "local", base_model=BASE)
    assert content(client, bucket, f"{release.uri}/manifest.json") == manifest


def test_two_that_mend_the_same_file_at_once_both_succeed(front, client, bucket, adapter):
    release = published(ObjectStore(bucket), adapter)
    flip(client, bucket, f"{release.uri}/adapter_config.json")
    stores = [ObjectStore(bucket) for _ in range(4)]
    assert [
        result.digest for result in at_once(lambda store: published(store, adapter), stores)
    ] == [release.digest] * 4
    assert (
        content(client, bucket, f"{release.uri}/adapter_config.json")
        == (adapter / "adapter_config.json").read_bytes()
    )


def test_a_damaged_manifest_is_left_to_a_person_and_publishing_says_what_mends_it(
    store, release, client, bucket, adapter
):
    key = f"{release.uri}/manifest.json"
    client.put_object(Bucket=bucket, Key=key, Body=b"{")
    with pytest.raises(
        InfrastructureError,
        match=(
            rf"s3://{bucket}/{key} is not a .*former version back, or remove it .* and publish"
            r" again"
        ),
    ):
        published(store, adapter)
    assert content(client, bucket, key) == b"{"
    remove(client, bucket, key)
    assert published(store, adapter).new


def test_a_publication_that_is_overtaken_by_the_same_one_finds_the_release_there(
    store, bucket, adapter
):
    class Overtaken(ObjectStore):
        def put_new(self, key, *rest):
            if key.endswith("manifest.json"):
                publish(
                    store,
                    NAME,
                    adapter,
                    gate_report(adapter),
                    train_manifest(adapter),
                    source={**SOURCE, "pr": 8},
                )
            super().put_new(key, *rest)

    assert not published(Overtaken(bucket), adapter).new


@pytest.mark.parametrize(
    "differs", [{"training_key": "9" * 64}, {"base_model": {**BASE_ENTRY, "name": "llama"}}]
)
def test_a_train_manifest_that_is_not_of_the_judged_adapter_is_refused(store, adapter, differs):
    with pytest.raises(
        RejectedError,
        match=r"the train manifest is of .*, the gate report of .*Use the train_manifest\.json",
    ):
        publish(
            store,
            NAME,
            adapter,
            gate_report(adapter),
            train_manifest(adapter) | differs,
            source=SOURCE,
        )


def test_a_train_manifest_of_another_adapter_is_refused(store, client, bucket, adapter, tmp_path):
    other = make_adapter(tmp_path / "other", 2.0)
    with pytest.raises(
        RejectedError,
        match=(
            f"of adapter {adapter_digest(other)[:12]}, the gate report of"
            f" {adapter_digest(adapter)[:12]}"
        ),
    ):
        publish(store, NAME, adapter, gate_report(adapter), train_manifest(other), source=SOURCE)
    assert keys(client, bucket) == []


def test_a_verdict_is_published_under_the_name_that_it_names(store, client, bucket, adapter):
    report = gate_report(adapter)
    with pytest.raises(
        RejectedError,
        match=(
            f"other: the gate report is on adapter {NAME}. Publish under that name, or gate it as"
            " other"
        ),
    ):
        publish(store, "other", adapter, report, train_manifest(adapter), source=SOURCE)
    assert keys(client, bucket) == []
    report["adapter"]["name"] = None  # quality_gate.py without --adapter
    assert publish(store, "other", adapter, report, train_manifest(adapter), source=SOURCE).new


# --- fetching
# -------------------------------------------------------------------------------------------------


def fetched(store, release, root, base_model=BASE):
    return fetch_release(store, NAME, release.digest, root, base_model=base_model)


def test_a_release_is_fetched_whole(store, release, adapter, tmp_path):
    directory, manifest = fetched(store, release, tmp_path / "local")
    assert manifest == release.manifest
    assert directory == tmp_path / "local" / NAME / f"sha256-{release.digest}"
    assert sorted(file.name for file in directory.iterdir()) == sorted(
        [*adapter_files, "manifest.json"]
    )
    assert all(
        (directory / name).read_bytes() == (adapter / name).read_bytes() for name in adapter_files
    )
    assert releases.local_manifest(directory, NAME, release.digest) == manifest


def test_an_intact_local_copy_needs_no_store(store, release, client, bucket, tmp_path):
    fetched(store, release, tmp_path)
    for key in keys(client, bucket):
        remove(client, bucket, key)
    assert fetched(store, release, tmp_path)[1] == release.manifest


@pytest.mark.parametrize("file", adapter_files)
@pytest.mark.parametrize("damage", [flip, truncate, remove])
def test_a_release_that_was_damaged_in_the_store_leaves_nothing_local(
    store, release, client, bucket, tmp_path, file, damage
):
    damage(client, bucket, f"{release.uri}/{file}")
    with pytest.raises(InfrastructureError, match=file):
        fetched(store, release, tmp_path / "local")
    assert [path for path in (tmp_path / "local").rglob("*") if path.is_file()] == []
    assert list((tmp_path / "local" / NAME).iterdir()) == []


def change(directory):
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")


def lose(directory):
    (directory / "chat_template.jinja").unlink()


def add(directory):
    (directory / "adapter_model.bin").write_bytes(b"not ours")


def add_directory(directory):
    (directory / "checkpoint").mkdir()


def spoil_manifest(directory):
    (directory / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [change, lose, add, add_directory, spoil_manifest])
def test_a_local_copy_that_is_not_as_published_is_fetched_anew(
    store, release, adapter, tmp_path, damage
):
    directory, _ = fetched(store, release, tmp_path / "local")
    damage(directory)
    assert releases.local_manifest(directory, NAME, release.digest) is None
    fetched(store, release, tmp_path / "local")
    assert sorted(file.name for file in directory.iterdir()) == sorted(
        [*adapter_files, "manifest.json"]
    )
    assert all(
        (directory / name).read_bytes() == (adapter / name).read_bytes() for name in adapter_files
    )
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_a_release_for_another_base_model_is_refused_and_not_fetched(store, release, tmp_path):
    with pytest.raises(RejectedError, match=f"was trained on {BASE}; llama is served here"):
        fetched(store, release, tmp_path / "local", "llama")
    assert not (tmp_path / "local").exists()
    fetched(store, release, tmp_path / "local")
    with pytest.raises(RejectedError, match="llama is served here"):
        fetched(store, release, tmp_path / "local", "llama")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"digest": A}, f"it is the manifest of {NAME} aaaaaaaaaaaa"),
        ({"adapter": "other"}, "it is the manifest of other"),
        ({"verdict": "FAIL"}, "verdict"),
        ({"files": []}, "files"),
        (
            {"files": [{"name": name, "size": 1, "sha256": A} for name in adapter_files]},
            "do not have the digest that it is named by",
        ),
        (
            {"files": [{"name": name, "size": 2**40, "sha256": A} for name in adapter_files]},
            "1099511627776",
        ),  # a disk full
        (
            {"files": [{"name": "adapter_config.json", "size": 1, "sha256": A}] * 3},
            "lacks something, or has it twice",
        ),
        (
            {"base_model": {"name": "a\nERROR forged", "source_id": "x", "revision": "y"}},
            "Expected one line of text",
        ),
        ({"a\nERROR forged": 1}, r"unknown key `a.nERROR forged`"),
        (
            {"files": [{"name": "../../escape", "size": 1, "sha256": A}] * 3},
            "lacks something, or has it twice",
        ),
        ({"surprise": 1}, "unknown key `surprise`"),
    ],
)
def test_a_manifest_that_was_changed_by_hand_is_not_believed(
    store, release, client, bucket, tmp_path, changes, reason
):
    edit_manifest(client, bucket, release, **changes)
    with pytest.raises(
        InfrastructureError,
        match=(
            rf"s3://{bucket}/{release.uri}/manifest.json is not a valid release manifest:"
            rf" .*{reason}"
        ),
    ):
        find_release(store, NAME, release.digest)
    with pytest.raises(InfrastructureError, match="is not a valid release manifest"):
        fetched(store, release, tmp_path / "local")
    assert not (tmp_path / "local").exists()


@pytest.mark.parametrize("body", [b"", b"not JSON", b"\xff\xfe", b"null", b"[]", b'"text"'])
def test_a_manifest_that_is_no_document_is_not_believed(
    store, release, client, bucket, tmp_path, body
):
    client.put_object(Bucket=bucket, Key=f"{release.uri}/manifest.json", Body=body)
    with pytest.raises(InfrastructureError, match=r"is not a valid release manifest: \S+"):
        fetched(store, release, tmp_path / "local")
    assert not (tmp_path / "local").exists()


def test_a_size_that_the_manifest_gets_wrong_is_noticed(store, release, client, bucket, tmp_path):
    files = [{**file, "size": file["size"] + 1} for file in release.manifest["files"]]
    edit_manifest(client, bucket, release, files=files)
    with pytest.raises(InfrastructureError, match="expected"):
        fetched(store, release, tmp_path / "local")


def test_a_disk_that_is_full_in_the_middle_of_a_release_leaves_nothing_half_written(
    store, release, tmp_path
):
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As a full disk, this fails the write that crosses it; the first file fits.
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, former[1]))
    try:
        with pytest.raises(
            InfrastructureError,
            match=rf"{tmp_path}/local/{NAME}/.*/adapter_model.safetensors cannot be written",
        ):
            fetched(store, release, tmp_path / "local")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert list((tmp_path / "local" / NAME).iterdir()) == []
    assert fetched(store, release, tmp_path / "local")[1] == release.manifest


def test_a_place_that_cannot_be_written_is_named(store, release, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        InfrastructureError,
        match=rf"{tmp_path}/file/{NAME}/sha256-{release.digest} cannot be written: Not a directory",
    ):
        fetched(store, release, tmp_path / "file")


def test_a_local_copy_of_another_release_is_not_taken_for_this_one(store, release, tmp_path):
    other = published(store, make_adapter(tmp_path / "other", 2.0))
    directory, _ = fetched(store, release, tmp_path / "local")
    shutil.rmtree(directory)
    shutil.copytree(fetched(store, other, tmp_path / "local")[0], directory)
    assert fetched(store, release, tmp_path / "local")[1]["digest"] == release.digest


def test_a_manifest_of_endless_brackets_is_not_believed(store, release, client, bucket):
    client.put_object(Bucket=bucket, Key=f"{release.uri}/manifest.json", Body=b"[" * 100_000)
    with pytest.raises(InfrastructureError, match="is not a valid release manifest"):
        find_release(store, NAME, release.digest)


# --- versions
# -------------------------------------------------------------------------------------------------


@pytest.fixture
def three(store, client, bucket, tmp_path):
    """Releases of three days, the newest the one with the smallest digest."""
    made = sorted(
        (published(store, make_adapter(tmp_path / f"{value}", value)) for value in range(3)),
        key=lambda r: r.digest,
        reverse=True,
    )
    for day, release in enumerate(made, 1):
        edit_manifest(client, bucket, release, published_at=f"2026-01-0{day}T00:00:00+00:00")
    return [release.digest for release in made]


def test_releases_are_listed_the_oldest_first_and_latest_is_the_newest(store, three):
    assert [manifest["digest"] for manifest in list_releases(store, NAME)] == three
    assert find_version(store, NAME, "latest") == three[-1]


def test_a_version_is_named_by_its_digest_or_its_first_digits(store, three):
    for digest in three:
        assert find_version(store, NAME, digest) == digest
        assert find_version(store, NAME, digest[:12]) == digest
        assert find_version(store, NAME, f"sha256-{digest[:12]}") == digest


@pytest.mark.parametrize(
    ("version", "fits"), [("", 3), ("ffffffffffff0", 0), ("../x", 0), ("Latest", 0)]
)
def test_digits_that_fit_none_or_several_list_what_is_published(store, three, version, fits):
    with pytest.raises(UsageError) as error:
        find_version(store, NAME, version)
    assert f"--version {version} fits {fits} releases of {NAME}" in str(error.value)
    assert str(error.value).endswith(
        "newest last: " + ", ".join(digest[:12] for digest in three) + "."
    )


@pytest.mark.parametrize("version", ["", "sha256-"])
def test_no_digits_name_no_release_not_even_the_only_one(store, release, version):
    with pytest.raises(
        UsageError,
        match=(
            f"fits 1 releases of {NAME}, for it has no digits. Published, newest last:"
            f" {release.digest[:12]}"
        ),
    ):
        find_version(store, NAME, version)


def test_a_damaged_release_is_not_chosen_and_stands_in_the_way_of_no_other(
    store, client, bucket, three
):
    manifest = f"adapters/{NAME}/sha256-{three[1]}/manifest.json"
    client.put_object(Bucket=bucket, Key=manifest, Body=b"{")
    assert find_version(store, NAME, three[0][:12]) == three[0]
    with pytest.raises(
        UsageError,
        match=(
            rf"latest: a damaged release may be the newest. s3://{bucket}/{manifest} is not .* Name"
            r" a version"
        ),
    ):
        find_version(store, NAME, "latest")
    with pytest.raises(
        UsageError,
        match=(
            rf"--version {three[1][:12]}: s3://{bucket}/{manifest} is not a valid release manifest"
        ),
    ):
        find_version(store, NAME, three[1][:12])
    with pytest.raises(InfrastructureError, match=f"{manifest} is not a valid release manifest"):
        list_releases(store, NAME)


def test_a_first_digit_that_fits_a_good_and_a_damaged_release_is_ambiguous(
    store, client, bucket, release
):
    twin = release.digest[:-1] + ("0" if release.digest[-1] != "0" else "1")
    client.put_object(Bucket=bucket, Key=f"adapters/{NAME}/sha256-{twin}/manifest.json", Body=b"{}")
    with pytest.raises(UsageError, match="fits 2 releases"):
        find_version(store, NAME, release.digest[:12])
    assert find_version(store, NAME, release.digest) == release.digest


def test_other_adapters_and_stray_objects_are_no_releases(store, client, bucket, release):
    for key in (
        f"adapters/{NAME}-2/sha256-{A}/manifest.json",
        f"adapters/{NAME}/manifest.json",
        f"adapters/{NAME}/sha256-{A}/x/manifest.json",
    ):
        client.put_object(Bucket=bucket, Key=key, Body=b"{}")
    assert [manifest["digest"] for manifest in list_releases(store, NAME)] == [release.digest]


def test_releases_of_one_second_are_in_the_order_of_their_publication(store, tmp_path):
    made = sorted(
        (make_adapter(tmp_path / f"{value}", value) for value in range(6)),
        key=adapter_digest,
        reverse=True,
    )
    digests = [published(store, adapter).digest for adapter in made]
    assert [manifest["digest"] for manifest in list_releases(store, NAME)] == digests


# --- channels
# -------------------------------------------------------------------------------------------------


def changed(store, change, reason="test", actor="tester"):
    return change_channel(store, NAME, change, reason=reason, actor=actor)


def canary(digest, weight):
    return partial(start_canary, digest=digest, weight=weight)


def stable(digest):
    return partial(promote, digest=digest)


def rolled_back(store):
    return roll_back(store, NAME, actor="tester")


def roles(channel):
    return (channel.stable, channel.canary, channel.weight, channel.previous)


def test_a_version_goes_from_canary_to_stable_and_back(store):
    assert read_channel(store, NAME) is None
    assert roles(changed(store, canary(A, 10))) == (None, A, 10, None)
    assert roles(changed(store, stable(A))) == (A, None, 0, None)
    assert roles(changed(store, canary(B, 10))) == (A, B, 10, None)
    assert roles(changed(store, canary(B, 50))) == (A, B, 50, None)
    assert roles(changed(store, stable(B))) == (B, None, 0, A)
    assert roles(changed(store, canary(C, 10))) == (B, C, 10, A)
    assert roles(changed(store, abort_canary)) == (B, None, 0, A)
    assert roles(rolled_back(store)) == (A, None, 0, None)
    assert (read_channel(store, NAME)[0].versions, read_channel(store, NAME)[0].rolled_back) == (
        (A,),
        B,
    )
    assert [channel.generation for channel in history(store, NAME)] == list(range(1, 9))


def test_a_rollback_ends_the_canary_too(store):
    for change in (stable(A), stable(B), canary(C, 10)):
        changed(store, change)
    assert roles(rolled_back(store)) == (A, None, 0, None)


def test_promoting_the_stable_version_again_keeps_the_previous_one(store):
    for change in (stable(A), stable(B), canary(B, 10)):
        changed(store, change)
    assert roles(changed(store, stable(B))) == (B, None, 0, A)


def test_a_second_canary_and_a_rollback_to_nothing_are_refused_and_change_nothing(
    store, client, bucket
):
    changed(store, canary(A, 10))
    before = {key: content(client, bucket, key) for key in keys(client, bucket)}
    with pytest.raises(RejectedError, match=f"canary {A[:12]} is under way"):
        changed(store, canary(B, 10))
    with pytest.raises(RejectedError, match="no previous version"):
        rolled_back(store)
    assert {key: content(client, bucket, key) for key in keys(client, bucket)} == before


def test_a_change_that_alters_nothing_writes_nothing(store, client, bucket):
    assert changed(store, abort_canary).generation == 0
    assert keys(client, bucket) == []
    first = changed(store, canary(A, 10))
    assert changed(store, canary(A, 10), reason="again") == first
    assert keys(client, bucket) == [f"audit/{NAME}/000000001.json", f"channels/{NAME}.json"]


def test_each_generation_is_kept_in_the_audit_log_with_who_and_why(store, client, bucket):
    for change, reason, actor in ((canary(A, 10), "try", "kim"), (stable(A), "works", "lee")):
        changed(store, change, reason, actor)
        document = content(client, bucket, f"channels/{NAME}.json")
        assert (
            content(client, bucket, f"audit/{NAME}/{json.loads(document)['generation']:09d}.json")
            == document
        )
    assert [
        (channel.generation, channel.reason, channel.updated_by) for channel in history(store, NAME)
    ] == [
        (1, "try", "kim"),
        (2, "works", "lee"),
    ]


def test_who_changed_a_channel_is_the_github_actor_else_the_user(store, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTOR", "octocat")
    assert changed(store, canary(A, 10), actor=None).updated_by == "octocat"
    monkeypatch.delenv("GITHUB_ACTOR")
    monkeypatch.setenv("LOGNAME", "kim")
    assert changed(store, canary(A, 20), actor=None).updated_by == "kim"


def test_an_audit_entry_that_a_killed_process_left_unwritten_is_written_by_the_next_change(
    store, client, bucket
):
    changed(store, canary(A, 10))
    dies_writing(
        bucket,
        f"{NAME}/000000002.json",
        "from adapterops.store.channels import change_channel, promote\nchange_channel(store,"
        f" {NAME!r}, lambda channel: promote(channel, {A!r}), reason='killed', actor='ghost')\n",
    )
    assert roles(read_channel(store, NAME)[0]) == (A, None, 0, None)
    lost = content(client, bucket, f"channels/{NAME}.json")
    assert [channel.generation for channel in history(store, NAME)] == [1]
    changed(store, canary(B, 10))
    assert [(channel.generation, channel.updated_by) for channel in history(store, NAME)] == [
        (1, "tester"),
        (2, "ghost"),
        (3, "tester"),
    ]
    assert content(client, bucket, f"audit/{NAME}/000000002.json") == lost


def test_an_audit_entry_is_never_overwritten(store, client, bucket):
    changed(store, canary(A, 10))
    client.put_object(Bucket=bucket, Key=f"audit/{NAME}/000000001.json", Body=b"{}")
    with pytest.raises(RejectedError, match=r"audit/.*/000000001\.json exists with other content"):
        changed(store, stable(A))
    assert read_channel(store, NAME)[0].generation == 1


def test_ten_concurrent_changes_all_happen_one_after_the_other(front, bucket):
    stores = [ObjectStore(bucket) for _ in range(10)]
    step = lambda channel: replace(channel, stable=A, weight=channel.weight + 1)  # noqa: E731
    results = at_once(
        lambda number: change_channel(stores[number], NAME, step, reason="step", actor=f"{number}"),
        range(10),
    )
    assert sorted((channel.generation, channel.weight) for channel in results) == [
        (n, n) for n in range(1, 11)
    ]
    kept = list(history(stores[0], NAME))
    assert [(channel.generation, channel.weight) for channel in kept] == [
        (n, n) for n in range(1, 11)
    ]
    assert kept == sorted(results, key=lambda channel: channel.generation)
    assert read_channel(stores[0], NAME)[0] == kept[-1]


def test_a_race_that_is_lost_again_and_again_ends(store, bucket):
    other, weights = ObjectStore(bucket), iter(range(1, 100))

    def overtaken(channel):
        change_channel(other, NAME, canary(B, next(weights)), reason="overtakes", actor="other")
        return replace(channel, canary=A, weight=1)

    with pytest.raises(
        InfrastructureError, match=f"channel {NAME}: lost the race for the write 20 times"
    ):
        changed(store, overtaken)
    assert (read_channel(store, NAME)[0].updated_by, read_channel(store, NAME)[0].generation) == (
        "other",
        20,
    )
    assert [channel.generation for channel in history(store, NAME)] == list(range(1, 21))


def test_a_change_whose_answer_is_lost_on_the_way_happens_once(front, bucket):
    store = ObjectStore(bucket)
    changed(store, canary(A, 10))
    front.faults.append(("PUT", f"channels/{NAME}.json", "answer lost"))
    assert (changed(store, stable(A)).generation, front.faults) == (2, [])
    assert roles(read_channel(store, NAME)[0]) == (A, None, 0, None)


class Overtaking(ObjectStore):
    """Lets somebody else act once, right before it writes a channel."""

    def __init__(self, bucket, act):
        super().__init__(bucket)
        self.acts = [act]

    def swap(self, *arguments):
        while self.acts:
            self.acts.pop()()
        super().swap(*arguments)


def test_a_rollback_whose_answer_is_lost_on_the_way_happens_once(front, bucket):
    store = ObjectStore(bucket)
    for change in (stable(A), stable(B)):
        changed(store, change)
    front.faults.append(("PUT", f"channels/{NAME}.json", "answer lost"))
    assert roles(rolled_back(store)) == (A, None, 0, None)


def test_a_rollback_that_failed_in_its_audit_entry_can_be_repeated(front, bucket):
    store = ObjectStore(bucket)
    for change in (stable(A), stable(B)):
        changed(store, change)
    front.faults.append(("PUT", f"{NAME}/000000003.json", "denied"))
    with pytest.raises(InfrastructureError):
        rolled_back(store)
    assert roles(rolled_back(store)) == (A, None, 0, None)


def test_two_people_that_roll_back_at_once_roll_back_once(store, bucket):
    for change in (stable(A), stable(B)):
        changed(store, change)
    overtaking = Overtaking(bucket, lambda: roll_back(store, NAME, actor="other"))
    assert roles(rolled_back(overtaking)) == (A, None, 0, None)
    assert (read_channel(store, NAME)[0].generation, read_channel(store, NAME)[0].updated_by) == (
        3,
        "other",
    )


def test_a_rollback_that_is_asked_for_again_does_not_lead_back(store):
    for change in (stable(A), stable(B)):
        changed(store, change)
    first = rolled_back(store)
    assert rolled_back(store) == first
    assert first.reason == f"rollback from {B[:12]} to {A[:12]}"
    changed(store, stable(C))
    assert roles(rolled_back(store)) == (A, None, 0, None)


def test_no_rollback_leads_back_to_the_version_that_was_left_whatever_failed_since(store):
    for change in (stable(A), stable(B)):
        changed(store, change)
    rolled_back(store)
    changed(store, canary(C, 10))
    changed(store, abort_canary)
    assert roles(rolled_back(store)) == (A, None, 0, None)
    changed(store, canary(C, 10))
    assert roles(rolled_back(store)) == (
        A,
        None,
        0,
        None,
    )  # and one that is asked for during a trial ends the trial
    changed(store, stable(C))
    assert (roles(rolled_back(store)), read_channel(store, NAME)[0].rolled_back) == (
        (A, None, 0, None),
        C,
    )


def test_a_rollback_does_not_take_away_what_became_stable_meanwhile(store, bucket):
    for change in (stable(A), stable(B)):
        changed(store, change)
    overtaking = Overtaking(bucket, lambda: changed(store, stable(C), "all steps passed", "lee"))
    with pytest.raises(
        RejectedError,
        match=rf"{C[:12]} became stable meanwhile \(generation 3, by lee: all steps passed\)",
    ):
        rolled_back(overtaking)
    assert roles(read_channel(store, NAME)[0]) == (C, None, 0, B)


def test_a_change_whose_answer_is_lost_and_that_is_overtaken_then_happens_once(store, bucket):
    changed(store, stable(A))

    class Lost(ObjectStore):
        def swap(self, key, content, etag):
            super().swap(key, content, etag)
            if json.loads(content)["generation"] == 2:
                changed(store, canary(C, 20), actor="other")
                raise ConflictError

    step = lambda channel: replace(channel, weight=channel.weight + 1)  # noqa: E731
    assert changed(Lost(bucket), step).generation == 2
    assert [(channel.generation, channel.weight) for channel in history(store, NAME)] == [
        (1, 0),
        (2, 1),
        (3, 20),
    ]


@pytest.mark.parametrize(
    "change",
    [
        canary(A, 150),
        canary("not a digest", 10),
        lambda channel: replace(channel, adapter="No Name"),
    ],
)
def test_an_invalid_channel_is_not_written(store, client, bucket, change):
    with pytest.raises(UsageError, match=rf"channel {NAME}: .*Nothing is written"):
        changed(store, change)
    assert read_channel(store, NAME) is None
    assert keys(client, bucket) == []


def test_a_channel_that_was_deleted_goes_on_after_its_audit_log(store, client, bucket):
    for change in (canary(A, 10), stable(A)):
        changed(store, change)
    remove(client, bucket, f"channels/{NAME}.json")
    client.put_object(Bucket=bucket, Key=f"audit/{NAME}/notes.json", Body=b"{}")
    assert changed(store, abort_canary).stable is None
    assert keys(client, bucket) == [
        f"audit/{NAME}/{name}.json" for name in ("000000001", "000000002", "notes")
    ]
    assert roles(changed(store, canary(B, 10))) == (None, B, 10, None)
    assert [(channel.generation, channel.canary) for channel in history(store, NAME)] == [
        (1, A),
        (2, None),
        (3, B),
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"not JSON", "it is not JSON"),
        (b"[" * 60_000, "it is not JSON"),
        (b"{}", "missing key"),
        (
            json.dumps(
                {**channels.channel_document(channels.Channel("other")), "generation": 1}
            ).encode(),
            "it is of another adapter",
        ),
        (
            json.dumps(
                {
                    **channels.channel_document(channels.Channel(NAME)),
                    "generation": 1,
                    "weight": 101,
                }
            ).encode(),
            "weight",
        ),
    ],
)
def test_a_channel_that_was_damaged_is_not_believed_and_not_changed(
    store, client, bucket, body, reason
):
    client.put_object(Bucket=bucket, Key=f"channels/{NAME}.json", Body=body)
    for use in (lambda: read_channel(store, NAME), lambda: changed(store, stable(A))):
        with pytest.raises(
            InfrastructureError,
            match=rf"s3://{bucket}/channels/{NAME}.json is not a valid channel: .*{reason}",
        ):
            use()
    assert content(client, bucket, f"channels/{NAME}.json") == body


# --- commands
# -------------------------------------------------------------------------------------------------


def run(script, *arguments, **environment):
    """Run a script as CI does. Whatever happens, it shows no traceback and no secret."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *arguments],
        env={**os.environ, "AWS_SECRET_ACCESS_KEY": SECRET, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert SECRET not in said
    return done.returncode, said


def publish_command(adapter, report, *options, **environment):
    path = adapter.parent / "gate_report.json"
    path.write_text(json.dumps(report))
    return run(
        "publish_adapter.py",
        "--adapter",
        NAME,
        "--model",
        str(adapter),
        "--gate-report",
        str(path),
        *options,
        **environment,
    )


def test_publishing_by_command_is_repeatable_and_mends(store, client, bucket, adapter):
    code, said = publish_command(
        adapter,
        gate_report(adapter),
        "--bucket",
        bucket,
        "--pr",
        "7",
        GITHUB_SHA="d" * 40,
        GITHUB_ACTOR="octocat",
    )
    assert (code, ": published" in said) == (0, True)
    assert list_releases(store, NAME)[0]["source"] == {
        "commit": "d" * 40,
        "pr": "7",
        "actor": "octocat",
    }
    code, said = publish_command(adapter, gate_report(adapter), ADAPTER_BUCKET=bucket)
    assert (code, "already published, nothing to do" in said) == (0, True)
    flip(
        client,
        bucket,
        f"adapters/{NAME}/sha256-{adapter_digest(adapter)}/adapter_model.safetensors",
    )
    code, said = publish_command(adapter, gate_report(adapter), ADAPTER_BUCKET=bucket)
    assert (code, "already published, now with adapter_model.safetensors" in said) == (0, True)


def test_a_wrong_bucket_ends_with_3_and_names_bucket_and_endpoint(s3, adapter):
    code, said = publish_command(adapter, gate_report(adapter), "--bucket", "no-such-bucket")
    assert code == 3
    assert f"S3 bucket no-such-bucket at http://127.0.0.1:{s3}: the bucket does not exist" in said


def test_a_failed_gate_ends_with_1(client, bucket, adapter):
    code, said = publish_command(adapter, gate_report(adapter, "FAIL"), "--bucket", bucket)
    assert (code, "the gate's verdict is FAIL" in said) == (1, True)
    assert keys(client, bucket) == []


def test_no_bucket_ends_with_2(s3, adapter):
    code, said = publish_command(adapter, gate_report(adapter))
    assert (code, "--bucket or in ADAPTER_BUCKET" in said) == (2, True)


def test_an_endpoint_that_nobody_listens_on_ends_with_3_within_a_minute(s3, adapter):
    endpoint, started = f"http://127.0.0.1:{free_port()}", time.monotonic()
    code, said = publish_command(
        adapter, gate_report(adapter), "--bucket", "any", AWS_ENDPOINT_URL_S3=endpoint
    )
    assert (code, f"S3 bucket any at {endpoint}" in said) == (3, True)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "options", [[], ["--version", "latest", "--rollback"], ["--rollback", "--abort"]]
)
def test_deploying_says_that_it_needs_exactly_one_thing_to_do(bucket, options):
    code, said = run("deploy_adapter.py", "--adapter", NAME, "--bucket", bucket, *options)
    assert (code, "one of --version, --rollback and --abort" in said) == (2, True)


def test_deploying_an_unpublished_version_lists_the_published_ones(store, release, bucket):
    code, said = run("deploy_adapter.py", "--adapter", NAME, "--bucket", bucket, "--version", A)
    assert code == 2
    assert f"fits 0 releases of {NAME}. Published, newest last: {release.digest[:12]}." in said
    assert read_channel(store, NAME) is None


def test_deploying_without_any_release_says_to_publish_first(store, bucket):
    code, said = run(
        "deploy_adapter.py", "--adapter", NAME, "--bucket", bucket, "--version", "latest"
    )
    assert (code, f"{NAME} has no releases in bucket {bucket}. Publish one first" in said) == (
        2,
        True,
    )


def test_rolling_back_without_a_previous_version_ends_with_1(store, bucket):
    changed(store, stable(A))
    code, said = run("deploy_adapter.py", "--adapter", NAME, "--bucket", bucket, "--rollback")
    assert (code, "no previous version" in said) == (1, True)
    assert read_channel(store, NAME)[0].generation == 1


def test_the_address_of_a_release_is_printed_in_one_piece(bucket, adapter):
    _, said = publish_command(adapter, gate_report(adapter), "--bucket", bucket)
    assert f"adapters/{NAME}/sha256-{adapter_digest(adapter)}" in said


def test_a_gate_report_with_probes_that_are_none_ends_without_a_traceback(bucket, adapter):
    code, said = publish_command(
        adapter, gate_report(adapter, probes=[{"x": 1}]), "--bucket", bucket
    )
    assert (code, "`probes[0]`: unknown key `x`" in said) == (2, True)


# --- deploying
# -------------------------------------------------------------------------------------------------


class Host(ThreadingHTTPServer):
    """A serving host that follows its channel at once. `unfit` are versions that it cannot load;
    `looked` and `asked` are called at a look at its health and at a question."""

    daemon_threads = True

    def __init__(self, store):
        super().__init__(("127.0.0.1", 0), HostHandler)
        self.store, self.unfit, self.asked, self.looked = store, {}, lambda: None, lambda: None
        self.counts = collections.Counter()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class HostHandler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/metrics":
            lines = ["llm_gateway_saturation_ratio 0.1"]
            for version, count in self.server.counts.items():
                labels = f'adapter="{NAME}",version="{version}",origin="probe"'
                lines += [f'llm_version_request_total{{{labels},status="200"}} {count}']
                lines += [
                    f'llm_version_duration_seconds_bucket{{{labels},le="{bound}"}} {count}'
                    for bound in ("0.1", "0.11", "+Inf")
                ]
            return self.answer("\n".join(lines) + "\n")
        self.server.looked()
        channel, unfit = read_channel(self.server.store, NAME)[0], self.server.unfit
        ready = {
            f"{role}_ready": version not in unfit
            for role, version in (("stable", channel.stable), ("canary", channel.canary))
        }
        return self.answer(
            {
                "adapters": {
                    NAME: {
                        "generation": channel.generation,
                        "stable": channel.stable,
                        "canary": channel.canary,
                        "unfit": unfit,
                        **ready,
                    }
                }
            }
        )

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked()
        self.server.counts[self.headers["x-adapter-version"][:12]] += 1
        self.answer({}, {"x-adapter-version": self.headers["x-adapter-version"][:12]})

    def answer(self, document, headers=None):
        self.send_response(200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(
            document.encode() if isinstance(document, str) else json.dumps(document).encode()
        )


@pytest.fixture
def host(store):
    with served(Host(store)) as server:
        yield server


def deploy_command(bucket, host, *options):
    return run(
        "deploy_adapter.py",
        "--adapter",
        NAME,
        "--bucket",
        bucket,
        "--gateway",
        host.url,
        "--timeout",
        "5",
        *options,
    )


def test_a_version_is_deployed_by_command_as_canary_and_then_as_stable_and_rolled_back(
    store, bucket, release, host, tmp_path
):
    newer = published(store, make_adapter(tmp_path / "newer", 2.0))
    assert deploy_command(bucket, host, "--version", release.digest[:12])[0] == 0
    code, said = deploy_command(bucket, host, "--version", newer.digest)
    assert (code, f"generation 6: {newer.digest[:12]} is stable on 1 host" in said) == (0, True)
    code, said = deploy_command(bucket, host, "--version", newer.digest)
    assert (code, "is the stable version already (generation 6)" in said) == (0, True)
    assert deploy_command(bucket, host, "--rollback")[0] == 0
    first, second = release.digest, newer.digest
    assert [roles(channel) for channel in history(store, NAME)] == [
        (None, first, 0, None),
        (None, first, 50, None),
        (first, None, 0, None),
        (first, second, 0, None),
        (first, second, 50, None),
        (second, None, 0, first),
        (first, None, 0, None),
    ]


def test_a_version_that_a_host_finds_unfit_ends_with_1_and_leaves_the_stable_one(
    store, bucket, release, host
):
    changed(store, stable(A))
    host.unfit[release.digest] = "rank 2 is too much"
    code, said = deploy_command(bucket, host, "--version", "latest")
    assert (
        code,
        "rank 2 is too much" in said,
        "canary aborted, stable is aaaaaaaaaaaa" in said,
    ) == (1, True, True)
    assert roles(read_channel(store, NAME)[0]) == (A, None, 0, None)


def test_a_host_that_does_not_answer_ends_with_3_and_leaves_the_stable_one(store, bucket, release):
    changed(store, stable(A))
    gateway = f"http://127.0.0.1:{free_port()}"
    options = ("--version", "latest", "--gateway", gateway, "--timeout", "1")
    code, said = run("deploy_adapter.py", "--adapter", NAME, "--bucket", bucket, *options)
    assert (code, gateway in said) == (3, True)
    assert roles(read_channel(store, NAME)[0]) == (A, None, 0, None)


def test_a_canary_under_way_is_not_disturbed_by_another_deployment_until_it_is_aborted(
    store, bucket, release, host
):
    changed(store, canary(B, 10))
    code, said = deploy_command(bucket, host, "--version", "latest")
    assert (code, f"canary {B[:12]} is under way" in said) == (1, True)
    assert roles(read_channel(store, NAME)[0]) == (None, B, 10, None)
    assert deploy_command(bucket, host, "--abort")[0] == 0
    assert deploy_command(bucket, host, "--version", "latest")[0] == 0


def test_a_deployment_that_did_not_begin_does_not_say_that_it_aborted_the_canary(
    store, bucket, release, host
):
    changed(store, canary(B, 10))
    said = deploy_command(bucket, host, "--version", "latest")[1]
    assert "canary aborted" not in said
    assert (
        f"{release.digest[:12]} is not the canary, nothing to abort, there is no stable version"
        in said
    )


def test_a_canary_that_was_aborted_by_hand_does_not_become_stable(store, bucket, release, host):
    changed(store, stable(A))
    host.asked = lambda: changed(store, abort_canary, reason="aborted by hand")
    code, said = deploy_command(bucket, host, "--version", "latest")
    assert (
        code,
        "somebody ended its trial: generation 3 has no canary" in said,
        "(by tester: aborted by hand)" in said,
    ) == (1, True, True)
    assert "canary aborted" not in said
    assert roles(read_channel(store, NAME)[0]) == (A, None, 0, None)


def test_a_canary_that_was_aborted_by_hand_is_not_put_on_trial_again_by_the_next_step(
    store, release, host
):
    changed(store, stable(A))
    host.asked = lambda: changed(store, abort_canary, reason="aborted by hand")
    with pytest.raises(RejectedError, match="somebody ended its trial"):
        deploy(store, NAME, release.digest, [host.url], UNJUDGED, Console(), timeout_s=5)
    assert roles(read_channel(store, NAME)[0]) == (A, None, 0, None)


def test_a_canary_that_was_aborted_while_a_host_loads_it_is_not_waited_for(store, release, host):
    changed(store, stable(A))
    host.looked = lambda: changed(store, abort_canary, reason="aborted by hand")
    started = time.monotonic()
    with pytest.raises(
        RejectedError,
        match=rf"{NAME} is at generation 3, in which {release.digest[:12]} is no longer canary",
    ):
        deploy(store, NAME, release.digest, [host.url], UNJUDGED, Console(), timeout_s=60)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("when", ["looked", "asked"])
def test_a_rollout_to_a_version_that_is_withdrawn_meanwhile_ends(store, release, host, when):
    """While hosts load it, or between two steps."""
    changed(store, stable(A))
    setattr(
        host,
        when,
        lambda: withdraw(store, NAME, release.digest, reason="leaks", signer=None, trust=None),
    )
    with pytest.raises(RejectedError, match=r"no longer canary|somebody ended its trial"):
        deploy(store, NAME, release.digest, [host.url], UNJUDGED, Console(), timeout_s=20)
    assert roles(read_channel(store, NAME)[0]) == (A, None, 0, None)


def test_a_withdrawn_version_is_not_promoted_even_if_the_channel_was_not_changed_yet(
    store, release, host
):
    """The list is written first; a rollout that looked before must not end well in between."""
    changed(store, stable(A))
    entry = {"digest": release.digest, "reason": "leaks", "by": "tester", "at": "now"}
    listed = Withdrawn(1, {release.digest: entry}).document(NAME)
    host.asked = lambda: store.put_new(f"withdrawn/{NAME}.json", json.dumps(listed).encode())
    with pytest.raises(
        RejectedError, match=rf"version {release.digest[:12]} is withdrawn \(leaks\)"
    ):
        deploy(store, NAME, release.digest, [host.url], UNJUDGED, Console(), timeout_s=20)
    assert roles(read_channel(store, NAME)[0]) == (A, None, 0, None)


def test_nothing_publishes_deploys_or_rolls_back_to_a_withdrawn_version(
    store, release, bucket, adapter, host
):
    withdraw(store, NAME, release.digest, reason="leaks", signer=None, trust=None)
    code, said = deploy_command(bucket, host, "--version", release.digest)
    assert (code, "is withdrawn (leaks)" in said) == (1, True), said
    assert read_channel(store, NAME) is None
    with pytest.raises(RejectedError, match="is withdrawn"):
        published(store, adapter)
    changed(store, stable(release.digest))
    changed(store, stable(A))
    code, said = deploy_command(bucket, host, "--rollback")
    assert (code, "is withdrawn" in said) == (1, True), said


def test_a_deployment_that_cannot_take_its_canary_back_says_so_and_why_it_failed(
    front, bucket, adapter, host
):
    store, said = ObjectStore(bucket), Console(record=True, width=80)
    release = published(store, adapter)
    host.unfit[release.digest] = "rank 2 is too much"
    host.looked = lambda: front.faults.append(("PUT", f"channels/{NAME}.json", "denied"))
    with pytest.raises(RejectedError, match="rank 2 is too much"):
        deploy(store, NAME, release.digest, [host.url], UNJUDGED, said, timeout_s=5)
    assert (
        f"aborting the canary {release.digest[:12]} failed: S3 bucket {bucket}"
        in said.export_text()
    )


def test_a_rollback_by_command_can_be_repeated(store, bucket, host):
    for change in (stable(A), stable(B)):
        changed(store, change)
    for _ in range(2):
        code, said = deploy_command(bucket, host, "--rollback")
        assert (
            code,
            f"generation 3: rollback from {B[:12]} to {A[:12]}, stable is {A[:12]}" in said,
        ) == (0, True)
