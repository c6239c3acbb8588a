"""Strangers at the public port: what they send, hold open or never finish takes nothing from the
others.

The clients are plain sockets, since no proper client does any of this; the gateway is the real one
on its real port.
"""

import asyncio
import contextlib
import gzip
import json
import logging
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib

import aiohttp
import aiohttp.http_parser
import pytest
from aiohttp import web
from gateway_host import QUESTION, STREAM, connect, head, with_host
from test_serving_access import CLIENT, write_keys

from adapterops.errors import UsageError
from adapterops.schemas import ROOT
from adapterops.serving.connections import client_of
from adapterops.specs.serving import load_serving_config
from adapterops.store.channels import change_channel, promote
from fleet import NAME, ask, health, running, wait_for

GONE = (
    ConnectionError,
    RuntimeError,
)  # the latter is what uvloop says of writing to a closed connection
SOON = 6  # seconds, for what must be over in one or two; a busy machine is slow


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path / "keys.yaml")


@pytest.fixture
def decompressed(monkeypatch):
    """The decompressors that aiohttp made."""
    made = []
    for name in ("ZLibDecompressor", "BrotliDecompressor", "ZSTDDecompressor"):
        real = getattr(aiohttp.http_parser, name)
        monkeypatch.setattr(
            aiohttp.http_parser,
            name,
            lambda *args, real=real, **options: made.append(real) or real(*args, **options),
        )
    return made


QUESTION_BYTES = json.dumps(QUESTION).encode()
ASKED = head(length=len(QUESTION_BYTES)) + QUESTION_BYTES
HEALTH = head("GET", "/health")


async def status_of(reader):
    """The status of the next answer, whose body is read; 0 if the connection is closed instead."""
    try:
        found = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0
    length = [line for line in found.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if length:
        await reader.readexactly(int(length[0].split(b":")[1]))
    return int(found.split()[1])


async def closed(reader, seconds=SOON):
    """True if the server closes the connection in time."""
    with contextlib.suppress(*GONE):
        async with asyncio.timeout(seconds):
            while await reader.read(1 << 16):
                pass
    return True


# Compressed bodies


CODINGS = [
    ["content-encoding: gzip"],
    ["content-encoding: GZip"],
    ["content-encoding: deflate"],
    ["content-encoding: br"],
    ["content-encoding: zstd"],
    ["Content-Encoding: x-unknown"],
    ["content-encoding: identity, gzip"],
    ["content-encoding: gzip, gzip"],
    ["content-encoding: identity", "content-encoding: gzip"],
    ["content-encoding: gzip", "content-encoding: identity"],
    ["content-encoding:\tgzip\t"],
]
ENDS = [
    ("POST", path)
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/feedback", "/nowhere", "/health")
]
ENDS += [
    ("GET", "/health"),
    ("GET", "/v1/models"),
    ("PUT", "/v1/chat/completions"),
    ("DELETE", "/x"),
]


@pytest.mark.parametrize("coding", CODINGS, ids=" and ".join)
def test_a_compressed_body_is_refused_everywhere_and_never_decompressed(coding, keys, decompressed):
    bomb = gzip.compress(bytes(1 << 22))

    async def test(gateway):
        for method, path in ENDS:
            for key in ([], [f"authorization: Bearer {CLIENT}"]):
                reader, writer = await connect(
                    gateway, head(method, path, *coding, *key, length=len(bomb)) + bomb
                )
                assert await status_of(reader) == 415, (method, path)
                writer.close()
        assert decompressed == []
        assert gateway.engine.requests == []

    with_host(test, api_keys=keys)


def test_a_compressed_stream_of_chunks_is_refused_too(decompressed):
    squeezed = gzip.compress(bytes(1 << 20))
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(squeezed), squeezed)

    async def test(gateway):
        for headers in (
            ["transfer-encoding: gzip, chunked"],
            ["transfer-encoding: gzip", "transfer-encoding: chunked"],
            ["transfer-encoding: Deflate , Chunked"],
            ["transfer-encoding: chunked", "content-encoding: gzip"],
        ):
            reader, writer = await connect(
                gateway, head("POST", "/v1/chat/completions", *headers) + chunks
            )
            assert await status_of(reader) in (400, 415), headers
            writer.close()
        assert decompressed == []
        assert gateway.engine.requests == []

    with_host(test)


def test_a_body_that_says_it_is_not_compressed_is_answered():
    async def test(gateway):
        chunked = head("POST", "/v1/chat/completions", "transfer-encoding: Chunked")
        chunked += b"%x\r\n%s\r\n0\r\n\r\n" % (len(QUESTION_BYTES), QUESTION_BYTES)
        for coding in ("content-encoding: identity", "content-encoding: , Identity ,", ""):
            plain = (
                head(
                    "POST",
                    "/v1/chat/completions",
                    *filter(None, [coding]),
                    length=len(QUESTION_BYTES),
                )
                + QUESTION_BYTES
            )
            reader, _ = await connect(gateway, plain if coding else chunked)
            assert await status_of(reader) == 200
        assert [json.loads(body)["messages"] for *_, body in gateway.engine.requests] == [
            QUESTION["messages"]
        ] * 3

    with_host(test)


def test_a_compressed_question_leaves_its_line_in_the_log(capsys):
    async def test(gateway):
        status, _, text = await gateway.ask(
            zlib.compress(QUESTION_BYTES), headers={"content-encoding": "deflate"}
        )
        assert status == 415
        assert "no Content-Encoding" in json.loads(text)["error"]["message"]

    with_host(test, access_log=True)
    [line] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (line["path"], line["status"]) == ("/v1/chat/completions", 415)


# Bodies that nobody reads


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (head("POST", "/v1/chat/completions", length=10**9), 401),
        (head("POST", "/nowhere", length=10**9), 404),
        (head("PUT", "/v1/completions", length=10**9), 405),
        (head("GET", "/health", length=10**9), 200),
        (head("POST", "/v1/feedback", "content-encoding: gzip", length=10**9), 415),
        (head("POST", "/v1/feedback", "transfer-encoding: chunked"), 401),
    ],
    ids=["no key", "no such path", "wrong method", "no body wanted", "compressed", "chunks"],
)
def test_the_rest_of_a_body_that_nobody_wants_is_not_waited_for(sent, status, keys):
    async def test(gateway):
        reader, writer = await connect(gateway, sent)
        assert await status_of(reader) == status
        with contextlib.suppress(*GONE):
            async with asyncio.timeout(SOON):
                while not reader.at_eof():
                    writer.write(b"1\r\n.\r\n" if b"chunked" in sent else b".")
                    await writer.drain()
                    await asyncio.sleep(0.1)
        assert await closed(reader)

    with_host(test, api_keys=keys)


def test_nor_taken_by_the_gigabyte(keys):
    """Two seconds are much on a fast line."""
    taken = 0

    async def test(gateway):
        nonlocal taken
        _, writer = await connect(gateway, head(length=1 << 32))
        with pytest.raises(GONE):
            while taken < 1 << 30:
                writer.write(bytes(1 << 20))
                await writer.drain()
                taken += 1 << 20

    with_host(test, api_keys=keys)
    assert taken < 64 << 20  # what the two sockets hold is a part of it


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/feedback"])
def test_a_body_that_trickles_is_given_up_and_its_connection_too(path, monkeypatch):
    monkeypatch.setattr("adapterops.serving.gateway._BODY_TIMEOUT_S", 0.5)

    async def test(gateway):
        reader, writer = await connect(gateway, head("POST", path, length=1000) + b"{")

        async def trickle():
            with contextlib.suppress(*GONE):
                while True:
                    writer.write(b" ")
                    await asyncio.sleep(0.1)

        task = asyncio.create_task(trickle())
        assert await asyncio.wait_for(status_of(reader), SOON) == 408
        assert await closed(reader)
        task.cancel()

    with_host(test)


# Connections without a request


HASTE = {"head_timeout_s": 0.5, "idle_timeout_s": 1}


@pytest.mark.parametrize(
    "sent",
    [b"", b"P", b"POST / HTTP/1.1\r\n", ASKED[:60], b"\r\n"],
    ids=["nothing", "byte", "line", "half", "newline"],
)
def test_a_connection_without_a_whole_request_is_closed(sent):
    async def test(gateway):
        reader, _ = await connect(gateway, sent)
        assert await closed(reader)

    with_host(test, connections=HASTE, write_timeout_s=1)


def test_a_head_that_trickles_is_closed_whatever_came_before_it():
    async def test(gateway):
        for before in (b"", HEALTH, ASKED):
            reader, writer = await connect(gateway, before)
            assert not before or await status_of(reader) == 200
            started = time.monotonic()
            writer.write(b"GET /")
            with contextlib.suppress(*GONE):
                while not reader.at_eof() and time.monotonic() < started + SOON:
                    await asyncio.sleep(0.1)
                    writer.write(b"x")
                    await writer.drain()
            assert time.monotonic() - started < SOON
        assert gateway.counted("llm_gateway_rejected_total", reason="head") == 3

    with_host(test, connections={"head_timeout_s": 0.5})


def test_a_head_is_of_bounded_size():
    async def test(gateway):
        reader, writer = await connect(gateway, b"GET /health HTTP/1.1\r\nhost: x\r\n")
        with contextlib.suppress(*GONE):
            for number in range(100):
                writer.write(b"x-%d: %s\r\n" % (number, b"x" * 8000))
                await writer.drain()
        assert await closed(reader)
        for header in (
            b"x: " + b"x" * 9000,
            b"\r\n".join(b"x-%d: 1" % number for number in range(200)),
        ):
            reader, writer = await connect(
                gateway, b"GET /health HTTP/1.1\r\nhost: x\r\n" + header + b"\r\n\r\n"
            )
            assert await status_of(reader) == 400
            assert await closed(reader)

    with_host(test)


def test_an_idle_connection_is_closed():
    async def test(gateway):
        reader, _ = await connect(gateway, HEALTH)
        assert await status_of(reader) == 200
        assert await closed(reader)

    with_host(test, connections={"idle_timeout_s": 1})


def test_a_whole_answer_that_its_client_does_not_read_ends():
    async def test(gateway):
        gateway.engine.answer = lambda _: web.Response(
            body=bytes(1 << 25), content_type="application/json"
        )
        _, writer = await connect(gateway, ASKED, limit=1024)
        writer.transport.pause_reading()
        async with asyncio.timeout(20):
            while not gateway.counted(adapter="support", status="499"):
                await asyncio.sleep(0.05)

    with_host(test, connections=HASTE, write_timeout_s=1)


# None of these times cuts a client that works


def test_a_long_generation_and_a_slow_stream_are_not_cut():
    async def slow(request):
        await asyncio.sleep(2.5)  # nothing for longer than any of the times
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for part in STREAM:
            await response.write(part)
            await asyncio.sleep(1.2)
        return response

    async def test(gateway):
        gateway.engine.answer = slow
        status, _, text = await gateway.ask({**QUESTION, "stream": True})
        assert (status, text.encode()) == (200, b"".join(STREAM))

    with_host(test, connections=HASTE, write_timeout_s=1)


def test_a_reader_that_is_slow_gets_all_of_its_stream():
    """Its window opens now and then: that is reading."""
    size = 12 << 20

    async def fast(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(size >> 16):
            await response.write(bytes(1 << 16))
        return response

    async def test(gateway):
        gateway.engine.answer = fast
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", gateway.server.port))
        await loop.sock_sendall(client, ASKED)
        got, started = b"", time.monotonic()
        while not got.endswith(b"0\r\n\r\n"):
            piece = await loop.sock_recv(client, 1 << 18)
            assert piece, len(got)
            got = got[-100:] + piece
            await asyncio.sleep(0.04)
        assert time.monotonic() - started > 2  # several times what an unread answer has
        client.close()

    with_host(test, connections=HASTE, write_timeout_s=1)


def test_a_body_may_take_longer_than_a_head_or_an_idle_connection():
    async def test(gateway):
        reader, writer = await connect(gateway, ASKED[:-20])
        for number in range(20):
            await asyncio.sleep(0.1)
            writer.write(ASKED[len(ASKED) - 20 + number :][:1])
        assert await status_of(reader) == 200

    with_host(test, connections=HASTE, write_timeout_s=1)


def test_a_large_body_right_behind_its_head_is_no_large_head():
    async def test(gateway):
        body = json.dumps(
            {**QUESTION, "messages": [{"role": "user", "content": "x" * 900_000}]}
        ).encode()
        for _ in range(10):
            assert (await gateway.ask(body))[0] == 200

    with_host(test)


def test_requests_behind_each_other_in_one_piece_are_all_answered():
    async def test(gateway):
        gateway.engine.answer = lambda _: asyncio.sleep(0.2, web.json_response({}))
        reader, _ = await connect(gateway, ASKED * 8 + HEALTH)
        assert [await status_of(reader) for _ in range(9)] == [200] * 9

    with_host(test, connections=HASTE, write_timeout_s=1)


def test_a_thousand_idle_connections_are_served_again_and_again():
    async def test(gateway):
        clients = [await connect(gateway) for _ in range(1000)]
        for _ in range(3):
            for _, writer in clients:
                writer.write(HEALTH)
            assert {await status_of(reader) for reader, _ in clients} == {200}
        for _, writer in clients:
            writer.close()
        assert not gateway.counted("llm_gateway_rejected_total", reason="displaced")

    with_host(test, connections={"max_open": 1000})


# No place left


def test_a_newcomer_takes_the_place_of_the_connection_that_waits_longest():
    async def test(gateway):
        clients = [await connect(gateway, HEALTH) for _ in range(4)]
        for reader, _ in clients:
            assert await status_of(reader) == 200
        clients[0][1].write(HEALTH)  # now the second one waits longest
        assert await status_of(clients[0][0]) == 200
        reader, _ = await connect(gateway, HEALTH)
        assert await status_of(reader) == 200
        assert await closed(clients[1][0])
        for reader, writer in (clients[0], clients[2], clients[3]):
            writer.write(HEALTH)
            assert await status_of(reader) == 200

    with_host(test, connections={"max_open": 4})


@pytest.mark.parametrize(
    "sent",
    [b"", ASKED[:60], head(length=10**6), HEALTH, HEALTH * 3000],
    ids=["nothing", "half", "body", "idle", "unread"],
)
def test_a_stranger_who_opens_all_he_can_displaces_himself(sent, keys):
    async def test(gateway):
        held = [await connect(gateway, sent, source="127.0.0.2", limit=64) for _ in range(60)]
        for number in range(5):
            async with asyncio.timeout(SOON):
                newcomer, _ = await connect(gateway, HEALTH, source=f"127.0.0.{10 + number}")
                assert await status_of(newcomer) == 200
        assert len(held) == 60
        assert gateway.counted("llm_gateway_rejected_total", reason="displaced") >= 50

    with_host(test, connections={"max_open": 10}, api_keys=keys)


def test_his_connections_displace_nobody_elses():
    async def test(gateway):
        reader, writer = await connect(gateway, HEALTH, source="127.0.0.3")
        assert await status_of(reader) == 200
        for _ in range(100):
            await connect(gateway, HEALTH[:20], source="127.0.0.2")
        writer.write(HEALTH)
        assert await status_of(reader) == 200

    with_host(test, connections={"max_open": 10})


def test_an_answer_under_way_is_not_displaced():
    async def test(gateway):
        gateway.engine.answer = lambda _: asyncio.sleep(1.5, web.json_response({}))
        working = [await connect(gateway, ASKED) for _ in range(4)]
        await asyncio.sleep(0.3)
        reader, _ = await connect(gateway)
        assert await status_of(reader) in (0, 503)
        assert [await status_of(reader) for reader, _ in working] == [200] * 4
        reader, _ = await connect(gateway, HEALTH)
        assert await status_of(reader) == 200
        assert gateway.counted("llm_gateway_rejected_total", reason="full") == 1

    with_host(test, connections={"max_open": 4})


def test_an_address_may_have_a_bound_of_its_own():
    async def test(gateway):
        gateway.engine.answer = lambda _: asyncio.sleep(1.5, web.json_response({}))
        working = [await connect(gateway, ASKED, source="127.0.0.2") for _ in range(3)]
        await asyncio.sleep(0.3)
        reader, _ = await connect(gateway, source="127.0.0.2")
        assert await status_of(reader) in (0, 503)
        reader, _ = await connect(gateway, HEALTH, source="127.0.0.3")
        assert await status_of(reader) == 200
        assert [await status_of(reader) for reader, _ in working] == [200] * 3
        for _ in range(5):  # those of the address that wait make room for its next one
            reader, _ = await connect(gateway, HEALTH, source="127.0.0.2")
            assert await status_of(reader) == 200

    with_host(test, connections={"max_per_address": 3})


@pytest.mark.parametrize(
    ("peername", "client"),
    [
        (("10.1.2.3", 5), "10.1.2.3"),
        (("::ffff:10.1.2.3", 5, 0, 0), "10.1.2.3"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5, 0, 3), "fe80::/64"),
        (None, "-"),
        ("", "-"),
    ],
)
def test_one_client_is_one_address_or_one_network_of_ipv6(peername, client):
    assert client_of(peername) == client


# Descriptors


ROOM = """
import resource, sys
sys.path.insert(0, "scripts")
from adapterops.errors import UsageError
from adapterops.serving.descriptors import make_room
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
try:
    room = make_room(1500, 200, 1)
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    print(room.connections, room.requests, room.descriptors, allowed)
except UsageError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("soft", "hard", "said"),
    [
        (256, 4096, "1500 200 2044 2044"),  # raised as far as needed
        (3000, 4096, "1500 200 3000 3000"),
        (256, 1024, "480 200 1024 1024"),
        (256, 512, "184 92 512 512"),
        (256, 256, "56 28 256 256"),
        (64, 100, "100 file descriptors (ulimit -n) are too few: 144 are kept"),
    ],
)
def test_descriptors_are_shared_out_below_the_limit(soft, hard, said):
    command = [sys.executable, "-c", ROOM, str(soft), str(hard)]
    assert subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.startswith(said)


def test_the_unit_allows_as_many_descriptors_as_the_configuration_can_need():
    config = load_serving_config(ROOT / "configs/serving.yaml")
    unit = (ROOT / "configs/hosts/qlora-serving.service").read_text()
    needed = (
        config.connections.max_open
        + 2 * config.gateway.max_in_flight
        + 128
        + 16 * config.engine.replicas
    )
    assert int(unit.partition("\nLimitNOFILE=")[2].split()[0]) >= needed


def test_a_load_balancer_lets_go_of_a_connection_before_the_host_does():
    config = load_serving_config(ROOT / "configs/serving.yaml")
    nginx = (ROOT / "configs/hosts/nginx.conf").read_text()
    assert (
        int(nginx.partition("keepalive_timeout ")[2].partition("s;")[0])
        < config.connections.idle_timeout_s
    )


def test_connections_are_more_than_requests(tmp_path):
    text = (
        (ROOT / "configs/serving.demo.yaml").read_text().replace("max_open: 1024", "max_open: 256")
    )
    (tmp_path / "serving.yaml").write_text(text)
    with pytest.raises(
        UsageError,
        match=(
            r"`connections\.max_open`: 256 is not above gateway\.max_in_flight 256.*Expected 512 or"
            r" more"
        ),
    ):
        load_serving_config(tmp_path / "serving.yaml")


def hold(port, stop):
    """Half heads, as many as a host with 256 descriptors could take, opened again as they are
    closed."""
    held = []
    while not stop.is_set():
        held = [connection for connection in held if alive(connection)]
        while len(held) < 242 and not stop.is_set():
            connection = socket.socket()
            connection.settimeout(0.2)
            held.append(connection)
            with contextlib.suppress(OSError):
                connection.connect(("127.0.0.2", port))
                connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nx-")
        stop.wait(0.05)
    for connection in held:
        connection.close()


def alive(connection):
    try:
        connection.setblocking(False)
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        connection.close()
        return False


def test_a_host_of_256_descriptors_answers_and_reads_its_store_among_242_half_heads(tmp_path):
    with running(tmp_path) as fleet:
        host, gateway = fleet.hosts[0], fleet.gateways[0]
        (first, said_first), (second, said_second) = fleet.release(1.0), fleet.release(2.0)
        host.kill()
        host.command = ["prlimit", "--nofile=256:256", *host.command]
        host.start().ready()
        change_channel(fleet.store, NAME, lambda channel: promote(channel, first), reason="first")
        wait_for(lambda: ask(gateway)[2] == said_first)
        stop = threading.Event()
        attacker = threading.Thread(target=hold, args=(int(gateway.rpartition(":")[2]), stop))
        attacker.start()
        try:
            wait_for(lambda: "displaced" in rejected(gateway), 60)
            change_channel(
                fleet.store, NAME, lambda channel: promote(channel, second), reason="second"
            )
            wait_for(lambda: ask(gateway)[2] == said_second, 60)
            assert health(gateway)["adapters"][NAME]["errors"] == []
            assert [health(gateway)["status"] for _ in range(20)] == ["ok"] * 20
        finally:
            stop.set()
            attacker.join()
        assert "Too many open files" not in host.log.read_text()


def rejected(gateway):
    with urllib.request.urlopen(f"{gateway}/metrics", timeout=5) as answer:
        return [
            line.partition('reason="')[2].partition('"')[0]
            for line in answer.read().decode().splitlines()
            if "rejected_total{" in line
        ]


# What is no request


MALFORMED = [
    b"\x00\x00\x00\x00\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
    b"GET /health HTTP/9.9\r\n\r\n",
    b"GET /health\r\n\r\n",
    b"SECRET-SECRET /health HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /he\x00alth HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\nx: SECRET\x00\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\nSECRET name: 1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\n: SECRET\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\nhost: SECRET\r\n\r\n",
    b"GET http://[SECRET/ HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET SECRET HTTP/1.1\r\nhost: x\r\n\r\n",
    b"CONNECT \xff\xfe:SECRET HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /v1/feedback HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"POST /v1/feedback HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    (
        b"POST /v1/feedback HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding:"
        b" chunked\r\n\r\n"
    ),
    b"POST /v1/feedback HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nSECRET\r\n",
    (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding:"
        b" chunked\r\n\r\n5\r\n{{{{{SECRET\r\n"
    ),
    b"POST /nowhere HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5;SECRET\x00\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n\x00SECRET\r\n\r\n",
    b"GET /%zz%00\xff\x1b[31m HTTP/1.1\r\nhost: x\r\n\r\nSECRET\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\nexpect: SECRET\r\n\r\n",
    (
        b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade:"
        b" websocket\r\n\r\nSECRET\x00\r\n\r\n"
    ),
    b"GET /health HTTP/1.1\r\nhost: x\r\nsec-websocket-key1: SECRET\r\n\r\n",
]


@pytest.mark.parametrize("keyed", [False, True], ids=["anonymous", "with a key"])
def test_what_is_no_request_leaves_one_line_without_a_byte_of_it(keyed, keys, caplog):
    caplog.set_level(logging.INFO)

    async def test(gateway):
        for sent in MALFORMED:
            sent = (
                sent.replace(
                    b"host: x\r\n", b"host: x\r\nauthorization: Bearer %s\r\n" % CLIENT.encode(), 1
                )
                if keyed
                else sent
            )
            reader, writer = await connect(gateway, sent)
            with contextlib.suppress(OSError):
                writer.write_eof()
            answer = b""
            with contextlib.suppress(*GONE):
                async with asyncio.timeout(SOON):
                    answer = await reader.read()
            assert b"SECRET" not in answer
            assert b" 500 " not in answer, sent
            writer.close()
        assert (await gateway.get("/health"))[0] == 200
        assert gateway.counted("llm_gateway_rejected_total", reason="malformed") >= 10

    with_host(test, api_keys=keys)
    assert "Traceback" not in caplog.text
    assert "SECRET" not in caplog.text
    assert len(caplog.records) <= 2  # ten seconds may have passed
    assert caplog.records[0].getMessage().startswith("127.0.0.1 sent what is no request (")


@pytest.mark.parametrize(
    "header",
    [
        "expect",
        "authorization",
        "x-session-id",
        "x-request-id",
        "accept",
        "user-agent",
        "x-adapter-version",
    ],
)
def test_a_header_that_is_no_text_is_refused(header, keys, caplog):
    """aiohttp quotes an unknown `Expect` in its answer, the gateway hashes a key, and so on: none
    of them expects half a character."""

    async def test(gateway):
        for key in ([], [f"authorization: Bearer {CLIENT}"]):
            for value in (b"Bearer \xff", "Bearer 세션".encode()):
                sent = head("POST", "/v1/chat/completions", *key, length=len(QUESTION_BYTES))[:-2]
                reader, writer = await connect(
                    gateway, sent + header.encode() + b": " + value + b"\r\n\r\n" + QUESTION_BYTES
                )
                status = await status_of(reader)
                mine = b"\xff" in value or (
                    key and header == "x-session-id"
                )  # whose characters are ASCII
                assert status == 400 if mine else status in (200, 401, 417), value
                writer.close()

    with_host(test, api_keys=keys)
    assert "Traceback" not in caplog.text


def test_a_flood_of_it_is_one_line(caplog):
    async def test(gateway):
        for _ in range(200):
            reader, _ = await connect(gateway, b"GET /health HTTP/1.1\r\nbad header\r\n\r\n")
            assert await status_of(reader) == 400

    with_host(test)
    assert 1 <= len(caplog.records) <= 2


def test_a_client_that_hangs_up_leaves_no_traceback(caplog):
    async def test(gateway):
        gateway.engine.answer = lambda _: asyncio.sleep(0.1, web.Response(body=bytes(1 << 22)))
        for sent in (ASKED, ASKED[:-5], HEALTH * 50, head(length=1 << 20) + bytes(1000)):
            for wait in (0, 0.02, 0.15):
                _, writer = await connect(gateway, sent)
                await asyncio.sleep(wait)
                writer.transport.abort()
        await asyncio.sleep(0.5)
        assert (await gateway.get("/health"))[0] == 200

    with_host(test)
    assert "Traceback" not in caplog.text


def test_a_defect_of_ours_still_leaves_its_traceback(caplog):
    async def test(gateway):
        gateway.state.channels = None
        assert (await gateway.get("/v1/models"))[0] == 500

    with_host(test)
    assert "Traceback" in caplog.text
