"""Hand a request to an engine and its answer back, untouched; another engine is tried only while
nothing was answered yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from adapterops.serving.request_record import Exchange
from adapterops.serving.state import Engine

# Meant for one connection, not for the message (RFC 9110 §7.6.1), or set anew by each side.
_NOT_FORWARDED = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
    "transfer-encoding", "upgrade",
    "content-length", "host", "date", "server",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What an engine gets, and how long it may take.

    Args:
        body: JSON.
        headers: for the engine.
        deadline: of the event loop's clock, for the whole answer, whoever gives it.
        write_timeout_s: how long the client may take none of its answer.
        has_twin: another version can answer it instead: an error of this one is raised, not handed
            on.
    """

    body: bytes
    headers: Mapping[str, str]
    deadline: float
    write_timeout_s: float
    has_twin: bool


class EngineLostError(Exception):
    """No engine answered; nothing was sent to the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class VersionFailedError(Exception):
    """The version answered with an error of the server; nothing was sent to the client."""


class _UnreadError(Exception):
    """The client does not take its answer."""


async def forward(
    client: aiohttp.ClientSession,
    engines: list[Engine],
    request: web.Request,
    question: Question,
    exchange: Exchange,
) -> web.StreamResponse:
    """Ask the least busy engine; after a broken connection or a 503 without a byte of an answer,
    the next one.

    Args:
        client: for the engines.
        engines: those that have the version, at least one.
        request: the client's.
        question: what the engine gets.
        exchange: noted in it: engine, retries, status, chunks.

    Raises:
        EngineLostError: none of the engines answered.
        VersionFailedError: one answered 500, and the question has a twin.
    """
    lost = EngineLostError(502, "The engine does not answer.")
    turns = sorted(engines, key=lambda engine: engine.in_flight)
    for number, engine in enumerate(turns):
        exchange.retries += number > 0
        exchange.engine = engine.url
        engine.in_flight += 1
        try:
            return await _ask(
                client, engine, request, question, exchange, last=number + 1 == len(turns)
            )
        except EngineLostError as error:
            lost = error
            if error.status == 499 or asyncio.get_running_loop().time() >= question.deadline:
                break
        finally:
            engine.in_flight -= 1
    raise lost


async def _ask(
    client: aiohttp.ClientSession,
    engine: Engine,
    request: web.Request,
    question: Question,
    exchange: Exchange,
    *,
    last: bool,
) -> web.StreamResponse:
    response: web.StreamResponse | None = None
    url, body, headers = f"{engine.url}{request.path}", question.body, question.headers
    try:
        async with (
            asyncio.timeout_at(question.deadline),
            client.post(url, data=body, headers=headers) as answer,
        ):
            if answer.status == 404 and exchange.version:
                # The engine was restarted and has not been given its adapters again.
                raise EngineLostError(503, f"`{exchange.version.adapter}` is being loaded again.")
            if answer.status == 503 and not last:
                raise EngineLostError(503, "The engine is not ready.")
            if answer.status >= 500 and answer.status != 503 and question.has_twin:
                raise VersionFailedError
            exchange.status = answer.status
            passed = _headers(answer, exchange)
            if answer.content_length is not None:
                content = (
                    await answer.read()
                )  # whole already: one write, and still another engine's turn if it breaks off
                exchange.chunk(content)
                response = web.Response(status=answer.status, headers=passed, body=content)
                await _taken(response.prepare(request), question)
                await _taken(response.write_eof(), question)
                exchange.sent_on()
                return response
            chunk = (
                await answer.content.readany()
            )  # an engine can end between its headers and its first byte
            response = web.StreamResponse(status=answer.status, headers=passed)
            await response.prepare(request)
            while chunk:
                exchange.chunk(chunk)
                await _taken(response.write(chunk), question)
                exchange.sent_on()
                chunk = await answer.content.readany()
            await _taken(response.write_eof(), question)
            return response
    except _UnreadError:
        return _cut(request, response, exchange, 499)
    except (aiohttp.ClientError, TimeoutError) as error:
        if request.transport is None or request.transport.is_closing():
            raise EngineLostError(499, "The client went away.") from None
        if response is None or not response.prepared:
            status = 504 if isinstance(error, TimeoutError) else 502
            raise EngineLostError(
                status, f"The engine does not answer ({type(error).__name__})."
            ) from None
        # If the time was over while the client was reading, that is not the engine's fault.
        return _cut(request, response, exchange, 499 if exchange.waiting_since is None else 502)


def _headers(answer: aiohttp.ClientResponse, exchange: Exchange) -> dict[str, str]:
    passed = {
        key: value for key, value in answer.headers.items() if key.lower() not in _NOT_FORWARDED
    }
    passed["x-request-id"] = exchange.request_id
    if exchange.version:
        passed["x-adapter-version"] = exchange.version.digest[:12]
    return passed


async def _taken(sending: Awaitable[object], question: Question) -> None:
    """Send a part of the answer.

    Raises:
        _UnreadError: the client takes none of it: its buffers stay full.
    """
    try:
        async with asyncio.timeout(question.write_timeout_s):
            await sending
    except TimeoutError:
        raise _UnreadError from None


def _cut(
    request: web.Request, response: web.StreamResponse | None, exchange: Exchange, status: int
) -> web.StreamResponse:
    """End the connection: the client has the beginning of an answer, and only that says that it is
    not whole.
    """
    exchange.status = status
    if request.transport:
        # `close` lets the client have what is under way; one that does not read would never let it
        # end.
        (request.transport.close if status == 502 else request.transport.abort)()
    assert response is not None
    return response
