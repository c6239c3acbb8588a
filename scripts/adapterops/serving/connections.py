"""The connections of the public port.

How many there are, how long one keeps its place without a request, how soon a refusal is answered,
and what a broken one logs.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError

from adapterops.serving.refusals import FIND, LONGEST_S, Refusals
from adapterops.specs.serving import ConnectionSettings, GatewaySettings

log = logging.getLogger("connections")

_HEAD_BYTES = 1 << 16  # of a request's line and headers together
# For the rest of a body that nobody wants: its sender should read the refusal.
_LINGER_S = 2.0
_LINGER_BYTES = 1 << 22
_COMPLAINT_EVERY_S = 10.0
_HEAD_END = b"\r\n\r\n"
_FLOOD = (
    b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nRetry-After: 5\r\n"
    b"Content-Length: 0\r\n\r\n"
)
_FULL = b"HTTP/1.1 503 Full\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


class Connection(web.RequestHandler):
    """One client's connection.

    It may be ended at any time while no handler is at work: there is no request yet, or an answer
    that only its client holds up, or a refusal that is kept back.
    """

    __slots__ = (
        "_at_work",
        "_door",
        "_draining",
        "_head_timer",
        "_received",
        "_set_aside",
        "_unparsed",
        "address",
    )

    def __init__(self, door: Door, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self.address = ""
        self._door = door
        self._head_timer: asyncio.TimerHandle | None = None
        self._at_work = self._draining = self._set_aside = False
        self._received = 0
        self._unparsed = b""

    @property
    def busy(self) -> bool:
        """A handler is at work on its request."""
        return self._current_request is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, or turn it away at once."""
        self.address = client_of(transport.get_extra_info("peername"))
        if self._door.admits(self):
            super().connection_made(transport)
        else:
            cast(asyncio.Transport, transport).write(_FULL)  # uvloop's is none by inheritance
            transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place to the next one."""
        self._stop_timer()
        self._door.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bound what comes while nothing is worked on: half a head, or the rest of a body."""
        if self.transport is None or self._set_aside:  # turned away
            return
        parsed = self._sift(data)
        if self._set_aside:
            return
        if parsed:
            super().data_received(parsed)
        if self._messages:
            self._at_work = True
        if self._at_work:
            self._stop_timer()
            return
        self._received += len(data)
        if self._received > (_LINGER_BYTES if self._draining else _HEAD_BYTES):
            self.end("draining" if self._draining else "head")
        elif data and not self._draining and self._head_timer is None:
            seconds = self._door.settings.head_timeout_s
            self._head_timer = self._loop.call_later(seconds, self.end, "head")

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """From here on its client is waited for: to take the answer, and then to ask again."""
        self._at_work = False
        self._draining, self._received = not request.content.is_eof(), 0
        self._door.wait(self)
        try:
            await self._keep_back(request, resp)
            return await super().finish_response(request, resp, start_time)
        finally:
            self._at_work = bool(self._messages)

    async def _keep_back(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Wait for a refusal's turn; the connection's place is anybody's meanwhile."""
        if response.prepared:  # a stream: most of it is sent
            return
        key = request.headers.get("authorization")
        if wait := self._door.refusals.wait(self.address, key, response.status):
            self._door.count("late")
            self._door.hold(self)
            try:
                await asyncio.sleep(wait)
            finally:
                self._door.let_go(self)

    def _sift(self, data: bytes) -> bytes:
        """What may be parsed of what came, b"" for nothing yet: of an address that floods, only
        heads with a valid key.
        """
        begun = self._at_work or self._draining or self._head_timer is not None
        if not self._unparsed and (begun or not self._door.refusals.flooded(self.address)):
            return data
        before = len(self._unparsed)
        self._unparsed += data
        end = self._unparsed.find(_HEAD_END, max(0, before - len(_HEAD_END)))
        if end < 0:
            return b""
        data, self._unparsed = self._unparsed, b""
        if self._door.refusals.may_pass(data[: end + len(_HEAD_END)]):
            return data
        self._put_aside()
        return b""

    def _put_aside(self) -> None:
        """Read no more; answer and close it late."""
        self._set_aside = True
        self._door.count("flood")
        self._door.hold(self)
        self._stop_timer()
        cast(asyncio.Transport, self.transport).pause_reading()
        self._head_timer = self._loop.call_later(LONGEST_S, self._turn_away)

    def _turn_away(self) -> None:
        transport = cast(asyncio.Transport, self.transport)
        transport.write(_FLOOD)
        transport.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A malformed request gets an answer without a word of what it sent."""
        response = super().handle_error(request, status, exc, message)
        if not isinstance(exc, HttpProcessingError):
            return response
        return _refusal("The request is not HTTP/1.1.")

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """A traceback is for our own defects.

        What a client sends leaves a line now and then, without a byte of it; its leaving none.
        """
        error = kw.get("exc_info")
        if isinstance(error, HttpProcessingError | web.RequestPayloadError):
            self._door.complain(self.address, type(error).__name__)
        elif not isinstance(error, ConnectionError):
            super().log_exception(*args, **kw)

    def end(self, reason: str) -> None:
        """Close it now, unsent bytes or not: who reads nothing would hold the descriptor."""
        self._door.count(reason)
        self._door.leave(self)
        if self.transport is not None:
            self.transport.abort()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Door:
    """Which connections there are, and which of them wait for their client, longest first.

    When no place is left, a newcomer takes that of the connection whose refusal is kept back
    longest. If there is none, it takes that of the longest waiting connection: of its own address
    if that has one, else of any. So one address cannot take the places of others, and connections
    that nobody uses keep nobody out.

    Args:
        settings: the bounds.
        refusals: how long each is kept back.
        count: called with the reason of each connection that is turned away or ended.
    """

    def __init__(
        self, settings: ConnectionSettings, refusals: Refusals, count: Callable[[str], None]
    ) -> None:
        self.settings, self.refusals, self.count = settings, refusals, count
        self._open: dict[Connection, None] = {}
        self._open_of: Counter[str] = Counter()
        self._waiting: dict[Connection, None] = {}
        self._waiting_of: dict[str, dict[Connection, None]] = {}
        self._held: dict[Connection, None] = {}
        self._complaints, self._next_complaint = 0, 0.0

    def admits(self, connection: Connection) -> bool:
        """Take a newcomer in, in another's place if need be; False if there is none."""
        most = self.settings.max_per_address
        victim, crowded = None, most is not None and self._open_of[connection.address] >= most
        if crowded or len(self._open) >= self.settings.max_open:
            victim = None if crowded else next(iter(self._held), None)
            if victim is None:
                victim = self._longest_waiting(self._waiting_of.get(connection.address, {}))
            if victim is None and not crowded:
                victim = self._longest_waiting(self._waiting)
            if victim is None:
                self.count("full")
                return False
            victim.end("displaced")
        self._open[connection] = None
        self._open_of[connection.address] += 1
        self.wait(connection)
        return True

    def _longest_waiting(self, candidates: dict[Connection, None]) -> Connection | None:
        while candidates:
            connection = next(iter(candidates))
            if not connection.busy:
                return connection
            self._wait_no_more(connection)  # its answer brings it back
        return None

    def wait(self, connection: Connection) -> None:
        """Note that it waits from now on."""
        if connection in self._open:
            self._wait_no_more(connection)
            self._waiting[connection] = None
            self._waiting_of.setdefault(connection.address, {})[connection] = None

    def _wait_no_more(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)
        if same := self._waiting_of.get(connection.address):
            same.pop(connection, None)
            if not same:
                del self._waiting_of[connection.address]

    def hold(self, connection: Connection) -> None:
        """Note that its refusal is kept back from now on."""
        if connection in self._open:
            self._held[connection] = None

    def let_go(self, connection: Connection) -> None:
        """Note that it is kept back no more."""
        self._held.pop(connection, None)

    def leave(self, connection: Connection) -> None:
        """Forget it."""
        self.let_go(connection)
        self._wait_no_more(connection)
        if connection in self._open:
            del self._open[connection]
            self._open_of[connection.address] -= 1
            if not self._open_of[connection.address]:
                del self._open_of[connection.address]

    def complain(self, address: str, what: str) -> None:
        """At most a line in ten seconds: a log must not grow as fast as strangers send."""
        self.count("malformed")
        self._complaints += 1
        if time.monotonic() >= self._next_complaint:
            log.warning(
                "%s sent what is no request (%s); %d of these since the last such line",
                address,
                what,
                self._complaints,
            )
            self._complaints, self._next_complaint = 0, time.monotonic() + _COMPLAINT_EVERY_S


@dataclass(frozen=True)
class Listening:
    """An open port."""

    server: asyncio.Server
    runner: web.AppRunner
    port: int

    async def close(self) -> None:
        """Listen no more, and let running answers end."""
        self.server.close()
        await self.runner.cleanup()


async def listen(
    application: web.Application,
    gateway: GatewaySettings,
    settings: ConnectionSettings,
    count: Callable[[str], None],
) -> Listening:
    """Serve an application; bodies reach it as they were sent, never decompressed.

    Args:
        application: what answers; it has `FIND`.
        gateway: where to listen (port 0 is one that the system chooses), how long an answer may be
            left unread, and how long running answers have when the port closes.
        settings: bounds of the connections.
        count: called with the reason of each connection that is turned away or ended.

    Raises:
        OSError: the port is taken, or not ours to take.
    """
    loop = asyncio.get_running_loop()
    runner = web.AppRunner(application, shutdown_timeout=gateway.drain_s, handler_cancellation=True)
    await runner.setup()
    refusals = Refusals(settings.refusals_per_second, application[FIND])
    manager, door = runner.server, Door(settings, refusals, count)
    assert manager is not None
    manager.request_handler = _sound(manager.request_handler, door)
    options = {
        "loop": loop,
        "access_log": None,
        "auto_decompress": False,
        "keepalive_timeout": settings.idle_timeout_s,
        "tcp_keepalive": False,  # the listener's, which costs no call for each connection
        "lingering_time": _LINGER_S,
    }
    try:
        server = await loop.create_server(
            lambda: Connection(door, manager, **options),
            gateway.host,
            gateway.port,
            backlog=128,
        )
    except OSError:
        await runner.cleanup()
        raise
    unread_ms = int(gateway.write_timeout_s * 1000)
    for listener in server.sockets:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted connections inherit it (tcp(7))
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms)
    return Listening(server, runner, server.sockets[0].getsockname()[1])


def _sound(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], door: Door
) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Look at headers first: bytes that are no text break what quotes, hashes or forwards them."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        for value in request.headers.values():
            if not value.isascii() and value != value.encode(errors="replace").decode():
                door.complain(str(request.remote), "UnicodeError")
                return _refusal("A header is not UTF-8.")
        return await handler(request)

    return answer


def _refusal(message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": 400}
    response = web.json_response({"error": error}, status=400)
    response.force_close()
    return response


def client_of(peername: object) -> str:
    """The address that counts as one client.

    Of IPv6 the first 64 bits: one machine can have all addresses that begin with them (RFC 6177).
    """
    return _network(str(peername[0])) if isinstance(peername, tuple) else "-"


@lru_cache(maxsize=4096)  # to parse one takes longer than to accept a connection
def _network(host: str) -> str:
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
