"""A small HTTP server that answers what HfFileSystem asks the Hugging Face hub: repositories,
trees, paths and files in ranges.
"""

import hashlib
import json
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from tests.make.servers.http_server import HttpServer


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer(HttpServer):
    """`server.revisions["owner/name"]["main"]` is a commit's id; `server.commits[id]` its files:
    {path: bytes}.
    """

    def __init__(self) -> None:
        self.revisions: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        super().__init__(Handler)

    def commit(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Put a state of a repository's branch there; returns the commit's id."""
        commit = hashlib.sha1(repr((repo, revision, sorted(files.items()))).encode()).hexdigest()
        self.commits[commit] = files
        self.revisions.setdefault(repo, {}).update({revision: commit, commit: commit})
        return commit

    def answer(self, path: str, query: dict, asked_range: str) -> tuple[int, dict[str, str], bytes]:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        is_api = parts[0] == "api"
        kind, repo, rest = (
            parts[is_api],
            "/".join(parts[is_api + 1 : is_api + 3]),
            parts[is_api + 3 :],
        )
        if kind != "datasets" or repo not in self.revisions:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        verb, revision, below = (
            [*rest, "revision"][0],
            (rest[1:] or ["main"])[0],
            "/".join(rest[2:]),
        )
        commit = self.revisions[repo].get(revision)
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = self.commits[commit]
        if verb == "revision":
            return (
                200,
                {},
                json.dumps(
                    {"id": repo, "sha": commit, "siblings": [], "tags": [], "private": False}
                ).encode(),
            )
        if verb == "tree":
            return self._tree(files, below, query.get("recursive") == ["true"])
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if below not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        return self._file(files[below], commit, asked_range)

    def _tree(
        self, files: dict[str, bytes], folder: str, recursive: bool
    ) -> tuple[int, dict[str, str], bytes]:
        prefix = f"{folder}/" if folder else ""
        inside = {name: data for name, data in files.items() if name.startswith(prefix)}
        if not inside:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        entries = [
            {"type": "file", "oid": blob_id(data), "size": len(data), "path": name}
            for name, data in inside.items()
            if recursive or "/" not in name[len(prefix) :]
        ]
        folders = {
            prefix + name[len(prefix) :].partition("/")[0]
            for name in inside
            if "/" in name[len(prefix) :]
        }
        return (
            200,
            {},
            json.dumps(
                entries
                + [
                    {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
                    for name in folders
                ]
            ).encode(),
        )

    def _file(self, data: bytes, commit: str, asked: str) -> tuple[int, dict[str, str], bytes]:
        told = {"ETag": f'"{blob_id(data)}"', "X-Repo-Commit": commit}
        if not asked:
            return 200, told, data
        start, _, end = asked.removeprefix("bytes=").partition("-")
        part = data[int(start) : int(end) + 1 if end else None]
        return (
            206,
            {**told, "Content-Range": f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}"},
            part,
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(True)

    def do_HEAD(self) -> None:
        self._send(False)

    def _send(self, with_body: bool) -> None:
        url, hub = urlsplit(self.path), self.server.owner
        hub.requests.append(
            f"{self.command} {unquote(url.path)} {self.headers.get('Range', '')}".strip()
        )
        status, headers, body = hub.answer(
            url.path, parse_qs(url.query), self.headers.get("Range", "")
        )
        self.send_response(status)
        for name, value in {
            **headers,
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass
