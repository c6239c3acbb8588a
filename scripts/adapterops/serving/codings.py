"""Compressed requests are refused: a few bytes of one could become gigabytes."""

from __future__ import annotations

from typing import Any

from aiohttp import web

_REFUSED = "Send the body as it is: no Content-Encoding, and no Transfer-Encoding but chunked."


def is_plain(request: web.BaseRequest) -> bool:
    """True if the body is the bytes that were sent (RFC 9110 §8.4, RFC 9112 §7)."""
    content, transfer = _tokens(request, "content-encoding"), _tokens(request, "transfer-encoding")
    return content <= {"identity"} and transfer <= {"chunked"}


def _tokens(request: web.BaseRequest, header: str) -> set[str]:
    values = ",".join(request.headers.getall(header, ()))
    return {token.strip().lower() for token in values.split(",")} - {""}


@web.middleware
async def only_plain(request: web.Request, handler: Any) -> web.StreamResponse:
    """415 for any other request, whoever sends it, wherever to."""
    if not is_plain(request):
        raise web.HTTPUnsupportedMediaType(reason=_REFUSED)
    return await handler(request)  # type: ignore[no-any-return]
