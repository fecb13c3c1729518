"""Apply rules of HTTP: `LingeringClose` and `HeadAsGet`.

With `LingeringClose` a refused client can read its answer. `HeadAsGet` answers HEAD like GET,
without a body.
"""

import asyncio
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

from ray_app.serving.http.errors import Layer

LINGER_IDLE_S = 2.0  # Apache closes after the same time without a byte (SECONDS_TO_LINGER).


class LingeringClose(Layer):
    """Let a client that is still sending read an answer that did not wait for its body.

    See RFC 9112, section 9.6. If a server closes a connection with unread bytes, TCP resets the
    connection, and the reset can delete the answer before the client reads it. Therefore this layer
    sends the answer immediately, with `Connection: close`, but holds back its end. Meanwhile it
    reads and drops the rest of the body. The end of the answer, and with it the close, follows when
    the body ends, when the client leaves, or at a limit. The answer has no Content-Length, because
    a server may close as soon as it has sent that many bytes.

    Args:
        app: The application inside this layer.
        deadline_s: Seconds from the start of a request until its body must have ended.
        max_bytes: Maximum number of bytes of one body that are dropped. A longer body ends with a
            reset.
        max_lingering: Maximum number of clients that may still send after their answer, at the same
            time. The connection of a further client closes immediately.
    """

    def __init__(
        self, app: ASGIApp, *, deadline_s: float, max_bytes: int, max_lingering: int
    ) -> None:
        super().__init__(app)
        self.deadline_s, self.max_bytes, self.max_lingering = deadline_s, max_bytes, max_lingering
        self.lingering = 0

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. After an early answer, drop the rest of the body."""
        if not has_body(scope):
            await self.app(scope, receive, send)
            return
        clock = asyncio.get_running_loop().time
        deadline = clock() + self.deadline_s
        exchange = _EarlyAnswer(receive, send)
        await self.app(scope, exchange.receive, exchange.send)
        if exchange.is_held:
            # Such a client sends its body only after the server has asked for it.
            is_waiting = not exchange.has_read and any(
                name == b"expect" for name, _ in scope["headers"]
            )
            if self.lingering < self.max_lingering and not is_waiting:
                self.lingering += 1
                try:
                    await self._drop_body(receive, max(deadline, clock() + LINGER_IDLE_S))
                finally:
                    self.lingering -= 1
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _drop_body(self, receive: Receive, deadline: float) -> None:
        """Read the rest of a body, within the limits."""
        clock = asyncio.get_running_loop().time
        dropped_bytes = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_IDLE_S) as limit:
                while dropped_bytes < self.max_bytes:
                    try:
                        message = await receive()
                    # Ray Serve raises its TaskCancelledError if the client has left.
                    except Exception:
                        return
                    # The body has ended, or the client has left.
                    if not message.get("more_body", False):
                        return
                    dropped_bytes += len(message.get("body", b""))
                    limit.reschedule(min(deadline, clock() + LINGER_IDLE_S))


class _EarlyAnswer:
    """Watch one request with a body for an answer that comes before the end of the body.

    For such an answer, announce the close and hold back the last message.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._body_ended = False
        self.is_held = self.has_read = False

    async def receive(self) -> Message:
        self.has_read = True
        message = await self._receive()
        self._body_ended = self._body_ended or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if not self._body_ended:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Connection"] = "close"
                del headers["Content-Length"]
            elif not message.get("more_body", False):
                self.is_held = True
                message = {**message, "more_body": True}
        await self._send(message)


class HeadAsGet(Layer):
    """Answer HEAD wherever GET is answered: the same status and headers, without the body.

    See RFC 9110, sections 9.1 and 9.3.2.
    """

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass HEAD on as GET, and drop the body of the answer."""
        if scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, send_without_body)


def has_body(scope: Scope) -> bool:
    """Return whether the client announced a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )
