"""One key among several: what it holds, what it can make of a rollout, and what it cannot do to the
others."""

import asyncio
import hashlib
import json
import time

import pytest
import yaml
from aiohttp import web
from gateway_host import (
    CANARY,
    LIMITS,
    QUESTION,
    STABLE,
    broken_stream,
    connect,
    head,
    with_host,
)

from adapterops.serving.api_keys import ApiKey
from adapterops.serving.body import parse_body
from adapterops.serving.feedback import Feedback
from adapterops.serving.fields import check_body
from adapterops.serving.routes import Route, choose

ON_TRIAL = Route(STABLE, CANARY, 50)


@pytest.fixture
def keys(tmp_path):
    """A file of keys: `keys(alice={"requests_per_minute": 6}, bob={})`; the secret is the name."""

    def write(**changes):
        path = tmp_path / "keys.yaml"
        plain = {"adapters": "all", "requests_per_minute": None, "role": "client"}
        entries = [
            {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **plain, **own}
            for name, own in changes.items()
        ]
        path.write_text(yaml.safe_dump({"keys": entries}))
        return path

    return write


def of(key, **headers):
    return {"authorization": f"Bearer {key}", **headers}


def after(seconds):
    """An engine that takes so long."""
    return lambda _: asyncio.sleep(seconds, web.json_response({}))


def test_a_key_holds_its_share_of_the_requests_and_the_others_are_answered(keys):
    async def test(gateway):
        gateway.engine.answer = after(0.6)
        flood = [asyncio.create_task(gateway.ask(headers=of("alice"))) for _ in range(30)]
        await asyncio.sleep(0.3)
        gateway.engine.answer = after(0)
        others = [
            (await gateway.ask(headers=of(name)))[0] for name in ("bob", "carol") for _ in range(8)
        ]
        assert others == [200] * 16
        answers = await asyncio.gather(*flood)
        assert sorted(status for status, *_ in answers) == [200] * 4 + [429] * 26
        [refused] = {headers["retry-after"] for status, headers, _ in answers if status == 429}
        assert refused == "1"
        assert "Key alice has 4 requests under way. Its share is 4" in next(
            text for status, _, text in answers if status == 429
        )
        assert gateway.counted("llm_gateway_rejected_total", reason="share") == 26
        assert (await gateway.ask(headers=of("alice")))[0] == 200  # all slots are free again

    with_host(test, api_keys=keys(alice={}, bob={}, carol={}), max_in_flight=16)


def test_a_key_holds_its_share_of_the_batch_in_sequences(keys):
    async def test(gateway):
        gateway.engine.answer = after(0.4)
        first = asyncio.create_task(
            gateway.ask({**QUESTION, "n": 8, "max_tokens": 8}, headers=of("alice"))
        )
        await asyncio.sleep(0.1)
        status, _, text = await gateway.ask(
            {**QUESTION, "n": 2, "max_tokens": 8}, headers=of("alice")
        )
        assert (status, "Key alice has 8 sequences under way. Its share is 8" in text) == (
            429,
            True,
        )
        many = {"model": "support", "prompt": ["x"] * 4, "n": 2, "max_tokens": 8}
        assert (await gateway.ask(many, path="/v1/completions", headers=of("bob")))[0] == 200
        assert (await first)[0] == 200
        assert (await gateway.ask({**QUESTION, "n": 2, "max_tokens": 8}, headers=of("alice")))[
            0
        ] == 200

    with_host(test, api_keys=keys(alice={}, bob={}), capacity=32)


def test_a_key_holds_its_share_of_what_engines_have_to_read(keys):
    """One thread of an engine reads all prompts: hundreds of large ones of one key would keep the
    others waiting for minutes."""

    def question(size):
        return {"model": "support", "prompt": "a" * size, "max_tokens": 8}

    async def test(gateway):
        gateway.engine.answer = after(0.6)
        flood = [
            asyncio.create_task(
                gateway.ask(question(900_000), path="/v1/completions", headers=of("alice"))
            )
            for _ in range(20)
        ]
        answers = await asyncio.gather(*flood)
        assert sorted(status for status, *_ in answers) == [200] * 9 + [429] * 11
        assert "bytes under way. Its share is 8388608" in next(
            text for status, _, text in answers if status == 429
        )
        assert [
            (await gateway.ask(question(9), path="/v1/completions", headers=of(name)))[0]
            for name in ("alice", "bob")
        ] == [200] * 2

    with_host(test, api_keys=keys(alice={}, bob={}))


def test_the_file_of_keys_raises_and_lowers_the_limits_of_one_key(keys):
    async def test(gateway):
        gateway.engine.answer = after(0.2)
        wide = await asyncio.gather(*(gateway.ask(headers=of("wide")) for _ in range(8)))
        assert [status for status, *_ in wide] == [200] * 8
        long = {**QUESTION, "max_tokens": 2000}
        assert [
            (await gateway.ask(long, headers=of(name)))[0] for name in ("wide", "narrow", "usual")
        ] == [200, 400, 400]
        assert (
            await gateway.ask(
                {**QUESTION, "structured_outputs": {"regex": "a+"}}, headers=of("wide")
            )
        )[0] == 200
        await gateway.ask(headers=of("narrow"))
        assert json.loads(gateway.engine.requests[-1][3])["max_tokens"] == 16

    own = {"max_tokens": 4096, "share": 1, "grammars": True}
    narrow = {"max_tokens": 16}
    with_host(
        test,
        api_keys=keys(wide={"limits": own}, narrow={"limits": narrow}, usual={}),
        max_in_flight=8,
    )


def test_a_gateway_without_keys_has_one_client_that_has_it_to_itself():
    async def test(gateway):
        gateway.engine.answer = after(0.2)
        assert [
            status for status, *_ in await asyncio.gather(*(gateway.ask() for _ in range(8)))
        ] == [200] * 8

    with_host(test, max_in_flight=8)


def test_a_key_beyond_its_rate_and_a_stranger_hold_no_slot(keys):
    async def test(gateway):
        gateway.engine.answer = after(0.5)
        slow = asyncio.create_task(gateway.ask(headers=of("bob")))
        flood = [
            asyncio.create_task(gateway.ask(headers=of(name))) for name in ["alice", "nobody"] * 20
        ]
        await asyncio.sleep(0.2)
        assert (await gateway.ask(headers=of("carol")))[0] == 200
        assert sorted({status for status, *_ in await asyncio.gather(*flood)}) == [200, 401, 429]
        assert (await slow)[0] == 200

    with_host(
        test, api_keys=keys(alice={"requests_per_minute": 6}, bob={}, carol={}), max_in_flight=4
    )


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/feedback"])
def test_a_body_that_does_not_come_holds_the_slots_of_its_key_alone(keys, path):
    async def test(gateway):
        writers = []
        for _ in range(12):
            sent = head("POST", path, "authorization: Bearer alice", length=500) + b"{"
            _, writer = await connect(gateway, sent)
            writers.append(writer)
        await asyncio.sleep(0.2)
        assert (await gateway.ask(headers=of("bob")))[0] == 200
        for other in ("/v1/chat/completions", "/v1/feedback"):
            assert (await gateway.ask(path=other, headers=of("alice")))[0] == 429
        for writer in writers:
            writer.close()

    with_host(test, api_keys=keys(alice={}, bob={}), max_in_flight=8)


def test_a_key_has_its_rate_of_schemas_that_are_new(keys):
    """Each is compiled by the engine; one that it has seen is not."""

    async def test(gateway):
        def ask(name, key):
            schema = {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"properties": {name: {}}}},
            }
            return gateway.ask({**QUESTION, "response_format": schema}, headers=of(key))

        assert [(await ask(f"p{number}", "alice"))[0] for number in range(5)] == [
            200,
            200,
            200,
            429,
            429,
        ]
        assert [(await ask(name, "alice"))[0] for name in ("p0", "p1", "p2", "p0")] == [200] * 4
        assert [(await ask("p9", "bob"))[0], (await gateway.ask(headers=of("alice")))[0]] == [
            200,
            200,
        ]

    with_host(test, api_keys=keys(alice={"limits": {"schemas_per_minute": 3}}, bob={}))


def asked_by(key, raw):
    path, who = "/v1/chat/completions", f"authorization: Bearer {key}"
    return head("POST", path, who, length=len(raw)) + raw


async def ask_and_not_read(gateway, key, body):
    """A client that sends its question and reads nothing."""
    _, writer = await connect(gateway, asked_by(key, json.dumps(body).encode()), limit=1024)
    writer.transport.pause_reading()
    return writer


@pytest.mark.parametrize("streaming", [True, False])
def test_an_answer_that_its_client_does_not_read_is_ended_and_the_engine_stops(keys, streaming):
    stopped = asyncio.Event()

    async def endless(request):
        if not streaming:
            return web.Response(body=b"x" * (64 << 20))
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"data: " + b"x" * 65536 + b"\n\n")
        except (ConnectionError, asyncio.CancelledError):
            stopped.set()
            raise

    async def test(gateway):
        gateway.engine.answer = endless
        writers = [
            await ask_and_not_read(gateway, "alice", {**QUESTION, "stream": streaming})
            for _ in range(4)
        ]
        for _ in range(100):
            if gateway.counted(adapter="support", status="499") == 4:
                break
            await asyncio.sleep(0.05)
        assert gateway.counted(adapter="support", status="499") == 4
        if streaming:
            await asyncio.wait_for(stopped.wait(), 5)
        gateway.engine.answer = after(0)
        assert (await gateway.ask(headers=of("alice")))[0] == 200
        assert not [
            sample
            for sample in samples(gateway, "llm_version_request_total")
            if sample.labels["status"].startswith("5")
        ]
        for writer in writers:
            writer.transport.abort()

    with_host(test, api_keys=keys(alice={}, bob={}), max_in_flight=16, write_timeout_s=0.5)


def samples(gateway, name):
    return [
        sample
        for metric in gateway.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == name and sample.value
    ]


def test_the_time_that_a_client_takes_is_no_latency_of_a_version(keys):
    """It sends its question byte by byte, and reads its answer late."""

    async def large(_):
        return web.Response(body=b"x" * (8 << 20))

    async def test(gateway):
        gateway.engine.answer = large
        sent = asked_by("alice", json.dumps(QUESTION).encode())
        reader, writer = await connect(gateway, sent[:-50], limit=1024)
        await asyncio.sleep(0.7)
        writer.write(sent[-50:])
        await asyncio.sleep(0.7)
        while len(await reader.read(1 << 16)) and not samples(
            gateway, "llm_version_duration_seconds_sum"
        ):
            pass
        [seconds] = [
            sample.value for sample in samples(gateway, "llm_version_duration_seconds_sum")
        ]
        assert seconds < 0.6
        writer.close()

    with_host(test, api_keys=keys(alice={}))


def fails_as(*names, status=500):
    """An engine on which these versions fail."""

    async def answer(request):
        model = json.loads(await request.read())["model"]
        return (
            web.json_response({"error": {"message": "no"}}, status=status)
            if model in names
            else web.json_response({"model": model})
        )

    return answer


def session(version):
    """One that meets this version."""
    return next(name for name in map(str, range(1000)) if choose(ON_TRIAL, f"-\0{name}") is version)


def judged(gateway):
    return {
        (sample.labels["version"][0], sample.labels["status"])
        for sample in samples(gateway, "llm_version_request_total")
    }


@pytest.mark.parametrize(
    ("first", "other"), [(CANARY, STABLE), (STABLE, CANARY)], ids=["canary", "stable"]
)
def test_an_error_that_both_versions_give_accuses_neither(first, other):
    async def test(gateway):
        gateway.engine.answer = fails_as(first.engine_name, other.engine_name)
        assert (await gateway.ask(headers={"x-session-id": session(first)}))[0] == 500
        assert gateway.asked() == [first.engine_name, other.engine_name]
        assert judged(gateway) == {(first.digest[0], "both")}
        assert gateway.counted(adapter="support", status="500") == 1  # what the client got

    with_host(test, route=ON_TRIAL)


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_one_version_counts_and_the_client_has_the_answer_of_the_other(stream):
    async def test(gateway):
        gateway.engine.answer = fails_as(CANARY.engine_name)
        status, headers, text = await gateway.ask(
            {**QUESTION, "stream": stream}, headers={"x-session-id": session(CANARY)}
        )
        assert (status, headers["x-adapter-version"]) == (200, STABLE.digest[:12])
        assert json.loads(text) == {"model": STABLE.engine_name}
        assert judged(gateway) == {("b", "500")}
        assert samples(gateway, "llm_version_duration_seconds_count") == []
        rated = await gateway.ask(
            {"id": headers["x-request-id"], "rating": "up"}, path="/v1/feedback"
        )
        assert rated[0] == 200
        assert [sample.labels["version"] for sample in samples(gateway, "llm_feedback_total")] == [
            STABLE.digest[:12]
        ]

    with_host(test, route=ON_TRIAL)


def streams(*pieces):
    """An engine that sends these pieces."""

    async def answer(request):
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.02)
        return response

    return answer


ERROR_EVENT = b'data: {"error": {"message": "%s", "type": "x", "param": null, "code": %d}}\n\n'


@pytest.mark.parametrize(("code", "counted"), [(400, "400"), (500, "both")])
@pytest.mark.parametrize("cut", [3, 9, 20, 10_000])
def test_a_stream_with_an_error_in_it_is_no_good_answer(code, counted, cut):
    """Else a key makes any version look as quick and as free of errors as it likes, with schemas
    that the engine refuses."""
    event = ERROR_EVENT % (b"enum array must not be empty" + b"!" * 2000, code)

    async def test(gateway):
        gateway.engine.answer = streams(event[:cut], event[cut:], b"data: [DONE]\n\n")
        status, headers, _ = await gateway.ask({**QUESTION, "stream": True})
        assert status == 200  # it was said before the engine knew
        assert judged(gateway) == {("a", counted)}
        assert samples(gateway, "llm_version_duration_seconds_count") == []
        assert gateway.counted(adapter="support", status=str(code)) == 1
        assert (
            await gateway.ask(
                {"id": headers["x-request-id"], "rating": "down"}, path="/v1/feedback"
            )
        )[0] == 404

    with_host(test, route=Route(STABLE))


def test_a_text_about_an_error_is_an_answer():
    async def test(gateway):
        text = json.dumps(
            {"choices": [{"delta": {"content": 'data: {"error": {"code": 500}}'}}]}
        ).encode()
        gateway.engine.answer = streams(b"data: " + text + b"\n\n", b"data: [DONE]\n\n")
        assert (await gateway.ask({**QUESTION, "stream": True}))[0] == 200
        assert judged(gateway) == {("a", "200")}

    with_host(test, route=Route(STABLE))


def test_a_clients_own_grammar_accuses_nobody(keys):
    """Of a key that may send them, and on one version alone: an engine's luck with a grammar is no
    version's."""

    async def test(gateway):
        gateway.engine.answer = fails_as(CANARY.engine_name, STABLE.engine_name)
        assert (
            await gateway.ask(
                {**QUESTION, "structured_outputs": {"grammar": "root ::= root"}},
                headers=of("alice"),
            )
        )[0] == 500
        assert judged(gateway) == set()

    with_host(test, route=Route(STABLE), api_keys=keys(alice={"limits": {"grammars": True}}))


def test_a_probe_hears_the_version_that_it_asked_for():
    async def test(gateway):
        gateway.engine.answer = fails_as(CANARY.engine_name)
        headers = {"x-adapter-version": CANARY.digest[:12], "x-request-purpose": "probe"}
        assert (await gateway.ask(headers=headers))[0] == 500
        assert judged(gateway) == {("b", "500")}

    with_host(test, route=ON_TRIAL)


def test_a_canary_without_weight_answers_for_nobody():
    async def test(gateway):
        gateway.engine.answer = fails_as(STABLE.engine_name)
        assert (await gateway.ask())[0] == 500
        assert gateway.asked() == [STABLE.engine_name]

    with_host(test, route=Route(STABLE, CANARY, 0))


def test_a_stream_that_breaks_off_still_counts():
    async def test(gateway):
        gateway.engine.answer = broken_stream
        with pytest.raises(Exception, match="payload"):
            await gateway.ask(
                {**QUESTION, "stream": True}, headers={"x-session-id": session(CANARY)}
            )
        assert judged(gateway) == {("b", "502")}

    with_host(test, route=ON_TRIAL)


def test_sixty_thumbs_of_one_key_are_the_thirty_that_count_in_a_minute(keys, monkeypatch):
    monkeypatch.setattr("adapterops.serving.feedback.time.monotonic", lambda: 30.0)

    async def test(gateway):
        ids = [(await gateway.ask(headers=of("alice")))[1]["x-request-id"] for _ in range(31)]
        votes = [
            await gateway.ask(
                {"id": name, "rating": "down"}, path="/v1/feedback", headers=of("alice")
            )
            for name in ids * 2
        ]
        assert [status for status, *_ in votes] == [200] * 30 + [429] + [200] * 30 + [429]
        assert sum(sample.value for sample in samples(gateway, "llm_feedback_total")) == 30
        assert {sample.labels["key"] for sample in samples(gateway, "llm_feedback_total")} == {
            "alice"
        }
        other = (await gateway.ask(headers=of("bob")))[1]["x-request-id"]
        assert (
            await gateway.ask({"id": other, "rating": "up"}, path="/v1/feedback", headers=of("bob"))
        )[0] == 200

    with_host(test, api_keys=keys(alice={}, bob={}))


def test_an_answer_of_which_nothing_came_has_no_vote(keys):
    async def test(gateway):
        gateway.engine.answer = after(5)
        asked = asyncio.create_task(gateway.ask(headers=of("alice", **{"x-request-id": "r-1"})))
        await asyncio.sleep(0.2)
        asked.cancel()
        while not gateway.counted(adapter="support", status="499"):
            await asyncio.sleep(0.02)
        assert (
            await gateway.ask(
                {"id": "r-1", "rating": "down"}, path="/v1/feedback", headers=of("alice")
            )
        )[0] == 404

    with_host(test, api_keys=keys(alice={}))


def test_one_keys_answers_push_out_its_own_from_memory(monkeypatch):
    monkeypatch.setattr("adapterops.serving.feedback._REMEMBERED", 100)
    answers, alice, bob = Feedback(), ApiKey("alice", LIMITS), ApiKey("bob", LIMITS)
    answers.remember("bob", "b-1", STABLE)
    for number in range(1000):
        answers.remember("alice", f"a-{number}", STABLE)
    assert answers.rate(bob, "b-1") == (True, STABLE)
    assert (answers.rate(alice, "a-5"), answers.rate(alice, "a-999")) == (
        (False, None),
        (True, STABLE),
    )


def test_a_key_without_a_voice_is_answered_and_counts_in_no_rollout(keys):
    async def test(gateway):
        status, headers, _ = await gateway.ask(headers=of("load-test"))
        assert status == 200
        assert judged(gateway) == set()
        vote = await gateway.ask(
            {"id": headers["x-request-id"], "rating": "down"},
            path="/v1/feedback",
            headers=of("load-test"),
        )
        assert (vote[0], samples(gateway, "llm_feedback_total")) == (404, [])

    with_host(test, api_keys=keys(**{"load-test": {"limits": {"evidence": False}}}))


@pytest.mark.parametrize(
    "name",
    [
        "x-session-id",
        "accept",
        "x-request-id",
        "x-adapter-version",
        "x-request-purpose",
        "user-agent",
    ],
)
def test_bytes_that_are_no_text_in_a_header_are_no_error_of_the_gateway(name):
    async def test(gateway):
        raw = json.dumps(QUESTION).encode()
        for value in (b"\xff\xfe", "é".encode(), b"a\tb", b"x" * 300):
            path, header = "/v1/chat/completions", name.encode() + b": " + value
            sent = head("POST", path, "connection: close", "?", length=len(raw))
            reader, writer = await connect(gateway, sent.replace(b"?", header) + raw)
            answer = await reader.read()
            writer.close()
            status = int(answer.split()[1])
            assert status < 500 or (status == 503 and name == "x-adapter-version"), answer
            assert name != "x-session-id" or (
                status == 400 and (b"x-session-id" in answer or b"A header is not UTF-8" in answer)
            )

    with_host(test, route=ON_TRIAL)


def test_the_gateway_stays_quick_with_what_it_checks():
    """A usual question costs it well below a millisecond more; here 500 of them within a few
    seconds."""
    raw = json.dumps(
        {**QUESTION, "messages": QUESTION["messages"] * 9, "temperature": 0.2, "stream": True}
    ).encode()
    started = time.perf_counter()
    for _ in range(500):
        check_body("/v1/chat/completions", parse_body(raw), LIMITS)
    assert (time.perf_counter() - started) / 500 < 0.005
