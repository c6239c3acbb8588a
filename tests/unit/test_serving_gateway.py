"""The gateway in front of a stub that records what reaches the engine: routing, rewriting, the
allow-list, errors.

The real engine is behind it in tests/integration/test_serving.py.
"""

import asyncio
import itertools
import json
import socket

import aiohttp
import pytest
from aiohttp import web
from gateway_host import (
    CANARY,
    QUESTION,
    STABLE,
    STREAM,
    broken_stream,
    connect,
    head,
    with_host,
)

from adapterops.serving.routes import Route
from adapterops.serving.state import Followed
from adapterops.store.channels import Channel


def test_the_adapter_is_rewritten_to_its_version_and_nothing_else_changes():
    async def test(gateway):
        body = {
            **QUESTION,
            "temperature": 0.25,
            "seed": 1234567890123456789,
            "stop": ["\n\n"],
            "max_tokens": 7,
        }
        status, headers, text = await gateway.ask(
            body, headers={"x-request-id": "abc-1", "authorization": "Bearer secret"}
        )
        assert status == 200
        assert headers["x-adapter-version"] == "a" * 12
        assert headers["x-request-id"] == "abc-1"
        assert json.loads(text)["model"] == "as-the-engine-says"
        [(method, path, sent, raw)] = gateway.engine.requests
        assert (method, path) == ("POST", "/v1/chat/completions")
        assert json.loads(raw) == {**body, "model": "support-aaaaaaaaaaaa"}
        assert sent["x-request-id"] == "abc-1"
        assert "Authorization" not in sent

    with_host(test)


def test_the_base_model_is_reachable_under_its_own_name():
    async def test(gateway):
        status, headers, _ = await gateway.ask(
            {"model": "base-model", "prompt": "Once"}, path="/v1/completions"
        )
        assert status == 200
        assert "x-adapter-version" not in headers
        assert gateway.engine.requests[0][1] == "/v1/completions"
        assert gateway.asked() == ["base-model"]

    with_host(test)


def test_a_request_without_an_id_gets_one_and_a_strange_one_is_replaced():
    async def test(gateway):
        assert len((await gateway.ask())[1]["x-request-id"]) == 32
        assert (
            len((await gateway.ask(headers={"x-request-id": "a" * 500}))[1]["x-request-id"]) == 32
        )

    with_host(test)


def test_streams_pass_through_byte_for_byte():
    async def stream(request):
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for part in STREAM:
            await response.write(part)
            await asyncio.sleep(0.02)
        return response

    async def test(gateway):
        gateway.engine.answer = stream
        status, headers, text = await gateway.ask({**QUESTION, "stream": True})
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert text.encode() == b"".join(STREAM)

    with_host(test)


def test_the_canary_gets_its_share_and_a_session_stays():
    async def test(gateway):
        for number in range(60):
            await gateway.ask({**QUESTION, "user": f"user-{number}"})
        first = gateway.asked()
        assert 0.3 < first.count(CANARY.engine_name) / 60 < 0.7
        gateway.engine.requests.clear()
        for number in range(60):
            await gateway.ask({**QUESTION, "user": f"user-{number}"})
        assert gateway.asked() == first

    with_host(test, route=Route(STABLE, CANARY, 50))


def test_a_version_can_be_asked_for_by_its_digits():
    async def test(gateway):
        assert (await gateway.ask(headers={"x-adapter-version": "b" * 12}))[1][
            "x-adapter-version"
        ] == "b" * 12
        status, _, text = await gateway.ask(headers={"x-adapter-version": "c" * 12})
        assert status == 503
        assert "cccccccccccc" in text

    with_host(test, route=Route(STABLE, CANARY, 1))


def test_a_replaced_route_counts_from_the_next_request_on():
    async def test(gateway):
        await gateway.ask()
        gateway.state.routes = {"support": Route(stable=CANARY)}
        await gateway.ask()
        assert gateway.asked() == [STABLE.engine_name, CANARY.engine_name]

    with_host(test)


def test_an_unknown_model_is_answered_with_the_known_ones():
    async def test(gateway):
        for model in ("suport", STABLE.engine_name, "", None, ["support"], {"a": 1}):
            status, _, text = await gateway.ask({**QUESTION, "model": model})
            error = json.loads(text)["error"]
            assert (status, error["code"], error["type"]) == (
                404,
                "model_not_found",
                "invalid_request_error",
            )
            assert "Known: support, other, base-model" in error["message"]
        assert gateway.engine.requests == []
        assert gateway.counted(adapter="unknown", status="404") == 6

    with_host(test)


def test_no_version_that_is_ready_is_503_with_retry_after():
    async def test(gateway):
        status, headers, text = await gateway.ask({**QUESTION, "model": "other"})
        assert (status, headers["retry-after"]) == (503, "5")
        assert "No version of `other` is ready" in json.loads(text)["error"]["message"]
        assert gateway.counted(adapter="other", status="503") == 1

    with_host(test)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'"support"', 400),
        (b'{"model": "support", "temperature": NaN}', 400),
        (b"\xff\xfe\xfa", 400),
        (b"[" * 100000, 400),
        (b'{"model": "support", "seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"model": "support", "prompt": "' + b"x" * (1 << 20) + b'"}', 413),
    ],
    ids=["empty", "truncated", "list", "string", "nan", "bytes", "nested", "digits", "large"],
)
def test_a_bad_body_is_refused_in_the_shape_that_clients_read(body, status):
    async def test(gateway):
        answered, _, text = await gateway.ask(body)
        assert answered == status
        assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
        assert gateway.engine.requests == []

    with_host(test)


async def raw_request(gateway, method, path, body=b""):
    headers = ("content-type: application/json", "connection: close")
    sent = head(method, path, *headers, length=len(body)) + body
    reader, writer = await connect(gateway, sent)
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1]), answer


@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/adapters",
        "/adapters/support",
        "/invocations",
        "/tokenize",
        "/detokenize",
        "/v1/embeddings",
        "/v1/responses",
        "/pause",
        "/update_weights",
        "/reset_prefix_cache",
        "/docs",
        "/openapi.json",
        "//v1/load_lora_adapter",
        "/v1//load_lora_adapter",
        "/v1/%6coad_lora_adapter",
        "/v1/chat/completions/../../load_lora_adapter",
        "/v1/chat/completions/%2e%2e/%2e%2e/load_lora_adapter",
        "/v1/chat/completions%2f..%2f..%2fload_lora_adapter",
        "/v1/chat/completions;/../../adapters",
        "http://127.0.0.1:8101/adapters",
        "/V1/chat/completions",
        "/v1/chat/completions/",
        "/%2fadapters",
        "/v1/chat%2fcompletions",
    ],
)
def test_nothing_but_the_allow_list_reaches_the_engine(path):
    async def test(gateway):
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            body = b'{"lora_name": "x", "lora_path": "/x"}'
            status, answer = await raw_request(gateway, method, path, body)
            assert status in (400, 404, 405), answer
        assert gateway.engine.requests == []

    with_host(test)


def test_the_path_and_the_query_of_a_client_never_reach_the_engine():
    async def test(gateway):
        body = json.dumps(QUESTION).encode()
        for path in (
            "/v1/chat/completions?x=/adapters",
            "/v1/ch%61t/completions",
            "/v1/x/../chat/completions",
        ):
            await raw_request(gateway, "POST", path, body)
        assert {path for _, path, *_ in gateway.engine.requests} <= {"/v1/chat/completions"}

    with_host(test)


def test_the_wrong_method_is_405_in_the_same_shape():
    async def test(gateway):
        async with gateway.client.get("/v1/chat/completions") as answer:
            assert (answer.status, answer.headers["allow"]) == (405, "POST")
            assert "error" in await answer.json()

    with_host(test)


def test_models_lists_adapters_and_base_model_but_no_versions():
    async def test(gateway):
        async with gateway.client.get("/v1/models") as answer:
            cards = (await answer.json())["data"]
        assert [card["id"] for card in cards] == [
            "support",
            "base-model",
        ]  # `other` has no version that is ready
        assert all(card["object"] == "model" for card in cards)

    with_host(test)


def test_an_engine_that_starts_is_503_everywhere():
    async def test(gateway):
        gateway.state.engines[0].up = False
        async with gateway.client.get("/health") as answer:
            assert (answer.status, (await answer.json())["status"]) == (503, "starting")
        for model in ("support", "base-model"):
            status, headers, _ = await gateway.ask({**QUESTION, "model": model})
            assert (status, headers["retry-after"]) == (503, "5")

    with_host(test)


def test_a_host_is_not_healthy_before_it_has_what_is_stable():
    """A load balancer that asks must not send it users who would be told to come back later."""

    async def test(gateway):
        gateway.state.engines[0].settled = False
        async with gateway.client.get("/health") as answer:
            assert (answer.status, (await answer.json())["status"]) == (503, "starting")
        gateway.state.engines[0].settled = True
        assert (await gateway.get("/health"))[0] == 200

    with_host(test)


def test_the_engines_metrics_are_handed_through_only_where_a_scheduler_needs_them():
    async def test(gateway):
        gateway.engine.answer = lambda _: web.Response(text="vllm:num_requests_waiting 3\n")
        assert await gateway.get("/engine/metrics") == (200, "vllm:num_requests_waiting 3\n")
        assert [(method, path) for method, path, *_ in gateway.engine.requests] == [
            ("GET", "/metrics")
        ]
        assert (await gateway.get("/engine/metrics/../v1/models"))[1].find("vllm") < 0

    async def lost(gateway):
        await gateway.engine_server.close()
        assert (await gateway.get("/engine/metrics"))[0] == 503

    async def closed(gateway):
        assert (await gateway.get("/engine/metrics"))[0] == 404
        assert gateway.engine.requests == []

    with_host(test, engine_metrics=True)
    with_host(lost, engine_metrics=True)
    with_host(closed)


def test_the_engine_is_asked_for_its_metrics_once_however_many_ask():
    """They need no key: a stranger's many questions must not reach the engine, nor hold connections
    while it hangs."""

    async def test(gateway):
        numbers = itertools.count(1)
        gateway.engine.answer = lambda _: asyncio.sleep(
            0.05, web.Response(text=f"vllm:num_requests_waiting {next(numbers)}\n")
        )
        await gateway.get("/engine/metrics")
        assert {
            status
            for status, _ in await asyncio.gather(
                *(gateway.get("/engine/metrics") for _ in range(200))
            )
        } == {200}
        assert len(gateway.engine.requests) <= 10
        await asyncio.sleep(0.2)
        await gateway.get("/engine/metrics")
        await asyncio.sleep(0.1)
        first, second = [(await gateway.get("/engine/metrics"))[1] for _ in range(2)]
        assert first == second != "vllm:num_requests_waiting 1\n"

    async def hanging(gateway):
        gateway.engine.answer = lambda _: asyncio.sleep(
            4, web.Response(text="vllm:num_requests_waiting 3\n")
        )
        asked = [asyncio.create_task(gateway.get("/engine/metrics")) for _ in range(50)]
        done, waiting = await asyncio.wait(asked, timeout=2)
        assert ({task.result()[0] for task in done}, len(waiting)) == ({503}, 8)
        waiting.pop().cancel()  # who leaves takes the answer from nobody
        assert {(await task)[0] for task in waiting if not task.cancelling()} == {200}
        assert len(gateway.engine.requests) == 1

    with_host(test, engine_metrics=True)
    with_host(hanging, engine_metrics=True)


def test_an_engine_that_is_gone_is_502():
    async def test(gateway):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            gateway.state.engines[0].url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        status, headers, text = await gateway.ask()
        assert (status, headers["retry-after"]) == (502, "5")
        assert "engine does not answer" in json.loads(text)["error"]["message"]

    with_host(test)


def test_a_silent_engine_is_given_up():
    async def silence(_):
        await asyncio.sleep(20)
        return web.Response()

    async def test(gateway):
        gateway.engine.answer = silence
        assert (await gateway.ask())[0] == 504

    with_host(test, read_timeout_s=0.3)


def test_errors_of_the_engine_pass_through():
    async def test(gateway):
        gateway.engine.answer = lambda _: web.json_response(
            {"error": {"message": "too long"}}, status=400
        )
        status, headers, text = await gateway.ask()
        assert (status, json.loads(text)) == (400, {"error": {"message": "too long"}})
        assert headers["x-adapter-version"] == "a" * 12
        assert gateway.counted(adapter="support", status="400") == 1

    with_host(test)


def test_an_engine_that_forgot_a_version_is_503_and_not_404():
    """After a restart of the engine, until the reconciler has loaded its adapters again."""

    async def test(gateway):
        gateway.engine.answer = lambda _: web.json_response(
            {"error": {"message": "no such model"}}, status=404
        )
        status, headers, _ = await gateway.ask()
        assert (status, headers["retry-after"]) == (503, "5")

    with_host(test)


def test_a_stream_that_breaks_does_not_look_complete():
    async def test(gateway):
        gateway.engine.answer = broken_stream
        with pytest.raises(aiohttp.ClientPayloadError):
            await gateway.ask({**QUESTION, "stream": True})

    with_host(test)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_engine_stops_when_the_client_goes_away(streaming):
    async def endless(request):
        try:
            if streaming:
                response = web.StreamResponse()
                await response.prepare(request)
                while True:
                    await response.write(b"data: x\n\n")
                    await asyncio.sleep(0.01)
            await asyncio.sleep(20)
        except (asyncio.CancelledError, ConnectionError):
            gone.set()
            raise
        return web.Response()

    gone = asyncio.Event()

    async def test(gateway):
        gateway.engine.answer = endless
        with pytest.raises(TimeoutError):
            await gateway.ask(
                {**QUESTION, "stream": streaming}, timeout=aiohttp.ClientTimeout(total=0.3)
            )
        await asyncio.wait_for(gone.wait(), 5)
        for _ in range(50):
            if gateway.counted(adapter="support", status="499"):
                return
            await asyncio.sleep(0.05)
        pytest.fail("not counted as 499")

    with_host(test)


@pytest.mark.parametrize(
    "begun", [False, True], ids=["before its first byte", "in the middle of it"]
)
@pytest.mark.parametrize(
    ("purpose", "patience", "status"),
    [("probe", 0.2, "504"), ("probe", 30, "499"), ("", 0.2, "499")],
)
def test_a_probe_that_waited_long_counts_against_the_version_and_a_client_that_hangs_up_does_not(
    monkeypatch, patience, status, begun, purpose
):
    """A canary that answers nothing is not one of which nothing is known; but clients hang up
    whenever they like."""
    monkeypatch.setattr("adapterops.serving.request_record._HUNG_S", patience)

    async def hangs(request):
        if begun:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"data: x\n\n")
        await asyncio.sleep(20)

    async def test(gateway):
        gateway.engine.answer = hangs
        with pytest.raises(TimeoutError):
            patient = aiohttp.ClientTimeout(total=0.5)
            await gateway.ask(
                {**QUESTION, "stream": begun},
                timeout=patient,
                headers={"x-request-purpose": purpose},
            )
        labels = {
            "adapter": "support",
            "version": "a" * 12,
            "origin": purpose or "user",
            "key": "-",
            "status": status,
        }
        for _ in range(100):
            if gateway.counted("llm_version_request_total", **labels):
                break
            await asyncio.sleep(0.05)
        assert gateway.counted("llm_version_request_total", **labels) == 1

    with_host(test)


def test_a_client_that_does_not_read_its_answer_counts_against_no_version(monkeypatch):
    """The engine said everything at once; that nobody took it is not its fault."""
    monkeypatch.setattr("adapterops.serving.request_record._HUNG_S", 0.2)

    async def talkative(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(64):
            await response.write(b"data: " + b"x" * 2**20 + b"\n\n")
        return response

    async def test(gateway):
        gateway.engine.answer = talkative
        body = json.dumps({**QUESTION, "stream": True}).encode()
        reader, writer = await connect(gateway, head(length=len(body)) + body, limit=1024)
        await reader.read(100)
        await asyncio.sleep(1)
        writer.transport.abort()
        labels = {
            "adapter": "support",
            "version": "a" * 12,
            "origin": "user",
            "key": "-",
            "status": "499",
        }
        for _ in range(100):
            if gateway.counted("llm_version_request_total", **labels):
                break
            await asyncio.sleep(0.05)
        assert gateway.counted("llm_version_request_total", **labels) == 1

    with_host(test)


def test_metrics_have_the_names_of_the_operations_guide():
    async def test(gateway):
        await gateway.ask()
        await gateway.ask({**QUESTION, "model": "x" * 1000})
        gateway.state.channels = {
            "support": Followed(Channel("support", 3, STABLE.digest, CANARY.digest, 10))
        }
        gateway.state.refresh()
        gateway.metrics.show(gateway.state)
        async with gateway.client.get("/metrics") as answer:
            text = await answer.text()
        for line in (
            (
                'llm_inference_duration_seconds_count{adapter="support",model="base-model",'
                'request_type="chat"} 1.0'
            ),
            'llm_request_total{adapter="support",status="200"} 1.0',
            'llm_request_total{adapter="unknown",status="404"} 1.0',
            (
                'llm_adapter_version_info{adapter="support",train_date="2026-11-01",'
                'version="aaaaaaaaaaaa"} 1.0'
            ),
            'llm_canary_weight_percent{adapter="support"} 10.0',
        ):
            assert line in text
        for bound in ("0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "+Inf"):
            assert f'le="{bound}"' in text
        assert "xxxxx" not in text

    with_host(test)
