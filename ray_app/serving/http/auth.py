"""Check which clients may use the endpoint, the scoring server of `touchstone serve`.

`BearerTokens` checks tokens. Without tokens, `AccessGuard` accepts only clients on this machine, unless
`access.anonymous` is set. It refuses requests from web pages of other sites, unless
`access.cors_origins` lists their origin.
"""

import hashlib
import hmac
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ray_app.errors import ConfigError
from ray_app.serving.config import Access
from ray_app.serving.http.errors import refuse
from ray_app.serving.refusal import Refusal
from ray_app.storage.urls import is_loopback

_log = logging.getLogger(__name__)

HAPROXY_ENABLED = "RAY_SERVE_ENABLE_HA_PROXY"
"""Environment variable with which Ray Serve uses HAProxy as its proxy."""

_MIN_TOKEN_CHARACTERS = 16
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


class Paths:
    """A set of paths of an endpoint. `/healthz` is one path, `/page/*` all paths below `/page/`."""

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = tuple(patterns)
        self.exact = {pattern for pattern in patterns if not pattern.endswith("*")}
        self.below = tuple(pattern[:-1] for pattern in patterns if pattern.endswith("*"))

    def has(self, path: str) -> bool:
        """Return whether a path is in the set. A path with `..`, such as `/page/../v1`, never is."""
        return path in self.exact or (path.startswith(self.below) and ".." not in path)


class BearerTokens:
    """The bearer tokens that an endpoint accepts.

    Tokens come from digests in the config and from an environment variable, which are read once.
    Further tokens come from a file, which is read again when it changes. Each line of the file is a
    token, except empty lines and lines that begin with #. If the file cannot be read or has no
    token, this is logged, and only tokens from the other sources are accepted. If the file gets a
    token that is too short, this token is ignored and logged. Raises ConfigError if another token
    is shorter than 16 characters.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        self._file = Path(access.tokens_file) if access.tokens_file else None
        self._fixed = [
            bytes.fromhex(digest) for digest in access.tokens_sha256
        ] + _read_environment(access)
        self._from_file: list[bytes] = []
        self._file_state: object = None
        self._refresh(strict=True)

    @property
    def configured(self) -> bool:
        """Whether clients need a token. This is also true if a tokens file is set but has no token."""
        return bool(self._fixed) or self._file is not None

    def check(self, authorization: str | None) -> str | None:
        """Check an Authorization header, and return the name of its token, or None if it is invalid.

        The name consists of the first 12 hex digits of the token's SHA-256.
        """
        scheme, _, token = (authorization or "").partition(" ")
        self._refresh()
        # Headers are read as Latin-1. Encoding them again returns the original bytes.
        client_digest = hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()
        is_valid = False
        for digest in (*self._fixed, *self._from_file):
            is_valid = hmac.compare_digest(digest, client_digest) or is_valid
        return client_digest.hex()[:12] if is_valid and scheme.lower() == "bearer" else None

    def _refresh(self, *, strict: bool = False) -> None:
        if self._file is None:
            return
        try:
            file_stat = self._file.stat()
            state: object = (file_stat.st_mtime_ns, file_stat.st_size, file_stat.st_ino)
            if state == self._file_state:
                return
            lines = self._file.read_text(encoding="utf-8-sig").splitlines()
            self._from_file = _compute_digests(
                [line for line in lines if not line.lstrip().startswith("#")],
                "the tokens file",
                strict=strict,
            )
            problem = None if self._from_file else "has no token"
        except (OSError, ValueError) as error:
            state, problem = type(error).__name__, f"cannot be read ({type(error).__name__})"
            self._from_file = []
        if problem and state != self._file_state:
            _log.error(
                "the tokens file %s %s and accepts no client. Hint: write one token per line into the file",
                self._file,
                problem,
            )
        self._file_state = state


def with_token_digests(access: Access) -> Access:
    """Return access settings in which digests replace the tokens of the environment variable.

    Pass these settings to processes that do not inherit the variable, such as replicas on Ray. A
    digest is the SHA-256 of a token, and checks the token without containing it. Raises ConfigError
    if a token is shorter than 16 characters.
    """
    digests = (digest.hex() for digest in _read_environment(access))
    return access.model_copy(update={"tokens_sha256": (*access.tokens_sha256, *digests)})


def _read_environment(access: Access) -> list[bytes]:
    tokens = os.environ.get(access.tokens_variable, "").replace(",", "\n").splitlines()
    return _compute_digests(
        tokens, f"the environment variable {access.tokens_variable}", strict=True
    )


def _compute_digests(lines: Iterable[str], source: str, *, strict: bool) -> list[bytes]:
    tokens = [token.strip() for token in lines if token.strip()]
    short = sum(len(token) < _MIN_TOKEN_CHARACTERS for token in tokens)
    if short and strict:
        hint = "generate a token: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        raise ConfigError(
            f"{source} has a token of fewer than {_MIN_TOKEN_CHARACTERS} characters", hint=hint
        )
    if short:
        _log.error(
            "%s has %d token(s) of fewer than %d characters, which are ignored",
            source,
            short,
            _MIN_TOKEN_CHARACTERS,
        )
    return [
        hashlib.sha256(token.encode()).digest()
        for token in tokens
        if len(token) >= _MIN_TOKEN_CHARACTERS
    ]


class AccessGuard:
    """Accept requests with a valid token, or from this machine if the endpoint has no tokens.

    If the endpoint has no tokens and `access.anonymous` is set, requests from all machines are
    accepted. A request without a required token is answered with 401. A request from a web page of
    another site is answered with 403, because the browser's user may not know of the request.
    Origins in `access.cors_origins` are exempt from this rule. For an accepted request,
    `scope["state"]["owner"]` is the name of the token, or `anonymous`. WebSockets are closed.
    `open_paths` are not checked.
    """

    def __init__(self, app: ASGIApp, tokens: BearerTokens, open_paths: Paths) -> None:
        self.app, self.tokens, self.open_paths = app, tokens, open_paths
        self.access = tokens.access
        # All requests come from the address of HAProxy, so a loopback address proves nothing about
        # the client.
        self.behind_haproxy = os.environ.get(HAPROXY_ENABLED) == "1"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the guard as an ASGI application."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http" and not self.open_paths.has(scope["path"]):
            try:
                scope.setdefault("state", {})["owner"] = self._identify_owner(scope)
            except Refusal as refusal:
                await refuse(refusal, scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _identify_owner(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        if not self._is_own_site(headers):
            raise Refusal("forbidden", "web pages of other sites may not use this endpoint")
        if self.tokens.configured:
            owner = self.tokens.check(headers.get("authorization"))
            if owner is None:
                raise Refusal("unauthorized", headers={"WWW-Authenticate": "Bearer"})
            return owner
        if self.access.anonymous or (
            not self.behind_haproxy and _is_from_this_machine(scope, headers)
        ):
            return "anonymous"
        hint = f"set {self.access.tokens_variable} or access.tokens_file, or allow all clients with access.anonymous"
        raise Refusal(
            "unauthorized",
            f"the endpoint has no tokens, so it answers only clients on its own machine: {hint}",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _is_own_site(self, headers: Headers) -> bool:
        """Return whether no browser reports that a page of another site sent the request.

        Pages cannot forge these headers.
        """
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site in ("same-origin", "none") or (
            origin is not None and {origin, "*"} & set(self.access.cors_origins)
        ):
            return True
        if site == "cross-site":
            return False
        return origin is None or _normalise_host(origin.partition("://")[2]) == _normalise_host(
            headers.get("host", "")
        )


def _normalise_host(host: str) -> str:
    return host.lower().removesuffix(":80").removesuffix(":443")


def _is_from_this_machine(scope: Scope, headers: Headers) -> bool:
    """Return whether both ends are loopback addresses and no header names a proxy.

    Other host names that resolve to this machine (DNS rebinding) are refused.
    """
    address = (scope.get("client") or ("",))[0]
    host = headers.get("host", "").lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return (
        is_loopback(address)
        and (name == "localhost" or is_loopback(name))
        and not any(key in headers for key in _FORWARDED)
    )
