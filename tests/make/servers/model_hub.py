"""The Hugging Face hub for models, as its client knows it: `resolve` answers for small files
itself, and for large ones leads to another host, whose answers can be cut off.
"""

import hashlib
from http.server import BaseHTTPRequestHandler

from tests.make.servers.http_server import HttpServer
from tests.make.servers.hub import HubServer

LARGE = 4000  # bytes; from there on a file is in Git LFS


class ModelHub(HubServer):
    """`server.cuts` are the numbers of bytes after which the next answers of the other host end;
    `server.damaged` what it serves instead.

    Revisions, commits and `gated` as in a hub of data sets; `server.private` are repositories that
    only show themselves to who is known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.private: set[str] = set()
        self.elsewhere = _Elsewhere()
        self.cuts, self.damaged = self.elsewhere.cuts, self.elsewhere.damaged

    def __exit__(self, *_) -> None:
        self.elsewhere.__exit__()
        super().__exit__()

    def answer(self, path: str, query: dict, asked_range: str) -> tuple[int, dict[str, str], bytes]:
        parts = path.removeprefix("/api/models").strip("/").split("/")
        if len(parts) < 4:  # what the library asks of the hub for itself
            return 404, {}, b"{}"
        owner, name, verb, revision, *below = parts
        repo, file = f"{owner}/{name}", "/".join(below)
        if repo in self.private or repo not in self.revisions:
            return (
                401,
                {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"},
                b"{}",
            )
        if repo in self.gated:
            return (
                403,
                {
                    "X-Error-Code": "GatedRepo",
                    "X-Error-Message": "Access to this repository is restricted",
                },
                b"{}",
            )
        commit = self.revisions[repo].get(revision)
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        data = self.commits[commit].get(file)
        if verb != "resolve" or data is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"{}"
        if len(data) < LARGE:
            return self._file(data, commit, asked_range)
        digest = hashlib.sha256(data).hexdigest()
        self.elsewhere.files[f"/{digest}"] = data
        told = {
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(data)),
            "X-Repo-Commit": commit,
        }
        return 302, {**told, "Location": f"{self.elsewhere.url}/{digest}"}, b""


class _Elsewhere(HttpServer):
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.damaged: dict[int, bytes] = {}  # by size, for a file of the same
        self.ranges: list[str] = []
        super().__init__(_Storage)


class _Storage(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        storage, asked = self.server.owner, self.headers.get("Range", "")
        data = storage.files[self.path]
        data = storage.damaged.get(len(data), data)
        start = int(asked.removeprefix("bytes=").partition("-")[0] or 0)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            storage.ranges.append(asked)
            cut = storage.cuts.pop(0) if storage.cuts else len(data)
            self.wfile.write(data[start : start + cut])
            self.close_connection = True

    def log_message(self, *_) -> None:
        pass
