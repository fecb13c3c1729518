"""Apply rules of HTTP to all answers: `LingeringClose` and `HeadAsGet`.

With `LingeringClose`, a client can read its answer even if it is still sending a body. `HeadAsGet`
answers HEAD like GET, without a body.
"""

import asyncio
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

from ray_app.serving.http.errors import Layer

LINGER_IDLE_S = 2.0  # Apache closes after the same time without a byte (SECONDS_TO_LINGER).


class LingeringClose(Layer):
    """Deliver an answer that was sent before the whole body arrived, such as a refusal.

    See RFC 9112, section 9.6. If a server closes a connection with unread bytes, TCP resets the
    connection, and the client may lose the answer. Therefore this layer sends the answer immediately,
    with `Connection: close`, but delays its end. In the meantime it reads and discards the rest of
    the body. The answer and the connection end when the body has ended, when the client has left, or
    at a limit. The answer has no Content-Length, because a server may close as soon as it has sent
    that many bytes.

    Args:
        app: The application inside this layer.
        deadline_s: Maximum seconds from the start of a request to the end of its body.
        max_bytes: Maximum number of bytes of one body that are discarded. For a longer body, the
            connection is reset.
        max_lingering: Maximum number of clients whose bodies are discarded at the same time. The
            connection of a further client is closed immediately.
    """

    def __init__(
        self, app: ASGIApp, *, deadline_s: float, max_bytes: int, max_lingering: int
    ) -> None:
        super().__init__(app)
        self.deadline_s, self.max_bytes, self.max_lingering = deadline_s, max_bytes, max_lingering
        self.lingering = 0

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. If it is answered early, read and discard the rest of its body."""
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
    """Answer HEAD on every path that answers GET, with the same status and headers but no body.

    See RFC 9110, sections 9.1 and 9.3.2.
    """

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a HEAD request on as GET, and discard the body of the answer."""
        if scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, send_without_body)


def has_body(scope: Scope) -> bool:
    """Return whether the headers of a request announce a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )
