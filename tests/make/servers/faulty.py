"""A tiny HTTP server that speaks just enough S3 to serve GETs, and answers the first requests for a
key with faults.
"""

import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler

from ray_app.storage import Fetcher, Guard, Retrier, RetryPolicy
from tests.make.servers.http_server import HttpServer

LOOPBACK = Guard(allow_private=True)  # who may ask a server of the tests
ETAG = "0123456789abcdef0123456789abcdef"


def error_body(code: str, message: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


FAULTS = {
    "slow_down": (503, error_body("SlowDown", "Please reduce your request rate.")),
    "denied_but_busy": (403, error_body("AccessDenied", "Rate exceeded")),
    "bare_403": (403, b""),
    "denied": (403, error_body("AccessDenied", "Access Denied")),
    "internal": (500, error_body("InternalError", "We encountered an internal error.")),
    "no_bucket": (404, error_body("NoSuchBucket", "The specified bucket does not exist")),
}


def part_of(data: bytes, asked: str) -> tuple[int, bytes, str]:
    """HTTP status, body and Content-Range of the answer to a GET with this Range header ("" =
    none).
    """
    match = re.match(r"bytes=(\d+)-(\d+)", asked)
    if match is None:
        return 200, data, ""
    start, end = int(match[1]), min(int(match[2]) + 1, len(data))
    if start >= len(data):
        return 416, error_body("InvalidRange", "The requested range is not satisfiable"), ""
    return 206, data[start:end], f"bytes {start}-{end - 1}/{len(data)}"


class FaultyServer(HttpServer):
    """`server.faults[path]` is what the next requests for that path meet: names of FAULTS, `short`,
    `drip` (never ends) or `other_etag`. `server.redirects[path]` is the URL that a path leads to,
    and `server.headers` are further headers of every object.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.redirects: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.requests: list[str] = []
        self.ranges = True  # False: every answer is the whole object
        self.released = threading.Event()
        self._lock = threading.Lock()
        super().__init__(Handler)

    def __exit__(self, *_) -> None:
        self.released.set()
        super().__exit__()

    def _next_fault(self, path: str) -> str | None:
        with self._lock:
            self.requests.append(path)
            return self.faults[path].pop(0) if self.faults[path] else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def _outer(self) -> FaultyServer:
        return self.server.owner

    def do_GET(self) -> None:
        fault = self._outer._next_fault(self.path)
        if fault in FAULTS:
            self._send(*FAULTS[fault])
        elif self.path in self._outer.redirects:
            self.send_response(302)
            self.send_header("Location", self._outer.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path not in self._outer.objects:
            self._send(404, error_body("NoSuchKey", "The specified key does not exist."))
        else:
            self._send_object(self._outer.objects[self.path], fault)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send_object(self, data: bytes, fault: str | None) -> None:
        asked = self.headers.get("Range", "") if self._outer.ranges else ""
        code, part, content_range = part_of(data, asked)
        if fault in ("short", "drip") and self.command != "HEAD":
            self._send(code, part[:3], announced=len(part), content_range=content_range)
            self._outer.released.wait(30 if fault == "drip" else 0)
            self.close_connection = True
        else:
            etag = "f" * 32 if fault == "other_etag" else ETAG
            self._send(
                code, part, etag=etag, content_range=content_range, headers=self._outer.headers
            )

    def _send(
        self, status, body, etag=ETAG, announced=None, content_range="", headers=None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_) -> None:
        pass


def patient(pauses: list[float] | None = None, **policy) -> Fetcher:
    """A fetcher whose clock moves only when it sleeps; `pauses` gets how long."""
    slept = [] if pauses is None else pauses
    clock = {"sleep": slept.append, "clock": lambda: sum(slept), "chance": lambda: 1.0}
    return Fetcher(guard=LOOPBACK, retrier=Retrier(RetryPolicy(**policy), **clock))
