"""A gateway in front of stub engines that record what reaches them, and a client of it."""

import asyncio
import contextlib
import json

import aiohttp
import uvloop
from aiohttp import web
from aiohttp.test_utils import TestServer

from adapterops.serving.connections import listen
from adapterops.serving.gateway import make_gateway
from adapterops.serving.gateway_metrics import Metrics
from adapterops.serving.routes import Route, Version
from adapterops.serving.state import Engine as EngineState
from adapterops.serving.state import Followed, HostState
from adapterops.specs.limits import Limits
from adapterops.specs.serving import ConnectionSettings, GatewaySettings
from adapterops.store.channels import Channel

STABLE = Version("support", "a" * 64, "2026-11-01T00:00:00+00:00")
CANARY = Version("support", "b" * 64, "2026-11-02T00:00:00+00:00")
QUESTION = {
    "model": "support",
    "messages": [{"role": "user", "content": "Where is my parcel? 내 소포는 어디에 있나요?"}],
}
STREAM = [b'data: {"choices": [{"delta": {"content": "On"}}]}\n\n', b"data: [DO", b"NE]\n\n"]

LIMITS = Limits(
    n=8,
    prompts=8,
    max_tokens=1024,
    default_tokens=512,
    request_tokens=8192,
    logprobs=5,
    logit_bias=128,
    messages=256,
    tools=32,
    schema_nodes=256,
    schemas_per_minute=30,
    share=0.25,
    thumbs_per_minute=30,
    grammars=False,
    evidence=True,
)


async def broken_stream(request):
    """A stream that ends after its first piece."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(STREAM[0])
    request.transport.close()
    return response


class Engine:
    """Answers as told, and records the requests."""

    def __init__(self):
        self.requests = []
        self.answer = lambda _: web.json_response(
            {"object": "chat.completion", "model": "as-the-engine-says"}
        )

    async def handle(self, request):
        body = await request.read()
        self.requests.append((request.method, request.raw_path, request.headers.copy(), body))
        result = self.answer(request)
        return await result if asyncio.iscoroutine(result) else result


def head(method="POST", path="/v1/chat/completions", *headers, length=None):
    """A request up to its body, as no proper client would tidy it."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "host: x",
        *headers,
        *([] if length is None else [f"content-length: {length}"]),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def connect(gateway, sent=b"", source="127.0.0.1", **options):
    """A plain connection to a gateway; tests send what clients do not, or read nothing."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", gateway.server.port, local_addr=(source, 0), **options
    )
    writer.write(sent)
    return reader, writer


class Host:
    """A gateway with its state, and a client of it."""

    def __init__(self, client, state, engines, metrics, server, upstreams):
        self.client, self.state, self.engines, self.metrics, self.server = (
            client,
            state,
            engines,
            metrics,
            server,
        )
        self.engine, self.engine_server = engines[0], upstreams[0]

    async def ask(self, body=QUESTION, path="/v1/chat/completions", **options):
        data = body if isinstance(body, bytes) else json.dumps(body)
        headers = {"content-type": "application/json", **options.pop("headers", {})}
        async with self.client.post(path, data=data, headers=headers, **options) as answer:
            return answer.status, answer.headers, await answer.text()

    async def get(self, path, **headers):
        async with self.client.get(path, headers=headers) as answer:
            return answer.status, await answer.text()

    def asked(self):
        """The models that the engines were asked for."""
        return [
            json.loads(body)["model"] for engine in self.engines for *_, body in engine.requests
        ]

    def counted(self, metric="llm_request_total", **labels):
        return self.metrics.registry.get_sample_value(metric, labels)


@contextlib.asynccontextmanager
async def host(route=None, engines=1, capacity=64, connections=None, **settings):
    stubs, upstreams = [Engine() for _ in range(engines)], []
    for stub in stubs:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", stub.handle)
        upstreams.append(TestServer(application))
        await upstreams[-1].start_server()
    ready = {version.engine_name: version for version in (STABLE, CANARY)}
    state = HostState(
        "base-model",
        [
            EngineState(str(upstream.make_url("")).rstrip("/"), up=True, settled=True, ready=ready)
            for upstream in upstreams
        ],
        {name: Followed(Channel(name)) for name in ("support", "other")},
        routes={"support": route or Route(stable=STABLE)},
    )
    metrics = Metrics()
    options = {
        "host": "127.0.0.1",
        "port": 0,
        "max_body_bytes": 1 << 20,
        "max_in_flight": 100,
        "read_timeout_s": 5.0,
        "request_timeout_s": 20.0,
        "write_timeout_s": 5.0,
        "drain_delay_s": 0.0,
        "drain_s": 0.1,
        "api_keys": None,
        "access_log": False,
        "log_prompts": False,
        "engine_metrics": False,
        "limits": LIMITS,
        **settings,
    }
    bounds = {
        "max_open": 1000,
        "max_per_address": None,
        "head_timeout_s": 10,
        "idle_timeout_s": 75,
        "refusals_per_second": 1e6,  # most tests refuse much in little time
    }
    gateway = GatewaySettings(**options)
    server = await listen(
        make_gateway(state, gateway, metrics, capacity=capacity),
        gateway,
        ConnectionSettings(**bounds | (connections or {})),
        lambda reason: metrics.rejected.labels(reason).inc(),
    )
    async with aiohttp.ClientSession(base_url=f"http://127.0.0.1:{server.port}") as client:
        yield Host(client, state, stubs, metrics, server, upstreams)
    await server.close()
    for upstream in upstreams:
        await upstream.close()


def with_host(test, **options):
    async def main():
        async with host(**options) as running:
            await test(running)

    uvloop.run(asyncio.wait_for(main(), 30))  # as a host does
