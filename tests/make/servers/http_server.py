"""A plain HTTP server on a real socket, in a thread of the test's process: what answers is up to
the handler.
"""

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class HttpServer:
    """Serves at `url` until the end of its `with`; a handler finds it as `self.server.owner`."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], *, host: str = "127.0.0.1") -> None:
        self._http = ThreadingHTTPServer((host, 0), handler)
        self._http.owner = self
        self._http.daemon_threads = True
        self.url = f"http://{host}:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def serve_tls(self, pem: Path) -> None:
        """From the next connection on; `pem` holds key and certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._http.shutdown()
        self._http.server_close()
