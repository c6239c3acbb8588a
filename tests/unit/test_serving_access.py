"""Who may ask for what and how often, what is counted, and what another engine takes over."""

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web
from gateway_host import CANARY, LIMITS, QUESTION, STABLE, STREAM, broken_stream, with_host

from adapterops.errors import UsageError
from adapterops.schemas import ROOT
from adapterops.serving.api_keys import ApiKeys
from adapterops.serving.routes import Route
from adapterops.serving.state import Followed
from adapterops.store.channels import Channel

CLIENT, OPERATOR, SLOW = "qlg-client", "qlg-operator", "qlg-slow"


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def write_keys(path, **changes):
    entries = [
        {
            "name": "shop",
            "key": CLIENT,
            "adapters": ["support"],
            "requests_per_minute": None,
            "role": "client",
        },
        {
            "name": "deploy",
            "key": OPERATOR,
            "adapters": "all",
            "requests_per_minute": None,
            "role": "operator",
        },
        {
            "name": "slow",
            "key": SLOW,
            "adapters": "all",
            "requests_per_minute": 12,
            "role": "client",
        },
    ]
    for entry in entries:
        entry["sha256"] = hashlib.sha256(entry.pop("key").encode()).hexdigest()
        entry.update(changes if entry["name"] == "shop" else {})
    path.write_text(yaml.safe_dump({"keys": entries}))
    return path


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path / "keys.yaml")


def test_without_a_valid_key_nothing_is_answered_but_whether_the_host_lives(keys):
    async def test(gateway):
        for headers in (
            {},
            bearer("qlg-other"),
            {"authorization": CLIENT},
            bearer(""),
            {"authorization": f"Basic {CLIENT}"},
        ):
            status, answered, text = await gateway.ask(headers=headers)
            assert (status, answered["www-authenticate"], json.loads(text)["error"]["code"]) == (
                401,
                "Bearer",
                "invalid_api_key",
            )
        assert [(await gateway.get(path))[0] for path in ("/v1/models", "/metrics")] == [401, 401]
        assert await gateway.get("/health") == (200, '{"status": "ok"}')
        assert gateway.engine.requests == []
        assert gateway.counted("llm_gateway_rejected_total", reason="key") == 7

    with_host(test, api_keys=keys)


def test_a_key_is_for_its_adapters_and_the_others_do_not_exist_for_it(keys):
    async def test(gateway):
        assert (await gateway.ask(headers=bearer(CLIENT)))[0] == 200
        status, _, text = await gateway.ask(
            {**QUESTION, "model": "base-model"}, headers=bearer(CLIENT)
        )
        assert status == 404
        assert "Known: support." in text
        cards = json.loads((await gateway.get("/v1/models", **bearer(CLIENT)))[1])["data"]
        assert [card["id"] for card in cards] == ["support"]

    with_host(test, api_keys=keys)


def test_only_an_operator_names_a_version_sends_probes_and_reads_metrics(keys):
    async def test(gateway):
        headers = {"x-adapter-version": CANARY.digest[:12], "x-request-purpose": "probe"}
        assert (await gateway.ask(headers=bearer(CLIENT) | headers))[1][
            "x-adapter-version"
        ] == STABLE.digest[:12]
        assert (await gateway.ask(headers=bearer(OPERATOR) | headers))[1][
            "x-adapter-version"
        ] == CANARY.digest[:12]
        count = {"adapter": "support", "status": "200", "metric": "llm_version_request_total"}
        assert gateway.counted(**count, version=STABLE.digest[:12], origin="user", key="shop") == 1
        assert (
            gateway.counted(**count, version=CANARY.digest[:12], origin="probe", key="deploy") == 1
        )
        assert (
            gateway.counted(adapter="support", status="200") == 1
        )  # probes are no users' requests
        assert (await gateway.get("/metrics", **bearer(CLIENT)))[0] == 403
        assert (await gateway.get("/metrics", **bearer(OPERATOR)))[0] == 200

    with_host(test, api_keys=keys, route=Route(STABLE, CANARY, 0))


def test_a_key_has_its_rate(keys):
    async def test(gateway):
        answers = [await gateway.ask(headers=bearer(SLOW)) for _ in range(5)]
        assert [status for status, *_ in answers] == [
            200,
            200,
            429,
            429,
            429,
        ]  # 12 a minute, ten seconds of it saved up
        assert 1 <= int(answers[2][1]["retry-after"]) <= 6
        assert (await gateway.ask(headers=bearer(CLIENT)))[0] == 200

    with_host(test, api_keys=keys)


def test_a_changed_file_of_keys_counts_and_a_broken_one_does_not(keys, monkeypatch):
    monkeypatch.setattr("adapterops.serving.api_keys._LOOK_AGAIN_S", 0)
    found = ApiKeys(keys, LIMITS)
    assert found.find(f"Bearer {CLIENT}").name == "shop"
    write_keys(keys, sha256="0" * 64, name="renamed-shop")
    assert found.find(f"Bearer {CLIENT}") is None
    keys.write_text("keys: [")
    assert found.find(f"bearer {OPERATOR}").name == "deploy"


def test_a_file_of_keys_with_the_former_ones_size_and_date_counts_too(keys, monkeypatch):
    """As `cp -p` and rsync leave it: the key that was replaced must not go on."""
    monkeypatch.setattr("adapterops.serving.api_keys._LOOK_AGAIN_S", 0)
    known, before = ApiKeys(keys, LIMITS), keys.stat()
    write_keys(keys, sha256=hashlib.sha256(b"qlg-next").hexdigest())
    os.utime(keys, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert keys.stat().st_size == before.st_size
    assert known.find(f"Bearer {CLIENT}") is None
    assert known.find("Bearer qlg-next").name == "shop"


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"sha256": CLIENT}, "never the key"), ({"name": "deploy"}, "given to two keys")],
)
def test_a_file_of_keys_that_cannot_be_meant_is_refused(tmp_path, change, reason):
    with pytest.raises(UsageError, match=reason):
        ApiKeys(write_keys(tmp_path / "keys.yaml", **change), LIMITS)


def test_a_key_that_is_made_has_the_limits_that_were_asked_for(tmp_path):
    command = [sys.executable, ROOT / "scripts/api_key.py", "extraction", "--adapter", "support"]
    made = subprocess.run(
        [*command, "--limit", "max_tokens", "4096", "--limit", "share", "0.5"],
        capture_output=True,
        text=True,
        check=True,
    )
    secret, _, entry = made.stdout.partition("\n")
    (tmp_path / "keys.yaml").write_text("keys:\n" + entry)
    key = ApiKeys(tmp_path / "keys.yaml", LIMITS).find(f"Bearer {secret}")
    assert (key.name, key.adapters, key.limits) == (
        "extraction",
        {"support"},
        replace(LIMITS, max_tokens=4096, share=0.5),
    )
    for name, value, reason in (
        ("n", "16384", "out of range"),
        ("best_of", "2", "unknown key `best_of`"),
        ("grammars", "maybe", "true or false"),
    ):
        refused = subprocess.run(
            [*command, "--limit", name, value], capture_output=True, text=True, check=False
        )
        assert (refused.returncode, reason in refused.stderr, refused.stdout) == (2, True, "")


def test_more_requests_at_once_than_allowed_are_refused():
    async def test(gateway):
        gateway.engine.answer = lambda _: asyncio.sleep(0.3, web.json_response({}))
        answers = await asyncio.gather(*(gateway.ask() for _ in range(6)))
        assert sorted(status for status, *_ in answers) == [200, 200, 200, 200, 503, 503]
        assert gateway.counted("llm_gateway_rejected_total", reason="overload") == 2

    with_host(test, max_in_flight=4)


@pytest.mark.parametrize("trouble", ["gone", "503", "breaks off", "breaks off after its headers"])
def test_another_engine_takes_over_before_the_first_byte(trouble):
    async def breaks_off(request):
        if trouble == "breaks off after its headers":
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            await asyncio.sleep(0.05)
        request.transport.close()
        return web.Response()

    async def test(gateway):
        if trouble == "gone":
            gateway.state.engines[0].url = "http://127.0.0.1:9"
        else:
            gateway.engines[0].answer = (
                breaks_off
                if trouble.startswith("breaks off")
                else lambda _: web.Response(status=503)
            )
        answers = [await gateway.ask({**QUESTION, "stream": True}) for _ in range(4)]
        assert [status for status, *_ in answers] == [200] * 4
        assert len(gateway.engines[1].requests) == 4
        assert gateway.counted("llm_gateway_retries_total") == 4
        assert all(engine.in_flight == 0 for engine in gateway.state.engines)

    with_host(test, engines=2)


def test_an_answer_that_began_is_not_begun_again():
    async def test(gateway):
        for engine in gateway.engines:
            engine.answer = broken_stream
        with pytest.raises(aiohttp.ClientPayloadError):
            await gateway.ask({**QUESTION, "stream": True})
        assert len(gateway.asked()) == 1
        assert gateway.counted(adapter="support", status="502") == 1

    with_host(test, engines=2)


def test_an_error_of_a_version_is_not_tried_elsewhere():
    """A request that makes an engine fail would make all of them fail."""

    async def test(gateway):
        gateway.engines[0].answer = lambda _: web.json_response(
            {"error": {"message": "no"}}, status=500
        )
        gateway.state.engines[1].in_flight = 5
        assert (await gateway.ask())[0] == 500
        assert gateway.engines[1].requests == []

    with_host(test, engines=2)


def test_only_engines_that_have_the_version_are_asked():
    async def test(gateway):
        gateway.state.engines[0].ready = {}
        for _ in range(3):
            assert (await gateway.ask())[0] == 200
        gateway.state.engines[1].up = False
        assert (await gateway.ask())[0] == 503
        assert gateway.engines[0].requests == []

    with_host(test, engines=2)


async def trickle(request):
    """A stream that says something again and again and never ends."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"data: x\n\n")
        await asyncio.sleep(0.05)


def test_an_engine_that_trickles_is_given_up():
    async def test(gateway):
        gateway.engine.answer = trickle
        with pytest.raises(aiohttp.ClientPayloadError):
            await asyncio.wait_for(gateway.ask({**QUESTION, "stream": True}), 5)

    with_host(test, request_timeout_s=0.5)


def test_the_longest_time_for_an_answer_is_that_of_all_engines_together():
    async def test(gateway):
        for engine in gateway.engines:
            engine.answer = lambda _: asyncio.sleep(20, web.json_response({}))
        assert (await gateway.ask())[0] == 504
        assert len(gateway.asked()) == 1  # there was no time left for a second one

    with_host(test, engines=3, request_timeout_s=0.5)


@pytest.mark.parametrize("status", [400, 500])
def test_an_error_is_no_answer_that_could_be_rated(status):
    async def test(gateway):
        gateway.engine.answer = lambda _: web.json_response(
            {"error": {"message": "no"}}, status=status
        )
        _, headers, _ = await gateway.ask()
        rated = await gateway.ask(
            {"id": headers["x-request-id"], "rating": "down"}, path="/v1/feedback"
        )
        assert (rated[0], json.loads(rated[2])["error"]["code"]) == (404, "response_not_found")

    with_host(test)


def test_an_answer_that_its_client_stopped_can_be_rated():
    async def test(gateway):
        gateway.engine.answer = trickle
        with pytest.raises(TimeoutError):
            stream = {**QUESTION, "stream": True}
            await gateway.ask(
                stream, headers={"x-request-id": "r-1"}, timeout=aiohttp.ClientTimeout(total=0.3)
            )
        while not gateway.counted(adapter="support", status="499"):
            await asyncio.sleep(0.02)
        assert (await gateway.ask({"id": "r-1", "rating": "down"}, path="/v1/feedback"))[0] == 200

    with_host(test)


def test_a_thumb_counts_once_for_the_version_that_answered(keys):
    async def test(gateway):
        _, headers, _ = await gateway.ask(headers=bearer(CLIENT))
        response_id = "chatcmpl-" + headers["x-request-id"]
        for counted in (True, False):
            status, _, text = await gateway.ask(
                {"id": response_id, "rating": "down"}, path="/v1/feedback", headers=bearer(CLIENT)
            )
            assert (status, json.loads(text)["counted"]) == (200, counted)
        thumbs = {
            "adapter": "support",
            "version": STABLE.digest[:12],
            "key": "shop",
            "rating": "down",
        }
        assert gateway.counted("llm_feedback_total", **thumbs) == 1
        # Another key's answers are not one's own to rate, and a rating is up or down.
        assert (
            await gateway.ask(
                {"id": response_id, "rating": "up"}, path="/v1/feedback", headers=bearer(OPERATOR)
            )
        )[0] == 404
        assert (
            await gateway.ask(
                {"id": response_id, "rating": 5}, path="/v1/feedback", headers=bearer(CLIENT)
            )
        )[0] == 400

    with_host(test, api_keys=keys)


@pytest.mark.parametrize("prompts", [False, True])
def test_the_access_log_says_what_happened_and_the_prompt_only_if_asked_for(capsys, prompts):
    async def stream(request):
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for part in STREAM:
            await response.write(part)
        return response

    async def test(gateway):
        gateway.engine.answer = stream
        await gateway.ask({**QUESTION, "stream": True}, headers={"x-request-id": "r-1"})
        gateway.engine.answer = lambda _: web.json_response(
            {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 17}}
        )
        await gateway.ask()
        await gateway.ask({**QUESTION, "model": "nobody"})

    with_host(test, access_log=True, log_prompts=prompts)
    output = capsys.readouterr().out
    streamed, whole, unknown = (json.loads(line) for line in output.splitlines())
    assert (
        streamed["request_id"],
        streamed["version"],
        streamed["status"],
        streamed["tokens"],
    ) == ("r-1", STABLE.digest[:12], 200, 1)
    assert streamed["ms"] >= streamed["first_byte_ms"] > 0
    assert (whole["tokens"], whole["stream"], unknown["adapter"], unknown["status"]) == (
        17,
        False,
        "unknown",
        404,
    )
    assert ("parcel" in output) is prompts


def test_every_request_leaves_one_line_whatever_becomes_of_it(capsys, keys):
    async def test(gateway):
        await gateway.ask(headers=bearer(CLIENT))
        await gateway.ask()
        await gateway.ask({"lora_name": "x"}, path="/v1/load_lora_adapter?secret=1")
        await gateway.ask(
            {"id": "nobody-knows", "rating": "up"}, path="/v1/feedback", headers=bearer(CLIENT)
        )
        await gateway.get("/v1/completions")
        await gateway.get("/health")
        await gateway.get("/\x1b\x9b" + "x" * 5000)

    with_host(test, access_log=True, api_keys=keys)
    output = capsys.readouterr().out
    lines = [json.loads(line) for line in output.splitlines()]
    assert [(line["method"], line["path"], line["key"], line["status"]) for line in lines[:6]] == [
        ("POST", "/v1/chat/completions", "shop", 200),
        ("POST", "/v1/chat/completions", "-", 401),
        ("POST", "/v1/load_lora_adapter", "-", 404),
        ("POST", "/v1/feedback", "shop", 404),
        ("GET", "/v1/completions", "-", 405),
        ("GET", "/health", "-", 200),
    ]
    assert lines[6]["path"] == ("/%1B%C2%9B" + "x" * 5000)[:200]
    assert len(lines) == 7
    assert output.isascii()
    assert "nobody-knows" not in output


def test_a_line_that_cannot_be_written_costs_nobody_the_answer(monkeypatch):
    """The disk behind standard output is full."""

    async def test(gateway):
        assert (await gateway.ask())[0] == 200
        assert (await gateway.ask({**QUESTION, "model": "nobody"}))[0] == 404
        assert (await gateway.get("/health"))[0] == 200

    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with_host(test, access_log=True)
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


def show(state, metrics):
    """What a host does after each look at a channel or an engine."""
    state.refresh()
    metrics.show(state)


def test_versions_that_are_gone_leave_the_metrics():
    """Also those whose last answer ends after that."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_):
        asked.set()
        await go_on.wait()
        return web.json_response({})

    async def test(gateway):
        await gateway.ask()
        gateway.metrics.show(gateway.state)
        assert f'version="{STABLE.digest[:12]}"' in (await gateway.get("/metrics"))[1]
        gateway.engine.answer = slow
        late = asyncio.create_task(gateway.ask())
        await asked.wait()
        gateway.state.engines[0].ready = {CANARY.engine_name: CANARY}
        show(gateway.state, gateway.metrics)
        assert STABLE.digest[:12] not in (await gateway.get("/metrics"))[1]
        go_on.set()
        assert (await late)[0] == 200
        show(gateway.state, gateway.metrics)
        text = (await gateway.get("/metrics"))[1]
        assert STABLE.digest[:12] not in text
        assert 'llm_request_total{adapter="support",status="200"} 2.0' in text

    with_host(test)


def test_a_canary_that_brings_its_engine_down_keeps_its_errors():
    """A rollout counts them: those of the request that did it, of those while the engine is away,
    and after it came up with nothing."""

    async def dies(request):
        request.transport.close()
        return web.Response()

    async def test(gateway):
        state, engine = gateway.state, gateway.state.engines[0]
        state.channels = {
            "support": Followed(Channel("support", 2, STABLE.digest, CANARY.digest, 100))
        }
        show(state, gateway.metrics)
        gateway.engine.answer = dies
        assert (await gateway.ask())[0] == 502
        engine.up = False
        show(state, gateway.metrics)
        assert (await gateway.ask())[0] == 503
        engine.up, engine.ready = True, {}
        show(state, gateway.metrics)
        for status in ("502", "503"):
            labels = {
                "adapter": "support",
                "version": CANARY.digest[:12],
                "origin": "user",
                "key": "-",
                "status": status,
            }
            assert gateway.counted("llm_version_request_total", **labels) == 1
        state.channels = {"support": Followed(Channel("support", 3, STABLE.digest))}
        show(state, gateway.metrics)
        assert CANARY.digest[:12] not in (await gateway.get("/metrics"))[1]

    with_host(test)


def test_what_the_channel_names_is_shown_by_role():
    """A canary at weight 0 is one too, and so is a previous version that is not there when somebody
    rolls back."""

    async def test(gateway):
        gateway.state.channels = {
            "support": Followed(
                Channel("support", 2, STABLE.digest, CANARY.digest, 0, previous="c" * 64)
            ),
            "other": Followed(Channel("other"), ("not looked at yet",)),
            "idle": Followed(Channel("idle")),
        }
        show(gateway.state, gateway.metrics)
        present = {
            name: gateway.counted("llm_canary_present", adapter=name)
            for name in gateway.state.channels
        }
        assert present == {"support": 1, "other": 0, "idle": 0}
        ready = {
            (sample.labels["adapter"], sample.labels["role"]): sample.value
            for metric in gateway.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == "llm_reconcile_ready"
        }
        assert ready == {
            ("support", "stable"): 1,
            ("support", "canary"): 1,
            ("support", "previous"): 0,
            ("other", "stable"): 0,
            ("idle", "stable"): 1,
        }

    with_host(test)


def test_a_host_that_is_about_to_stop_says_so():
    async def test(gateway):
        gateway.state.draining = True
        assert (await gateway.get("/health"))[0] == 503
        assert (await gateway.ask())[0] == 200

    with_host(test)
