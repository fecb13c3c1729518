"""As much of Kubernetes' API as kubectl needs to create, get and delete RayJobs: `with KubeApi() as
api`, then `api.url`.

It keeps what it is sent in `objects`, by address, and in `verbs` what was asked of it, as a Role
names that.
"""

import json
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.make.servers.http_server import HttpServer

VERBS = {"GET": "get", "DELETE": "delete", "POST": "create", "PUT": "update", "PATCH": "patch"}
_KIND = {"group": "ray.io", "version": "v1", "kind": "RayJob"}
_RESOURCE = {
    "name": "rayjobs",
    "singularName": "rayjob",
    "namespaced": True,
    "kind": "RayJob",
    "verbs": sorted(VERBS.values()),
}
_VERSION = {"groupVersion": "ray.io/v1", "version": "v1"}
_STRICT = {
    "parameters": [{"name": "fieldValidation", "in": "query"}],
    "x-kubernetes-group-version-kind": _KIND,
}
# What is there, and that the server itself refuses unknown keys.
DISCOVERY: dict[str, Any] = {
    "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis": {
        "kind": "APIGroupList",
        "groups": [{"name": "ray.io", "versions": [_VERSION], "preferredVersion": _VERSION}],
    },
    "/apis/ray.io/v1": {
        "kind": "APIResourceList",
        "groupVersion": "ray.io/v1",
        "resources": [_RESOURCE],
    },
    "/openapi/v3": {
        "paths": {"apis/ray.io/v1": {"serverRelativeURL": "/openapi/v3/apis/ray.io/v1"}}
    },
    "/openapi/v3/apis/ray.io/v1": {
        "openapi": "3.0.0",
        "info": {"title": "kubernetes", "version": "1"},
        "paths": {"/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}": {"patch": _STRICT}},
    },
}


class KubeApi(HttpServer):
    """A server on a free port of loopback, until the end of the block."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.verbs: set[str] = set()
        super().__init__(_Handler)

    def answer(self, method: str, path: str, sent: Any) -> tuple[int, Any]:
        if path in DISCOVERY:
            return 200, DISCOVERY[path]
        self.verbs.add(VERBS[method])
        if method == "POST":
            place = f"{path}/{sent['metadata']['name']}"
            if place in self.objects:
                return 409, {"kind": "Status", "reason": "AlreadyExists", "code": 409}
            sent["metadata"] |= {"uid": str(len(self.verbs)), "namespace": "default"}
            self.objects[place] = sent
            return 201, sent
        if path not in self.objects:
            return 404, {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": "NotFound",
                "code": 404,
            }
        return 200, self.objects.pop(path) if method == "DELETE" else self.objects[path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        code, document = self.server.owner.answer(self.command, self.path.partition("?")[0], sent)
        content = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815 - the library's names

    def log_message(self, *said: object) -> None:
        pass
