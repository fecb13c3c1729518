"""Requests that no ordinary client sends, and the status of each answer."""

from tests.serving.http.live import request

SCORE = "/v1/score"
CHUNKED = "Transfer-Encoding: chunked"
WEBSOCKET = (
    *("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
HOSTILE = {
    "no http": (b"nonsense\r\n\r\n", 400),
    "chunks and length": (request("POST", SCORE, CHUNKED, "Content-Length: 3", body=b"0\r\n\r\n"), 422),
    "chunks hidden": (request("POST", SCORE, "Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 400),
    "a large trailer": (request("POST", SCORE, CHUNKED, body=b"0\r\nX: " + b"x" * 400_000), 400),
    "a malformed chunk": (request("POST", SCORE, CHUNKED, body=b"zz\r\nnonsense"), 400),
    "a steering trailer": (request("POST", SCORE, CHUNKED, body=b"0\r\nX-Request-Timeout-Seconds: 0\r\n\r\n"), 422),
    "a space before the colon": (request("POST", SCORE, "Content-Length : 3", body=b"abc"), 400),
    "climbing": (request("GET", "/page/..%2f..%2fetc/passwd"), 404),
    "no token of another scheme": (request("GET", "/v1/ensembles", "Authorization: Basic \udcff\udcff"), 200),
    "a websocket": (request("GET", "/healthz", *WEBSOCKET), 200),
    "many headers": (request("GET", "/healthz", *["X: 1"] * 5000), 431),
    "a long address": (request("GET", "/" + "x" * 100_000), 414),
}  # fmt: skip
# These refusals have no body of the endpoint's shape.
REFUSED_BY_GRANIAN = {
    *("no http", "chunks hidden", "a space before the colon", "many headers", "a long address"),
}
