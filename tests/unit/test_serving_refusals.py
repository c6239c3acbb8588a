"""Whoever is refused again and again waits for it; whoever has a key does not wait for him."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from aiohttp import web
from gateway_host import connect, head, with_host
from test_serving_access import CLIENT, OPERATOR, write_keys
from test_serving_edge import QUESTION_BYTES, SOON, closed, status_of

from adapterops.serving.refusals import LONGEST_S, Refusals, Turns

FEW = {"refusals_per_second": 5}  # five at once, then one in 0.2 s
AT_ONCE = 0.15  # seconds a busy machine may take for one answer that is not kept back, at most
KEY = f"authorization: Bearer {CLIENT}"
WRONG = "authorization: Bearer qlg-wrong"


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path / "keys.yaml")


@pytest.fixture
def impatient(monkeypatch):
    """Refusals are kept back for 0.6 s at most."""
    for module in ("refusals", "connections"):
        monkeypatch.setattr(f"adapterops.serving.{module}.LONGEST_S", 0.6)


def question(*headers):
    return head("POST", "/v1/chat/completions", *headers, length=len(QUESTION_BYTES)) + (
        QUESTION_BYTES
    )


async def seconds_of(gateway, sent, status, source="127.0.0.1"):
    """How long the answer takes, which has this status."""
    started = time.monotonic()
    reader, writer = await connect(gateway, sent, source)
    assert await asyncio.wait_for(status_of(reader), SOON) == status
    writer.close()
    return time.monotonic() - started


async def flood(gateway, sent, count=200, source="127.0.0.1"):
    """Connections that ask and are not answered yet."""
    held = [await connect(gateway, sent, source) for _ in range(count)]
    await asyncio.sleep(0.3)
    return held


REFUSED = [
    (question(), 401),
    (question(WRONG), 401),
    (head("GET", "/v1/models", WRONG), 401),
    (head("GET", "/metrics", KEY), 403),
    (head("GET", "/nowhere"), 404),
    (head("GET", "/nowhere", KEY), 404),
    (head("PUT", "/v1/chat/completions"), 405),
    (head("POST", "/v1/chat/completions", KEY, length=2 << 20) + bytes(2 << 20), 413),
    (head("POST", "/v1/feedback", "content-encoding: gzip", length=1) + b"x", 415),
    (head("POST", "/v1/chat/completions", KEY, length=2) + b"[]", 400),
    (b"GET /health HTTP/1.1\r\n\x00bad header\r\n\r\n", 400),
    (head("GET", "/health", "x: \xff").replace("\xff".encode(), b"\xff"), 400),
]


@pytest.mark.parametrize(
    ("sent", "status"), REFUSED, ids=[f"{number}-{case[1]}" for number, case in enumerate(REFUSED)]
)
def test_after_a_few_refusals_the_next_ones_wait(sent, status, keys):
    async def test(gateway):
        times = [await seconds_of(gateway, sent, status) for _ in range(9)]
        # Not that the first ones are quick: a busy machine is not. All together take their turns.
        assert sum(times) > 0.5
        assert gateway.counted("llm_gateway_rejected_total", reason="late") >= 2

    with_host(test, api_keys=keys, connections=FEW)


def test_so_does_a_key_beyond_its_rate(tmp_path):
    async def test(gateway):
        assert await seconds_of(gateway, question(KEY), 200) < SOON
        for _ in range(9):
            await seconds_of(gateway, question(KEY), 429)
        assert gateway.counted("llm_gateway_rejected_total", reason="late") >= 2

    keys = write_keys(tmp_path / "keys.yaml", requests_per_minute=1)
    with_host(test, api_keys=keys, connections=FEW)


def test_a_flood_of_wrong_keys_is_answered_by_the_clock_and_not_by_the_core(keys):
    """Fifty connections that ask again as soon as they are answered."""

    async def test(gateway):
        answered, until = 0, time.monotonic() + 2

        async def push():
            nonlocal answered
            reader, writer = await connect(gateway)
            while time.monotonic() < until:
                writer.write(question(WRONG))
                await status_of(reader)
                answered += 1

        tasks = [asyncio.create_task(push()) for _ in range(50)]
        waits = []
        while time.monotonic() < until:
            waits.append(await seconds_of(gateway, question(KEY), 200))
        for task in tasks:
            task.cancel()
        assert answered <= 5 + 5 * 3  # what is saved up, and a second for a busy machine
        assert sorted(waits)[len(waits) // 2] < AT_ONCE

    with_host(test, api_keys=keys, connections=FEW)


def test_who_floods_is_not_even_parsed_and_who_has_a_key_behind_his_address_is(keys, impatient):
    async def test(gateway):
        held = await flood(gateway, question(WRONG))
        assert gateway.counted("llm_gateway_rejected_total", reason="flood") > 150
        assert gateway.counted("llm_gateway_rejected_total", reason="key") < 20
        assert await seconds_of(gateway, question(KEY), 200) < SOON
        assert await seconds_of(gateway, head("GET", "/health"), 200) < SOON
        assert {await status_of(reader) for reader, _ in held} == {401, 429}
        assert await closed(held[-1][0])
        return len(gateway.engine.requests)

    with_host(test, api_keys=keys, connections=FEW)


@pytest.mark.parametrize("cut", [1, 30, 60, len(question(KEY)) - len(QUESTION_BYTES) - 2])
def test_a_key_that_comes_in_pieces_amid_a_flood_counts(cut, keys, impatient):
    async def test(gateway):
        await flood(gateway, question(WRONG))
        sent = question("x: y", KEY)
        reader, writer = await connect(gateway, sent[:cut])
        await asyncio.sleep(0.1)
        writer.write(sent[cut:])
        assert await status_of(reader) == 200
        writer.write(sent)  # and its connection goes on
        assert await status_of(reader) == 200

    with_host(test, api_keys=keys, connections=FEW)


def test_half_a_head_amid_a_flood_is_closed_in_time(keys, impatient):
    async def test(gateway):
        await flood(gateway, question(WRONG))
        reader, _ = await connect(gateway, question(WRONG)[:40])
        assert await closed(reader)
        assert gateway.counted("llm_gateway_rejected_total", reason="head") >= 1

    with_host(test, api_keys=keys, connections={**FEW, "head_timeout_s": 0.5})


def test_a_flood_leaves_no_debt(keys, impatient):
    async def test(gateway):
        for _, writer in await flood(gateway, question(WRONG), 400):
            writer.close()
        await asyncio.sleep(0.7)
        before = gateway.counted("llm_gateway_rejected_total", reason="late")
        await seconds_of(gateway, question(WRONG), 401)
        assert gateway.counted("llm_gateway_rejected_total", reason="late") - before <= 0

    with_host(test, api_keys=keys, connections=FEW)


def test_refusals_of_a_key_are_its_own(keys):
    async def test(gateway):
        for _ in range(30):
            await connect(gateway, head("GET", "/nowhere", KEY))
        await asyncio.sleep(0.2)
        late = gateway.counted("llm_gateway_rejected_total", reason="late")
        assert late >= 20
        for sent, status in (
            (question(KEY), 200),  # what the key is not refused
            (head("GET", "/nowhere", f"authorization: Bearer {OPERATOR}"), 404),
            (question(WRONG), 401),
        ):
            await seconds_of(gateway, sent, status)
        assert gateway.counted("llm_gateway_rejected_total", reason="late") == late

    with_host(test, api_keys=keys, connections=FEW)


def test_a_load_balancer_hears_at_once_that_a_host_is_not_ready(keys):
    async def test(gateway):
        gateway.state.engines[0].up = False
        for _ in range(30):
            await seconds_of(gateway, question(KEY), 503)
        assert not gateway.counted("llm_gateway_rejected_total", reason="late")

    with_host(test, api_keys=keys, connections=FEW)


def test_a_stranger_is_told_of_his_key_and_not_of_the_hosts_load(keys):
    """A 503 does not wait, so it must not be had without a key."""

    async def test(gateway):
        gateway.engine.answer = lambda _: asyncio.sleep(0.5, web.json_response({}))
        reader, _ = await connect(gateway, question(KEY))
        await asyncio.sleep(0.1)
        await seconds_of(gateway, question(WRONG), 401)
        await seconds_of(gateway, question(KEY), 503)
        assert await status_of(reader) == 200

    with_host(test, api_keys=keys, max_in_flight=1)


def test_health_checks_wait_half_a_second_at_most(keys):
    async def test(gateway):
        await flood(gateway, head("GET", "/health"), 100)
        assert gateway.counted("llm_gateway_rejected_total", reason="late") >= 80
        assert 0.4 < await seconds_of(gateway, head("GET", "/health"), 200) < LONGEST_S / 2

    with_host(test, api_keys=keys, connections=FEW)


def test_what_is_kept_back_keeps_nobody_out(keys):
    """Not another address, nor an idle connection of the same one: a load balancer's."""

    async def test(gateway):
        idle, again = await connect(gateway, head("GET", "/health"))
        assert await status_of(idle) == 200
        await flood(gateway, question(WRONG), 60)
        for number in range(10):
            source = f"127.0.0.{10 + number}"
            assert await seconds_of(gateway, question(KEY), 200, source) < SOON
        again.write(question(KEY))
        assert await status_of(idle) == 200

    with_host(test, api_keys=keys, connections={**FEW, "max_open": 10})


def test_a_connection_that_is_left_while_it_waits_leaves_no_trace(keys, caplog):
    async def test(gateway):
        for _, writer in await flood(gateway, question(WRONG), 100):
            writer.transport.abort()
        await asyncio.sleep(0.3)
        assert (await gateway.ask(headers={"authorization": f"Bearer {CLIENT}"}))[0] == 200

    with_host(test, api_keys=keys, connections=FEW)
    assert "Traceback" not in caplog.text


# The clock


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(
        "adapterops.serving.refusals.time", SimpleNamespace(monotonic=lambda: now.s)
    )
    return now


def test_turns_come_at_the_rate_and_no_later_than_the_longest_wait():
    turns = Turns(10)
    waits = [round(turns.take("a", 1000.0), 6) for _ in range(100)]
    assert waits[:11] == [0] * 11
    assert waits[11:60] == [round(0.1 * number, 6) for number in range(1, 50)]
    assert set(waits[60:]) == {LONGEST_S}
    assert turns.take("b", 1000.0) == 0
    assert turns.take("a", 1000.0 + LONGEST_S) < 1e-9


def test_senders_are_forgotten_before_they_fill_the_memory():
    turns = Turns(10)
    for number in range(10_000):
        turns.take(str(number), 1000.0)
    assert len(turns._next) == 4096
    assert "9999" in turns._next


def test_all_strangers_together_have_ten_times_the_rate_of_one(clock):
    refusals = Refusals(10, {"good": SimpleNamespace(name="shop")}.get)
    waits = [
        refusals.wait(f"10.0.{number >> 8}.{number & 255}", None, 401) for number in range(900)
    ]
    assert sum(wait == 0 for wait in waits) == 101
    assert waits[-1] == LONGEST_S
    assert refusals.flooded("192.0.2.1")
    assert refusals.wait("192.0.2.1", "good", 404) == 0
    clock.s += LONGEST_S
    assert not refusals.flooded("192.0.2.1")


def test_one_address_takes_no_turns_of_the_others(clock):
    refusals = Refusals(10, lambda _: None)
    for _ in range(10_000):
        refusals.wait("192.0.2.66", "Bearer x", 401)
    assert refusals.flooded("192.0.2.66")
    assert refusals.wait("192.0.2.1", "Bearer x", 401) == 0


@pytest.mark.parametrize(
    ("sent", "passes"),
    [
        (b"POST / HTTP/1.1\r\nAuthorization: Bearer good\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nAUTHORIZATION:\tBearer good\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nauthorization: x\r\nauthorization: Bearer good\r\n\r\n", True),
        (b"GET /health HTTP/1.1\r\n\r\n", True),
        (b"GET /healthy HTTP/1.1\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nauthorization: Bearer bad\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nauthorization: \xff\xfe\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nx-authorization: Bearer good\r\n\r\n", False),
        (b"\r\n\r\n", False),
    ],
)
def test_a_head_with_a_key_passes(sent, passes):
    find = {"Bearer good": SimpleNamespace(name="shop")}.get
    assert Refusals(10, find).may_pass(sent) is passes
