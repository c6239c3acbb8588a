"""The gateway: the only public port. Names in, versions out, streams untouched, everything
measured.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import aiohttp
from aiohttp import web
from prometheus_client import generate_latest

from adapterops.serving.api_keys import ApiKey, ApiKeys
from adapterops.serving.body import Body, BodyError, parse_body, shown
from adapterops.serving.codings import is_plain, only_plain
from adapterops.serving.engine_metrics import EngineMetrics
from adapterops.serving.feedback import Feedback, TooManyThumbsError
from adapterops.serving.fields import check_body, compiled, sequences
from adapterops.serving.forward import EngineLostError, Question, VersionFailedError, forward
from adapterops.serving.gateway_metrics import Metrics
from adapterops.serving.refusals import FIND
from adapterops.serving.request_record import Exchange, write_line
from adapterops.serving.routes import Route, Version, choose, session_of
from adapterops.serving.slots import Slots, SlotsFullError
from adapterops.serving.state import HostState
from adapterops.specs.serving import GatewaySettings

_LONGEST_PATH = 200
_BODY_TIMEOUT_S = 30  # for a request to arrive; a slow sender must not hold memory for hours
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NOT_FOUND = (
    "Not found. This gateway answers /v1/chat/completions, /v1/completions, /v1/models,"
    " /v1/feedback, /health and /metrics."
)
_RETRY = {"Retry-After": "5"}


def make_gateway(
    state: HostState, settings: GatewaySettings, metrics: Metrics, *, capacity: int = 64
) -> web.Application:
    """The gateway's application.

    Args:
        state: of the host.
        settings: limits.
        metrics: filled in here.
        capacity: requests that one engine batches, for the saturation gauge.

    Raises:
        UsageError: the file of API keys is not what its schema says.
    """
    gateway = _Gateway(state, settings, metrics, capacity)
    application = web.Application(
        client_max_size=settings.max_body_bytes, middlewares=[gateway.logged, _errors, only_plain]
    )
    application.router.add_post("/v1/chat/completions", gateway.complete)
    application.router.add_post("/v1/completions", gateway.complete)
    application.router.add_post("/v1/feedback", gateway.feedback)
    application.router.add_get("/v1/models", gateway.models)
    application.router.add_get("/health", gateway.health)
    application.router.add_get("/metrics", gateway.metrics)
    if settings.engine_metrics:
        application.router.add_get("/engine/metrics", gateway.engine_metrics)
    application[FIND] = gateway.find
    application.cleanup_ctx.append(gateway.session)
    return application


class _Gateway:
    def __init__(
        self, state: HostState, settings: GatewaySettings, metrics: Metrics, capacity: int
    ) -> None:
        self._state = state
        self._settings = settings
        self._metrics = metrics
        self._capacity = capacity
        self._keys = ApiKeys(settings.api_keys, settings.limits)
        self.find = self._keys.find
        self._answers = Feedback()
        self._slots = Slots(settings.max_in_flight, settings.max_body_bytes)
        self._engine_metrics = EngineMetrics(state.engines[0].url)
        self._in_flight = 0
        self._client: aiohttp.ClientSession

    async def session(self, _: web.Application) -> Any:
        """One client session for the life of the application."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=5, sock_read=self._settings.read_timeout_s
        )
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            timeout=timeout,
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as client:
            self._client = client
            yield

    @web.middleware
    async def logged(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """A line of the access log for what `complete` does not answer: also what is refused, and
        paths that do not exist.
        """
        if not self._settings.access_log or (
            request.match_info.handler == self.complete and is_plain(request)
        ):
            return await handler(request)  # type: ignore[no-any-return]
        started, status = time.perf_counter(), 499
        try:
            response: web.StreamResponse = await handler(request)
            status = response.status
            return response
        except web.HTTPException as error:
            status = error.status
            raise
        except Exception:
            status = 500
            raise
        finally:
            key = self._keys.find(request.headers.get("authorization"))
            line = {
                "method": request.method,
                "path": _path(request),
                "key": key.name if key else "-",
                "status": status,
            }
            write_line(
                {
                    "time": round(time.time(), 3),
                    **line,
                    "ms": round((time.perf_counter() - started) * 1000, 1),
                }
            )

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Pick a version, rewrite `model`, pass the answer through as it comes."""
        request_id = request.headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        kind: Literal["chat", "completion"] = (
            "chat" if request.path.endswith("/chat/completions") else "completion"
        )
        exchange = Exchange(request_id, request.method, _path(request), kind)
        self._in_flight += 1
        try:
            response = await self._complete(request, exchange)
            if request.transport is None or request.transport.is_closing():
                exchange.status = 499 if exchange.status < 500 else exchange.status
            return response
        except web.HTTPException as error:
            exchange.status = error.status
            error.headers["x-request-id"] = request_id
            raise
        except (asyncio.CancelledError, ConnectionResetError):
            exchange.status = 499  # the client went away; nginx's code for it
            raise
        finally:
            self._in_flight -= 1
            if (
                exchange.version
                and exchange.outcome != 200
                and not (exchange.status == 499 and exchange.sent)
            ):
                self._answers.forget(
                    exchange.key, request_id
                )  # an error is no answer; the beginning of one can be rated
            exchange.finish(self._metrics, self._state.base_model)
            if self._settings.access_log:
                exchange.log()

    async def _complete(self, request: web.Request, exchange: Exchange) -> web.StreamResponse:
        key = self._admit(request)
        exchange.key, exchange.evidence = key.name, key.limits.evidence
        if key.role == "operator" and request.headers.get("x-request-purpose") == "probe":
            exchange.origin = "probe"
        with self._slot(key):
            raw = await _read(request)
            body, size = parse_body(raw), len(raw)
            del raw  # an answer may take half an hour
            exchange.arrived()
            exchange.adapter = name = self._known(body, key)
            exchange.stream = body.get("stream") is True
            checked = check_body(request.path, body, key.limits)
            if (schemas := compiled(checked)) and not key.may_compile(schemas, time.monotonic()):
                message = (
                    f"Key {key.name} may send {key.limits.schemas_per_minute} new schemas a minute."
                )
                raise self._refuse(
                    "schemas", 429, message, {"Retry-After": "10"}, "rate_limit_exceeded"
                )
            # What a client's own grammar makes of an engine is no version's doing.
            exchange.evidence = exchange.evidence and "structured_outputs" not in checked
            version, twin = self._versions(request, body, name, key)
            exchange.version = version
            if self._settings.log_prompts:
                exchange.prompt = body.get("messages", body.get("prompt"))
            room = self._capacity * max(1, len(self._state.up))
            with self._slots.sequences(key, sequences(checked), room), self._slots.body(key, size):
                return await self._answer(request, exchange, checked, version, twin)

    @contextmanager
    def _slot(self, key: ApiKey) -> Iterator[None]:
        """One of the key's slots, for a request from its body to the end of its answer."""
        try:
            with self._slots.request(key):
                yield
        except BodyError as error:
            raise _error(400, str(error), param=error.field) from None
        except SlotsFullError as error:
            raise self._refuse(
                "share", 429, str(error), {"Retry-After": "1"}, "rate_limit_exceeded"
            ) from None

    async def _answer(
        self,
        request: web.Request,
        exchange: Exchange,
        body: Body,
        version: Version | None,
        twin: Version | None,
    ) -> web.StreamResponse:
        """The version's answer; while two versions are on trial and it fails with 500, the twin's.

        So the client has an answer, and only what the other version can answer accuses the one that
        could not: a body that makes any version fail is the client's.
        """
        try:
            return await self._ask(request, exchange, body, version, has_twin=twin is not None)
        except VersionFailedError:
            exchange.failed, exchange.version = version, twin
            return await self._ask(request, exchange, body, twin, has_twin=False)
        finally:
            if exchange.retries:
                self._metrics.retries.inc(exchange.retries)

    async def _ask(
        self,
        request: web.Request,
        exchange: Exchange,
        body: Body,
        version: Version | None,
        *,
        has_twin: bool,
    ) -> web.StreamResponse:
        engines = [engine for engine in self._state.engines if engine.has(version)]
        if not engines:
            raise _error(503, "The engine is not ready.", _RETRY)
        headers = {"content-type": "application/json", "x-request-id": exchange.request_id}
        body["model"] = version.engine_name if version else self._state.base_model
        if version and exchange.evidence:
            self._answers.remember(exchange.key, exchange.request_id, version)
        deadline = asyncio.get_running_loop().time() + self._settings.request_timeout_s
        raw = json.dumps(body, ensure_ascii=False).encode()
        question = Question(raw, headers, deadline, self._settings.write_timeout_s, has_twin)
        try:
            return await forward(self._client, engines, request, question, exchange)
        except EngineLostError as error:
            raise _error(error.status, str(error), _RETRY) from None

    def _admit(self, request: web.Request) -> ApiKey:
        """Who asks, if that one may ask now."""
        key = self._key(request)  # a stranger's refusal is a stranger's, however busy the host is
        if self._in_flight > self._settings.max_in_flight:
            raise self._refuse(
                "overload",
                503,
                f"{self._settings.max_in_flight} requests are under way already.",
                {"Retry-After": "1"},
            )
        if wait := key.wait(time.monotonic()):
            message = f"Key {key.name} may ask {key.requests_per_minute} times a minute."
            raise self._refuse(
                "rate", 429, message, {"Retry-After": str(int(wait) + 1)}, "rate_limit_exceeded"
            )
        return key

    def _key(self, request: web.Request) -> ApiKey:
        key = self._keys.find(request.headers.get("authorization"))
        if key is None:
            message = "No valid API key. Send it as `Authorization: Bearer KEY`."
            raise self._refuse(
                "key", 401, message, {"WWW-Authenticate": "Bearer"}, "invalid_api_key"
            )
        return key

    def _known(self, body: Body, key: ApiKey) -> str:
        """The adapter's or the base model's name that a request asks for."""
        name = body.get("model")
        if isinstance(name, str) and name in self._names(key):
            return name
        known = ", ".join(self._names(key))
        raise _error(
            404,
            f"The model `{shown(name)}` does not exist. Known: {known}.",
            code="model_not_found",
        )

    def _names(self, key: ApiKey) -> list[str]:
        """What a key may ask for; what it may not does not exist for it."""
        return [
            name
            for name in [*self._state.channels, self._state.base_model]
            if key.adapters is None or name in key.adapters
        ]

    def _versions(
        self, request: web.Request, body: Body, name: str, key: ApiKey
    ) -> tuple[Version | None, Version | None]:
        """The version that answers, None for the base model; and the other one on trial, which
        answers if that one fails.
        """
        if name == self._state.base_model:
            return None, None
        route = self._state.routes.get(name, Route())
        wanted = request.headers.get("x-adapter-version")
        if wanted and key.role == "operator":
            # For probes and for comparing versions: a version that is ready, by its first digits,
            # and no other.
            version = next(
                (
                    v
                    for v in (route.stable, route.canary)
                    if v and len(wanted) >= 12 and v.digest.startswith(wanted)
                ),
                None,
            )
            twin = None
        else:
            wanted = None
            try:
                version = choose(route, session_of(key.name, request.headers, body))
            except ValueError as error:
                raise _error(400, str(error)) from None
            twin = (
                (route.stable if version == route.canary else route.canary)
                if route.canary and route.weight
                else None
            )
        if version is None:
            raise _error(
                503,
                f"No version of `{name}` is ready{f' as {wanted[:64]}' if wanted else ''}.",
                _RETRY,
            )
        return version, twin

    async def feedback(self, request: web.Request) -> web.Response:
        """Count a thumb for the version that gave an answer: `{"id": …, "rating": "up" |
        "down"}`.
        """
        self._in_flight += 1
        try:
            key = self._admit(request)
            with self._slot(key):
                body = parse_body(await _read(request))
        finally:
            self._in_flight -= 1
        response_id, rating = body.get("id"), body.get("rating")
        if not isinstance(response_id, str) or rating not in ("up", "down"):
            raise _error(
                400,
                '`id` is the id of a response (or its x-request-id), `rating` is "up" or "down".',
            )
        try:
            known, version = self._answers.rate(key, response_id)
        except TooManyThumbsError:
            message = f"{key.limits.thumbs_per_minute} thumbs a minute count of key {key.name}."
            raise self._refuse(
                "thumbs", 429, message, {"Retry-After": "60"}, "rate_limit_exceeded"
            ) from None
        if not known:
            raise _error(
                404,
                f"No answer `{response_id[:128]}` was given here lately to this key.",
                code="response_not_found",
            )
        if version:
            self._metrics.feedback.labels(*self._metrics.labels_of(version), key.name, rating).inc()
        return web.json_response(
            {"id": response_id, "rating": rating, "counted": version is not None}
        )

    async def models(self, request: web.Request) -> web.Response:
        """What can be asked for: adapters with a version that is ready, and the base model; never
        versions.
        """
        key = self._key(request)
        ready = {
            name for name, route in self._state.routes.items() if route.stable or route.canary
        } | {self._state.base_model}
        names = [name for name in self._names(key) if name in ready] if self._state.up else []
        cards = [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "qlora-gitops",
                "parent": self._parent(name),
            }
            for name in names
        ]
        return web.json_response({"object": "list", "data": cards})

    def _parent(self, name: str) -> str | None:
        return None if name == self._state.base_model else self._state.base_model

    async def health(self, request: web.Request) -> web.Response:
        """200 if an engine answers, has what is stable, and the host is not about to stop; with
        every adapter's state for operators.

        A stable version that cannot be had does not keep a host from serving the others: it was
        tried, and that is enough.
        """
        ready = any(engine.settled for engine in self._state.up)
        status = "draining" if self._state.draining else "ok" if ready else "starting"
        document: dict[str, object] = {"status": status}
        key = self._keys.find(request.headers.get("authorization"))
        if key and key.role == "operator":
            document |= self._details()
        return web.json_response(document, status=200 if status == "ok" else 503)

    def _details(self) -> dict[str, object]:
        return {
            "base_model": self._state.base_model,
            "engines": [
                {
                    "up": engine.up,
                    "ready": sorted(engine.ready) if engine.up else [],
                    "unknown": list(engine.unknown),
                }
                for engine in self._state.engines
            ],
            "adapters": self._state.report,
        }

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus text format; with API keys, for operators."""
        if self._key(request).role != "operator":
            raise self._refuse("key", 403, "This key is not an operator's.")
        self._metrics.in_flight.set(self._in_flight)
        room = self._capacity * len(self._state.up)
        self._metrics.saturation.set(self._in_flight / room if room else 1.0)
        return web.Response(
            body=generate_latest(self._metrics.registry),
            headers={"content-type": "text/plain; version=0.0.4"},
        )

    async def engine_metrics(self, _: web.Request) -> web.Response:
        """What vLLM says of its queue and its cache, for a scheduler that chooses among hosts; it
        sends no key.
        """
        try:
            said = await self._engine_metrics.read(self._client)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _error(
                503, f"The engine does not answer ({type(error).__name__}).", _RETRY
            ) from None
        return web.Response(
            status=said.status, body=said.content, headers={"content-type": said.kind}
        )

    def _refuse(
        self,
        reason: str,
        status: int,
        message: str,
        headers: dict[str, str] | None = None,
        code: str | None = None,
    ) -> web.HTTPException:
        self._metrics.rejected.labels(reason).inc()
        return _error(status, message, headers, code)


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
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        raise _error(
            error.status, _NOT_FOUND if error.status == 404 else error.reason, headers
        ) from None


def _path(request: web.Request) -> str:
    """The path for the access log: without the query, of a length that fits a line, and with
    nothing that a terminal obeys.
    """
    return request.rel_url.raw_path[:_LONGEST_PATH].encode("ascii", "backslashreplace").decode()


async def _read(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise _error(408, f"The request did not arrive within {_BODY_TIMEOUT_S} s.") from None
    except web.RequestPayloadError:
        raise _error(400, "The body is not what its headers say.") from None


def _error(
    status: int,
    message: str,
    headers: dict[str, str] | None = None,
    code: str | None = None,
    param: str | None = None,
) -> web.HTTPException:
    kind = "invalid_request_error" if status < 500 else "server_error"
    text = json.dumps(
        {"error": {"message": message, "type": kind, "param": param, "code": code or status}}
    )
    error = web.HTTPException(text=text, content_type="application/json", headers=headers)
    error.set_status(status)
    return error
