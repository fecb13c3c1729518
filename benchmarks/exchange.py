"""One keep-alive HTTP/1.1 connection on raw asyncio streams: a request built beforehand goes out,
status, head and body come back.

As lean as it can be: on two cores an HTTP library would cost more than the servers under test.
Knows HTTP. Knows nothing about answers.
"""

import asyncio
import ssl
from typing import Literal
from urllib.parse import urlsplit

BOUNDARY = "touchstone-load-boundary"


class ExchangeError(Exception):
    """An attempt that came to nothing: `kind` in a word or two; `connection` where the connection
    failed, not the answer.
    """

    def __init__(self, kind: str, *, connection: bool = False) -> None:
        super().__init__(kind)
        self.kind, self.connection = kind, connection


def post(
    url: str, name: str, body: bytes, form: Literal["multipart", "raw"], token: str | None = None
) -> bytes:
    """A whole POST request that sends one file, as the field `file` of a form or as the body
    itself.
    """
    parts, kind = urlsplit(url), "application/octet-stream"
    if form == "multipart":
        part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: image/jpeg\r\n\r\n'
        body, kind = (
            part.encode() + body + f"\r\n--{BOUNDARY}--\r\n".encode(),
            f"multipart/form-data; boundary={BOUNDARY}",
        )
    lines = [
        f"POST {parts.path or '/'}{'?' + parts.query if parts.query else ''} HTTP/1.1",
        f"Host: {parts.netloc.rpartition('@')[2]}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Accept: application/json",
        *([f"Authorization: Bearer {token}"] if token else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Connection:
    """One keep-alive connection; `ask` opens it where it must."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self._secure = ssl.create_default_context() if parts.scheme == "https" else None
        self._place = (parts.hostname or "", parts.port or (443 if self._secure else 80))
        self._timeout_s = timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Status, head and body. Raises ExchangeError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._ask(request)
        except TimeoutError:
            self.close()
            raise ExchangeError("no answer in time") from None
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            self.close()
            raise ExchangeError(type(error).__name__, connection=True) from None

    async def _ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                *self._place, ssl=self._secure, limit=2**20
            )
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = header(head, b"content-length")
        if length is not None:
            body = await reader.readexactly(int(length))
        elif header(head, b"transfer-encoding") == b"chunked":
            body = await _chunks(reader)
        else:
            body = await reader.read()
            self.close()
        if header(head, b"connection") == b"close":
            self.close()
        return int(head.split(b" ", 2)[1]), head, body

    def close(self) -> None:
        """The next request opens it anew."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":  # trailers
        pass
    return b"".join(parts)


def header(head: bytes, name: bytes) -> bytes | None:
    """A header's value, lower case; `head` is lower case already."""
    at = head.find(b"\r\n" + name + b":")
    return None if at < 0 else head[at + len(name) + 3 : head.index(b"\r\n", at + 2)].strip()
