"""A tiny HTTP server that speaks just enough S3 to serve GETs, and answers the first requests for a key with faults."""

import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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


class FaultyServer:
    """`server.faults[path]` is what the next requests for that path meet: names of FAULTS, `short`, `drip` (never ends) or `other_etag`."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.requests: list[str] = []
        self.most_at_once = 0
        self.released = threading.Event()
        self._inside = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> "FaultyServer":
        return self

    def __exit__(self, *_) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def _next_fault(self, path: str) -> str | None:
        with self._lock:
            self.requests.append(path)
            return self.faults[path].pop(0) if self.faults[path] else None

    def _handler(outer):  # noqa: N805 - the handler below is the one with `self`
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with outer._lock:
                    outer._inside += 1
                    outer.most_at_once = max(outer.most_at_once, outer._inside)
                try:
                    self._answer_get()
                finally:
                    with outer._lock:
                        outer._inside -= 1

            def _answer_get(self) -> None:
                fault = outer._next_fault(self.path)
                if fault in FAULTS:
                    self._send(*FAULTS[fault])
                elif self.path not in outer.objects:
                    self._send(404, error_body("NoSuchKey", "The specified key does not exist."))
                elif fault in ("short", "drip"):
                    self._send(200, outer.objects[self.path][:3], announced=len(outer.objects[self.path]))
                    if fault == "drip":
                        outer.released.wait(30)
                    self.close_connection = True
                else:
                    self._send(200, outer.objects[self.path], etag="f" * 32 if fault == "other_etag" else ETAG)

            def _send(self, status: int, body: bytes, etag: str = ETAG, announced: int | None = None) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if announced is None else announced))
                self.send_header("ETag", f'"{etag}"')
                self.end_headers()
                self.wfile.write(body)
                self.wfile.flush()

            def log_message(self, *_) -> None:
                pass

        return Handler
