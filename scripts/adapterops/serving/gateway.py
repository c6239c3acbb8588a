"""The gateway: the only public port. Names in, versions out, streams untouched, everything measured."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from adapterops.serving.config import GatewaySettings
from adapterops.serving.routes import Route, Version, choose, session_of

_BODY_TIMEOUT_S = 30  # for a request to arrive; a slow sender must not hold memory for hours

# Meant for one connection, not for the message (RFC 9110 §7.6.1), or set anew by each side.
_NOT_FORWARDED = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade",
    "content-length", "host", "date", "server",
}  # fmt: skip
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NOT_FOUND = "Not found. This gateway answers /v1/chat/completions, /v1/completions, /v1/models, /health and /metrics."


@dataclass
class HostState:
    """What reconciler and gateway share. The event loop is its only writer; values are replaced, not changed.

    Args:
        base_model: name that the base model is served under.
        engine_url: root of the engine.
        engine_ready: the engine answers.
        routes: by adapter.
        report: by adapter, what `/health` tells.
    """

    base_model: str
    engine_url: str
    engine_ready: bool = False
    routes: dict[str, Route] = field(default_factory=dict)
    report: dict[str, dict[str, Any]] = field(default_factory=dict)


class Metrics:
    """Prometheus metrics, named as in the operations guide; a label is never taken from a request unchecked."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.duration = Histogram(
            "llm_inference_duration_seconds",
            "Time from receiving a request to its last byte",
            ["model", "adapter", "request_type"],
            buckets=[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0],
            registry=self.registry,
        )
        self.requests = Counter("llm_request_total", "Requests answered", ["adapter", "status"], registry=self.registry)
        self.version = Gauge(
            "llm_adapter_version_info",
            "1 for each version being served",
            ["adapter", "version", "train_date"],
            registry=self.registry,
        )
        self.weight = Gauge("llm_canary_weight_percent", "Share of requests for the canary", ["adapter"], registry=self.registry)

    def show_routes(self, routes: dict[str, Route]) -> None:
        """Make version and weight gauges say what is routed now."""
        self.version.clear()
        self.weight.clear()
        for adapter, route in routes.items():
            for version in {route.stable, route.canary} - {None}:
                self.version.labels(adapter, version.digest[:12], version.trained_at[:10]).set(1)  # type: ignore[union-attr]
            self.weight.labels(adapter).set(route.weight if route.canary else 0)


def make_gateway(state: HostState, settings: GatewaySettings, metrics: Metrics) -> web.Application:
    """The gateway's application."""
    gateway = _Gateway(state, settings, metrics)
    application = web.Application(client_max_size=settings.max_body_bytes, middlewares=[_errors])
    application.router.add_post("/v1/chat/completions", gateway.complete)
    application.router.add_post("/v1/completions", gateway.complete)
    application.router.add_get("/v1/models", gateway.models)
    application.router.add_get("/health", gateway.health)
    application.router.add_get("/metrics", gateway.metrics)
    application.cleanup_ctx.append(gateway.session)
    return application


class _Gateway:
    def __init__(self, state: HostState, settings: GatewaySettings, metrics: Metrics) -> None:
        self._state = state
        self._settings = settings
        self._metrics = metrics
        self._client: aiohttp.ClientSession

    async def session(self, _: web.Application) -> Any:
        """One client session for the life of the application."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=self._settings.read_timeout_s)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as client:
            self._client = client
            yield

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Pick a version, rewrite `model`, pass the answer through as it comes."""
        started = time.perf_counter()
        request_id = request.headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        adapter = "unknown"
        status = 500
        try:
            body = _parse(await _read(request))
            adapter = self._known(body)
            version = self._version(request, body, adapter)
            response = await self._forward(request, {**body, "model": version.engine_name if version else adapter}, version, request_id)
            status = response.status
            if request.transport is None or request.transport.is_closing():
                status = 499
            return response
        except web.HTTPException as error:
            status = error.status
            error.headers["x-request-id"] = request_id
            raise
        except asyncio.CancelledError:
            status = 499  # the client went away; nginx's code for it
            raise
        finally:
            kind = "chat" if request.path.endswith("/chat/completions") else "completion"
            self._metrics.requests.labels(adapter, str(status)).inc()
            self._metrics.duration.labels(self._state.base_model, adapter, kind).observe(time.perf_counter() - started)

    def _known(self, body: dict[str, Any]) -> str:
        """The adapter's or the base model's name that a request asks for."""
        name = body.get("model")
        if isinstance(name, str) and (name in self._state.report or name == self._state.base_model):
            return name
        known = ", ".join([*self._state.report, self._state.base_model])
        raise _error(404, f"The model `{str(name)[:100]}` does not exist. Known: {known}.", code="model_not_found")

    def _version(self, request: web.Request, body: dict[str, Any], name: str) -> Version | None:
        """The version that answers; None for the base model."""
        if not self._state.engine_ready:
            raise _error(503, "The engine is not ready.", {"Retry-After": "5"})
        if name == self._state.base_model:
            return None
        route = self._state.routes.get(name, Route())
        wanted = request.headers.get("x-adapter-version")
        if wanted:
            # For probes and for comparing versions: a version that is ready, by its first digits.
            version = next((v for v in (route.stable, route.canary) if v and len(wanted) >= 12 and v.digest.startswith(wanted)), None)
        else:
            version = choose(route, session_of(request.headers, body))
        if version is None:
            raise _error(503, f"No version of `{name}` is ready{f' as {wanted[:64]}' if wanted else ''}.", {"Retry-After": "5"})
        return version

    async def _forward(self, request: web.Request, body: dict[str, Any], version: Version | None, request_id: str) -> web.StreamResponse:
        headers = {"content-type": "application/json", "x-request-id": request_id}
        if "accept" in request.headers:
            headers["accept"] = request.headers["accept"]
        response: web.StreamResponse | None = None
        try:
            async with self._client.post(f"{self._state.engine_url}{request.path}", data=json.dumps(body), headers=headers) as answer:
                if answer.status == 404 and version:
                    # The engine was restarted and has not been given its adapters again.
                    raise _error(503, f"`{version.adapter}` is being loaded again.", {"Retry-After": "5"})
                passed = {key: value for key, value in answer.headers.items() if key.lower() not in _NOT_FORWARDED}
                passed["x-request-id"] = request_id
                if version:
                    passed["x-adapter-version"] = version.digest[:12]
                response = web.StreamResponse(status=answer.status, headers=passed)
                if answer.content_length is not None:
                    response.content_length = answer.content_length
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, TimeoutError) as error:
            if response is None:
                raise _error(502, f"The engine does not answer ({type(error).__name__}).", {"Retry-After": "5"}) from None
            # The client has the beginning of an answer: only a cut connection says that it is not whole.
            if request.transport:
                request.transport.close()
            return response

    async def models(self, _: web.Request) -> web.Response:
        """What can be asked for: adapters with a version that is ready, and the base model; never versions."""
        ready = [name for name, route in self._state.routes.items() if route.stable or route.canary] if self._state.engine_ready else []
        names = [*ready, *([self._state.base_model] if self._state.engine_ready else [])]
        cards = [{"id": name, "object": "model", "created": 0, "owned_by": "qlora-gitops", "parent": self._parent(name)} for name in names]
        return web.json_response({"object": "list", "data": cards})

    def _parent(self, name: str) -> str | None:
        return None if name == self._state.base_model else self._state.base_model

    async def health(self, _: web.Request) -> web.Response:
        """200 if the engine answers; the state of every adapter in any case."""
        ready = self._state.engine_ready
        document = {"status": "ok" if ready else "starting", "base_model": self._state.base_model, "adapters": self._state.report}
        return web.json_response(document, status=200 if ready else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        """Prometheus text format."""
        return web.Response(body=generate_latest(self._metrics.registry), headers={"content-type": "text/plain; version=0.0.4"})


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Every error in the shape that OpenAI clients read."""
    try:
        return await handler(request)  # type: ignore[no-any-return]
    except web.HTTPRequestEntityTooLarge as error:
        raise _error(413, f"The request is too large: {error.text}") from None
    except web.HTTPException as error:
        if error.content_type == "application/json":
            raise
        raise _error(error.status, _NOT_FOUND if error.status == 404 else error.reason) from None


async def _read(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise _error(408, f"The request did not arrive within {_BODY_TIMEOUT_S} s.") from None


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _error(400, f"The body is not JSON: {str(error)[:200]}.") from None
    if not isinstance(body, dict):
        raise _error(400, "The body is not a JSON object.")
    return body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _error(status: int, message: str, headers: dict[str, str] | None = None, code: str | None = None) -> web.HTTPException:
    kind = "invalid_request_error" if status < 500 else "server_error"
    text = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code or status}}, ensure_ascii=False)
    error = web.HTTPException(text=text, content_type="application/json", headers=headers)
    error.set_status(status)
    return error
