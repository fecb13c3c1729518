"""A server that takes models as the Hugging Face hub does: repositories, what goes how (preupload),
commits of many regular files.
"""

import base64
import json
from http.server import BaseHTTPRequestHandler

from tests.make.servers.http_server import HttpServer


class ModelHub(HttpServer):
    """`server.repositories["owner/name"]` is {path: bytes}; tokens other than `token` may not
    write.
    """

    def __init__(self) -> None:
        self.token = "hf_right"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[dict] = []
        super().__init__(Handler)

    def answer(self, path: str, body: bytes) -> tuple[int, dict]:
        parts = path.partition("?")[0].strip("/").split("/")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        repo = "/".join(parts[2:4])
        if parts[:2] != ["api", "models"] or repo not in self.repositories:
            return 404, {"error": f"nothing at {path}"}
        if parts[4] == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        return self._commit(repo, [json.loads(line) for line in body.splitlines()])

    def _create(self, asked: dict) -> tuple[int, dict]:
        repo = f"{asked['organization']}/{asked['name']}"
        told = {"url": f"{self.url}/{repo}", "name": repo, "id": "1"}
        if repo in self.repositories:
            return 409, {"error": "You already created this model repo", **told}
        self.repositories[repo] = {}
        self.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
        return 200, told

    def _commit(self, repo: str, lines: list[dict]) -> tuple[int, dict]:
        for line in lines:
            if line["key"] == "file":
                assert line["value"]["encoding"] == "base64"
                self.repositories[repo][line["value"]["path"]] = base64.b64decode(
                    line["value"]["content"]
                )
        self.commits.append(
            {
                "repo": repo,
                "files": [line["value"]["path"] for line in lines if line["key"] != "header"],
            }
        )
        oid = f"{len(self.commits):040x}"
        return 200, {
            "success": True,
            "commitOid": oid,
            "commitUrl": f"{self.url}/{repo}/commit/{oid}",
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        hub, body = self.server.owner, self._body()
        if self.headers.get("Authorization") == f"Bearer {hub.token}":
            status, told = hub.answer(self.path, body)
        else:
            status, told = 401, {"error": "Invalid username or password."}
        data = json.dumps(told).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, *_) -> None:
        pass
