"""A web server whose pages may have moved."""

from http.server import BaseHTTPRequestHandler

from tests.make.servers.http_server import HttpServer


class Pages(HttpServer):
    """Answers every path with its name, but for `moved` ones; `asked` are the paths that were asked
    for, `users` as whom.
    """

    def __init__(self, moved=None):
        self.moved = moved or {}
        self.asked: list[str] = []
        self.users: list[str | None] = []
        super().__init__(PagesHandler)


class PagesHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        owner = self.server.owner
        owner.asked.append(self.path)
        owner.users.append(self.headers.get("Authorization"))
        place, body = owner.moved.get(self.path), self.path.encode()
        self.send_response(200 if place is None else 302)
        if place:
            self.send_header("Location", place)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_) -> None:
        pass
