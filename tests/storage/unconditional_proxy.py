"""A proxy that makes of a real S3 server one without conditional writes: as old or small ones are, which ignore or refuse `If-None-Match`."""

import http.client
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from tests.http_server import HttpServer
from tests.storage.faulty_server import error_body

REFUSALS = {
    501: error_body("NotImplemented", "A header you provided implies functionality that is not implemented."),
    400: error_body("InvalidArgument", "Unsupported header: If-None-Match"),
}


class UnconditionalProxy(HttpServer):
    """`refusal`: the HTTP status that a conditional write is answered with; None = 200, as if nothing had been said."""

    def __init__(self, upstream: str, refusal: int | None = None) -> None:
        self.upstream, self.refusal = urlsplit(upstream).netloc, refusal
        self.requests: list[tuple[str, str]] = []
        super().__init__(Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answered(self) -> None:
        proxy = self.server.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy.requests.append((self.command, self.path))
        has_condition = self.headers.get("If-None-Match") is not None
        del self.headers["If-None-Match"]
        if has_condition and proxy.refusal is not None:
            self._answer(proxy.refusal, REFUSALS[proxy.refusal], {})
            return
        upstream = http.client.HTTPConnection(proxy.upstream, timeout=60)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        self._answer(answer.status, data, {name.lower(): value for name, value in answer.getheaders()})

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answered

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        headers.pop("transfer-encoding", None)
        for name, value in ({"content-length": str(len(data))} | headers | {"connection": "keep-alive"}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass
