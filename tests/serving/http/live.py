"""A real uvicorn on a free port, in a thread, and clients that speak to it byte by byte."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn

LAST_CHUNK = b"0\r\n\r\n"


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)


@contextmanager
def serving(app, **options) -> Iterator[int]:
    """Yields the port; `options` are uvicorn's. Afterwards the server ends by itself, in a tenth of
    a second that nobody waits for, but for one whose `lifespan` is "on".
    """
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        **{
            "lifespan": "off",
            "log_config": None,
            "log_level": "critical",
            "timeout_graceful_shutdown": 1,
        }
        | options,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started, 30.0)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        if config.lifespan == "on":
            thread.join(30)


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    """The bytes of a request; the headers as `Name: value`, Host included unless given. A surrogate
    (`\\udcff`) is a byte by itself.
    """
    lines = [f"{method} {path} HTTP/1.1", *headers]
    if not any(line.lower().startswith("host:") for line in headers):
        lines.append("Host: 127.0.0.1")
    return "\r\n".join([*lines, "", ""]).encode(errors="surrogateescape") + body


class Reply:
    """Status, headers, and body (its first chunk if it has chunks) of one answer read from a socket,
    and whether the server then closed the connection.
    """

    def __init__(self, connection: socket.socket) -> None:
        # Unbuffered: what follows this answer stays for the next one.
        reader = connection.makefile("rb", buffering=0)
        self.status = int(reader.readline().split()[1])
        self.headers = {}
        while (line := reader.readline().strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.lower()] = value.strip()
        self.body = b""
        is_chunked = self.headers.get("transfer-encoding") == "chunked"
        size = int(reader.readline(), 16) if is_chunked else self.headers.get("content-length", 0)
        while missing := int(size) - len(self.body):
            self.body += reader.read(missing)
        if is_chunked:
            reader.readline()
        self.connection = connection

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def closed(self) -> bool:
        try:
            while rest := self.connection.recv(100):
                assert rest in LAST_CHUNK
        except ConnectionResetError:
            pass
        return True


@contextmanager
def connected(port: int, timeout_s: float = 10.0) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        yield connection


def ask(port: int, data: bytes, timeout_s: float = 10.0) -> Reply:
    """Sends one request, reads one answer."""
    with connected(port, timeout_s) as connection:
        connection.sendall(data)
        return Reply(connection)


def multipart(*parts: tuple[str, bytes], boundary: str = "frontier") -> tuple[str, bytes]:
    """Content type and body; each part is (headers without the final empty line, content)."""
    body = b"".join(
        b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary.encode(), headers.encode(), content)
        for headers, content in parts
    )
    return f"multipart/form-data; boundary={boundary}", body + b"--%b--\r\n" % boundary.encode()


def file_part(
    content: bytes, filename: str | None = "a.png", name: str = "file"
) -> tuple[str, bytes]:
    suffix = "" if filename is None else f'; filename="{filename}"'
    return (
        f'Content-Disposition: form-data; name="{name}"{suffix}\r\nContent-Type: image/png',
        content,
    )


def chunked(path: str, *headers: str) -> bytes:
    """The head of a request whose body comes in chunks."""
    return request("POST", path, "Transfer-Encoding: chunked", *headers)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def pour(connection: socket.socket, piece: bytes, total: int) -> int:
    """Send chunks until the server stops reading. Returns the bytes that it took."""
    sent = 0
    with suppress(OSError):
        while sent < total:
            connection.sendall(chunk(piece))
            sent += len(piece)
    return sent


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
