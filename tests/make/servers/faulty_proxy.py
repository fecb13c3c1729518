"""A proxy before a real S3 server that spoils a share of the requests: throttled, failed, reset,
cut short or slow, by a seeded draw.

What it did is counted in `met`; the draw depends on the request and on how often it came, so that a
retry may succeed.
"""

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from tests.make.servers.http_server import HttpServer

SLOW_S = 0.7
FAULTS = ("throttled", "failed", "reset", "cut", "slow")
ANSWERS = {
    "throttled": (
        503,
        b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
    ),
    "failed": (
        500,
        b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>",
    ),
}


class FaultyProxy(HttpServer):
    def __init__(
        self,
        upstream: str,
        share: float,
        seed: int = 0,
        *,
        handler: type[BaseHTTPRequestHandler] | None = None,
    ) -> None:
        self.met: Counter[str] = Counter()
        self.upstream = urlsplit(upstream).netloc
        self._share, self._seed = share, seed
        self._times: Counter[str] = Counter()
        self._lock = threading.Lock()
        super().__init__(handler or Handler)

    def draw(self, request: str) -> str | None:
        with self._lock:
            self._times[request] += 1
            chance = random.Random(f"{self._seed} {request} {self._times[request]}")
            fault = chance.choice(FAULTS) if chance.random() < self._share else None
            self.met[fault or "passed"] += 1
            return fault


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        # Whatever the method: the base class would look for a do_METHOD.
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.owner.draw(f"{self.command} {self.path}")
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif fault in ANSWERS:
            self._answer(*ANSWERS[fault], {})
        else:
            if fault == "slow":
                time.sleep(SLOW_S)  # the fault itself
            self._answer(*self._asked(body), cut=fault == "cut")
        with contextlib.suppress(OSError, ValueError):
            self.wfile.flush()

    def _asked(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        upstream = http.client.HTTPConnection(self.server.owner.upstream, timeout=60)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        return (
            answer.status,
            data,
            {
                name.lower(): value
                for name, value in answer.getheaders()
                if name.lower() != "transfer-encoding"
            },
        )

    def _answer(
        self, status: int, data: bytes, headers: dict[str, str], *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in (
            {"content-length": str(len(data))} | headers | {"connection": "keep-alive"}
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection |= cut

    def log_message(self, *_) -> None:
        pass
