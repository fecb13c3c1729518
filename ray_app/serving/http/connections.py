"""What a connection may cost before there is a request: bytes and seconds of a head, seconds of an
unread answer, how many are open.

uvicorn's httptools protocol has no such limits, and Ray Serve's proxy requests none. Serve calls
`install` in every proxy that has it as RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.
"""

import asyncio
import json
import logging
import os
import secrets
import time
from http import HTTPStatus
from typing import Any, cast

import uvicorn.config
from pydantic import Field
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ray_app.config import Frozen, validate
from ray_app.errors import ConfigError
from ray_app.serving.http.app import is_request_id
from ray_app.serving.http.errors import Refusal

VARIABLE = "TOUCHSTONE_CONNECTIONS"
CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
INSTALL = f"{__name__}.install"
WARNING_PAUSE_S = 60.0
LEAST_READ = 64 * 2**10  # bytes of a long answer, in each send_timeout_s
# By these a client would steer Serve's proxy: its time-outs, its routing; and where one is no text
# the proxy fails on it.
STEERING = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"x-session-id",
        b"serve-multiplexed-model-id",
    }
)
_log = logging.getLogger(__name__)


class ConnectionLimits(Frozen):
    """What the clients of one proxy may hold open."""

    max_connections: int = Field(
        default=1000,
        ge=1,
        description="open at once; then the one that rests longest makes room, or 503",
    )
    max_header_bytes: int = Field(
        default=32 * 2**10, ge=1024, description="request line and headers; beyond: 431"
    )
    max_headers: int = Field(default=100, ge=10, description="headers of one request; beyond: 431")
    header_timeout_s: float = Field(
        default=10.0,
        gt=0,
        description="from a head's first byte, or the connection, to its end; beyond: 408",
    )
    send_timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="in which a client reads an answer, or 64 KiB of it; beyond: closed",
    )


def connection_limits() -> ConnectionLimits:
    """The defaults, and what the environment variable TOUCHSTONE_CONNECTIONS has of them as JSON.
    Raises ConfigError.
    """
    try:
        return validate(
            json.loads(os.environ.get(VARIABLE) or "{}"), ConnectionLimits, where=VARIABLE
        )
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{VARIABLE} is no JSON: {error}", hint='for example {"max_connections": 500}'
        ) from None


def install() -> list[Any]:
    """Makes every uvicorn of this process that names no protocol take ours. Returns no middleware,
    as Serve wants. Raises ConfigError.
    """
    LimitedProtocol.limits = connection_limits()
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{LimitedProtocol.__name__}"
    return []


class LimitedProtocol(HttpToolsProtocol):
    """One connection: a head comes, the request is at work until its answer is written, then the
    connection rests until the next head.
    """

    limits = ConnectionLimits()
    _warned_at = -WARNING_PAUSE_S

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Watches it from now on, and makes room for it."""
        super().connection_made(transport)
        self._in_head, self._in_trailer, self._heads, self._head_bytes = True, False, 0, 0
        self._head_since: float | None = self.loop.time()
        # the loop's own time counts whole milliseconds: several connections come to rest in one
        self._rests_since = time.monotonic()
        # since when, and how many bytes were left then
        self._unread: tuple[float, int] | None = None
        self._refusal: Refusal | None = None
        self._working: RequestResponseCycle | None = None
        self._watch()
        if len(self.connections) > self.limits.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Watches it no longer, and tells the request at work; uvicorn tells the last of several
        that were sent at once.
        """
        self._watching.cancel()
        self.pipeline.clear()
        if self._working is not None:
            self._working.disconnected = True
            self._working.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Hands no more of one head to the parser than a head may have. A trailer is one more head:
        httptools joins its pieces alike.
        """
        if not self._in_head:
            super().data_received(data)
            return
        if not self._head_bytes:
            self._head_since = self.loop.time()
        heads, room = self._heads, self.limits.max_header_bytes - self._head_bytes
        self._head_bytes += len(data)
        super().data_received(data[:room])
        if len(data) <= room or self.transport.is_closing():
            return
        if heads == self._heads:
            self._refuse(Refusal("headers_too_large", limit=self.limits.max_header_bytes))
        else:
            self.data_received(data[room:])

    def on_headers_complete(self) -> None:
        """A request begins, unless it has too many headers, or there was no room for its
        connection.
        """
        if len(self.headers) > self.limits.max_headers:
            self._refusal = Refusal(
                "headers_too_large",
                "too many headers",
                limit=self.limits.max_headers,
                observed=len(self.headers),
            )
        if self._refusal is not None:
            raise ValueError("the parser stops, and has it answered")
        self.headers[:] = [header for header in self.headers if _is_passed_on(*header)]
        super().on_headers_complete()  # raises for an address that is none, as CONNECT has
        self._in_head, self._head_since = False, None
        self._heads += 1  # that have ended
        if self.parser.should_upgrade():
            # it is answered as if it asked for no other protocol; what follows may be one
            self.cycle.keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A trailer is dropped: uvicorn would add it to the headers, which have been counted and
        cleared by then.
        """
        if not self._in_trailer:
            super().on_header(name, value)

    def on_chunk_header(self) -> None:
        """The next byte is the chunk's or, where its size is 0, the trailer's; nobody says which."""
        self._in_head, self._in_trailer, self._head_bytes, self._head_since = (
            True,
            True,
            0,
            self.loop.time(),
        )

    def on_body(self, body: bytes) -> None:
        """It was the chunk's."""
        if self._in_trailer:
            self._in_head, self._in_trailer, self._head_since = False, False, None
            self._heads += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next byte is a head's."""
        self._in_head, self._in_trailer, self._head_bytes, self._head_since = True, False, 0, None
        self._heads += 1
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It rests."""
        self._rests_since = time.monotonic()
        super().on_response_complete()

    def resume_writing(self) -> None:
        """The client has read nearly all that there was."""
        self._unread = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What the parser does not take is answered in our shape."""
        self._refuse(self._refusal or Refusal("malformed_request"))

    def _should_upgrade(self) -> bool:
        return False  # another protocol would leave these limits behind, and there is none here

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._working = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _at_work(self) -> bool:
        return self._working is not None and not self._working.response_complete

    def _watch(self) -> None:
        now, unread = self.loop.time(), self.transport.get_write_buffer_size()
        if self._unread is None or unread <= self._unread[1] - LEAST_READ:
            self._unread = (now, unread) if unread else None
        elif now - self._unread[0] >= self.limits.send_timeout_s:
            self.transport.abort()
        if (
            self._head_since is not None
            and now - self._head_since >= self.limits.header_timeout_s
            and not self._at_work
        ):
            self._refuse(Refusal("header_timeout", limit=self.limits.header_timeout_s))
        self._watching = self.loop.call_later(self.limits.header_timeout_s / 4, self._watch)

    def _make_room(self) -> None:
        """Ends the connection that has rested longest; where all are at work, this one's request
        will be refused.
        """
        if self.loop.time() - LimitedProtocol._warned_at >= WARNING_PAUSE_S:
            LimitedProtocol._warned_at = self.loop.time()
            _log.warning(
                "more than %d connections are open: those that rest are closed (%s)",
                self.limits.max_connections,
                VARIABLE,
            )
        resting = [
            one
            for one in cast("set[LimitedProtocol]", self.connections)
            if one is not self and not one._at_work
        ]
        if resting:
            oldest = min(resting, key=lambda one: one._rests_since)
            self.connections.discard(oldest)
            oldest.transport.abort()
        else:
            limit, observed = self.limits.max_connections, len(self.connections)
            self._refusal = Refusal(
                "overloaded",
                "too many connections",
                limit=limit,
                observed=observed,
                headers={"Retry-After": "1"},
            )

    def _refuse(self, refusal: Refusal) -> None:
        """Closes, with an answer where one is due: some of a request has come, and nothing of an
        answer that it could be taken for.
        """
        working = self._working if self._at_work else None
        if self._in_head and not self._in_trailer:
            is_due = self._head_bytes > 0 and working is None
        else:
            is_due = working is not None and working is self.cycle and not working.response_started
        if is_due and not self.transport.is_closing():
            self.transport.write(_written(refusal))
        self.transport.close()


def _is_passed_on(name: bytes, value: bytes) -> bool:
    """Whether the application, and Serve before it, sees a header of a client. A request id that is
    not one of ours gives way to ours.
    """
    name = name.replace(b"_", b"-")
    return name not in STEERING and (
        name != b"x-request-id" or is_request_id(value.decode("latin-1"))
    )


def _written(refusal: Refusal) -> bytes:
    """The bytes of an answer after which the connection is closed."""
    body = json.dumps(refusal.body(secrets.token_hex(8))).encode()
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **refusal.headers,
    }
    lines = [
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
