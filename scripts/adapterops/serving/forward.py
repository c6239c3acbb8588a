"""Hand a request to an engine and its answer back, untouched; another engine is tried only while nothing was answered yet."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import aiohttp
from aiohttp import web

from adapterops.serving.exchange import Exchange
from adapterops.serving.state import Engine

# Meant for one connection, not for the message (RFC 9110 §7.6.1), or set anew by each side.
_NOT_FORWARDED = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade",
    "content-length", "host", "date", "server",
}  # fmt: skip


class EngineLostError(Exception):
    """No engine answered; nothing was sent to the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def forward(
    client: aiohttp.ClientSession,
    engines: list[Engine],
    request: web.Request,
    body: bytes,
    headers: Mapping[str, str],
    exchange: Exchange,
    timeout_s: float,
) -> web.StreamResponse:
    """Ask the least busy engine; after a broken connection or a 503 without a byte of an answer, the next one.

    Args:
        client: for the engines.
        engines: those that have the version, at least one.
        request: the client's.
        body: what the engine gets.
        headers: what the engine gets.
        exchange: noted in it: engine, retries, status, chunks.
        timeout_s: the longest time for the whole answer, whoever gives it.

    Raises:
        EngineLostError: none of the engines answered.
    """
    lost = EngineLostError(502, "The engine does not answer.")
    deadline = asyncio.get_running_loop().time() + timeout_s
    for engine in sorted(engines, key=lambda engine: engine.in_flight):
        if exchange.engine:
            exchange.retries += 1
        exchange.engine = engine.url
        engine.in_flight += 1
        try:
            return await _ask(client, engine, request, body, headers, exchange, deadline, last=exchange.retries + 1 == len(engines))
        except EngineLostError as error:
            lost = error
            if error.status == 499 or asyncio.get_running_loop().time() >= deadline:
                break
        finally:
            engine.in_flight -= 1
    raise lost


async def _ask(
    client: aiohttp.ClientSession,
    engine: Engine,
    request: web.Request,
    body: bytes,
    headers: Mapping[str, str],
    exchange: Exchange,
    deadline: float,
    *,
    last: bool,
) -> web.StreamResponse:
    response: web.StreamResponse | None = None
    try:
        async with asyncio.timeout_at(deadline), client.post(f"{engine.url}{request.path}", data=body, headers=headers) as answer:
            if answer.status == 404 and exchange.version:
                # The engine was restarted and has not been given its adapters again.
                raise EngineLostError(503, f"`{exchange.version.adapter}` is being loaded again.")
            if answer.status == 503 and not last:
                raise EngineLostError(503, "The engine is not ready.")
            exchange.status = answer.status
            passed = {key: value for key, value in answer.headers.items() if key.lower() not in _NOT_FORWARDED}
            passed["x-request-id"] = exchange.request_id
            if exchange.version:
                passed["x-adapter-version"] = exchange.version.digest[:12]
            if answer.content_length is not None:
                content = await answer.read()  # whole already: one write, and still another engine's turn if it breaks off
                exchange.chunk(content)
                response = web.Response(status=answer.status, headers=passed, body=content)
                await response.prepare(request)
                await response.write_eof()
                return response
            chunk = await answer.content.readany()  # an engine can end between its headers and its first byte
            response = web.StreamResponse(status=answer.status, headers=passed)
            await response.prepare(request)
            while chunk:
                exchange.chunk(chunk)
                await response.write(chunk)
                exchange.sent_on()
                chunk = await answer.content.readany()
            await response.write_eof()
            return response
    except (aiohttp.ClientError, TimeoutError) as error:
        if request.transport is None or request.transport.is_closing():
            raise EngineLostError(499, "The client went away.") from None
        if response is None or not response.prepared:
            status = 504 if isinstance(error, TimeoutError) else 502
            raise EngineLostError(status, f"The engine does not answer ({type(error).__name__}).") from None
        # The client has the beginning of an answer: only a cut connection says that it is not whole.
        exchange.status = 502
        if request.transport:
            request.transport.close()
        return response
