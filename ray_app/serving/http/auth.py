"""Who may use the endpoint: bearer tokens (`BearerTokens`); without them this machine only, and no
page of another site (`AccessGuard`).
"""

import hashlib
import hmac
import ipaddress
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

_log = logging.getLogger(__name__)

HAPROXY_ENABLED = "RAY_SERVE_ENABLE_HA_PROXY"
"""Environment variable with which Ray Serve uses HAProxy as its proxy."""

_SHORTEST = 16
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


class Paths:
    """Some addresses of an endpoint: `/healthz` is itself, `/page/*` is all below."""

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = tuple(patterns)
        self.exact = {pattern for pattern in patterns if not pattern.endswith("*")}
        self.below = tuple(pattern[:-1] for pattern in patterns if pattern.endswith("*"))

    def has(self, path: str) -> bool:
        """Whether it is one of them; a path that climbs (`/page/../v1`) is none."""
        return path in self.exact or (path.startswith(self.below) and ".." not in path)


class BearerTokens:
    """The bearer tokens of an endpoint, from digests and an environment variable (once) and a file
    (read anew when it changes).

    A file that cannot be read, or has no token, lets nobody in. Its lines are tokens; empty ones
    and those that begin with # are not.

    Raises ConfigError at the start if a token is shorter than 16 characters; one that appears later
    is left out and logged.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        self._file = Path(access.tokens_file) if access.tokens_file else None
        self._fixed = [
            bytes.fromhex(digest) for digest in access.tokens_sha256
        ] + _from_environment(access)
        self._from_file: list[bytes] = []
        self._seen: object = None
        self._refresh(strict=True)

    @property
    def configured(self) -> bool:
        """Whether a token is needed at all: also where the file that should hold some has none."""
        return bool(self._fixed) or self._file is not None

    def check(self, authorization: str | None) -> str | None:
        """The name of the token in an Authorization header, 12 hex digits of its SHA-256; None if
        it is none of ours.
        """
        scheme, _, token = (authorization or "").partition(" ")
        self._refresh()
        # Headers are read as Latin-1: this gives back the bytes that came.
        given = hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()
        known = False
        for digest in (*self._fixed, *self._from_file):
            known = hmac.compare_digest(digest, given) or known
        return given.hex()[:12] if known and scheme.lower() == "bearer" else None

    def _refresh(self, *, strict: bool = False) -> None:
        if self._file is None:
            return
        try:
            facts = self._file.stat()
            seen: object = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
            if seen == self._seen:
                return
            lines = self._file.read_text().splitlines()
            self._from_file = _digests(
                [line for line in lines if not line.lstrip().startswith("#")],
                "the tokens file",
                strict=strict,
            )
            problem = None if self._from_file else "has no token"
        except (OSError, ValueError) as error:
            seen, problem = type(error).__name__, f"cannot be read ({type(error).__name__})"
            self._from_file = []
        if problem and seen != self._seen:
            _log.error(
                "the tokens file %s %s: it lets nobody in. Hint: write one token per line into it",
                self._file,
                problem,
            )
        self._seen = seen


def by_digests(access: Access) -> Access:
    """The same for processes that do not inherit the environment variable: with digests of its
    tokens. Raises ConfigError as Tokens.
    """
    digests = (digest.hex() for digest in _from_environment(access))
    return access.model_copy(update={"tokens_sha256": (*access.tokens_sha256, *digests)})


def _from_environment(access: Access) -> list[bytes]:
    listed = os.environ.get(access.tokens_variable, "").replace(",", "\n").splitlines()
    return _digests(listed, f"the environment variable {access.tokens_variable}", strict=True)


def _digests(listed: Iterable[str], where: str, *, strict: bool) -> list[bytes]:
    tokens = [token.strip() for token in listed if token.strip()]
    short = sum(len(token) < _SHORTEST for token in tokens)
    if short and strict:
        hint = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        raise ConfigError(f"{where} has a token of fewer than {_SHORTEST} characters", hint=hint)
    if short:
        _log.error(
            "%s has %d token(s) of fewer than %d characters: they let nobody in",
            where,
            short,
            _SHORTEST,
        )
    return [hashlib.sha256(token.encode()).digest() for token in tokens if len(token) >= _SHORTEST]


class AccessGuard:
    """Lets a request through to all but the open addresses only with a token, or from this machine
    if there are none.

    401 without; 403 for a web page of another site, which acts with its reader's address and not
    with the reader's will. `scope["state"]["owner"]` is then the token's name, or `anonymous`.
    """

    def __init__(self, app: ASGIApp, tokens: BearerTokens, open_paths: Paths) -> None:
        self.app, self.tokens, self.open_paths = app, tokens, open_paths
        self.access = tokens.access
        # Every request comes from the address of HAProxy, so a loopback address proves nothing
        # about the client.
        self.behind_haproxy = os.environ.get(HAPROXY_ENABLED) == "1"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http" and not self.open_paths.has(scope["path"]):
            try:
                scope.setdefault("state", {})["owner"] = self._owner(scope)
            except Refusal as refusal:
                await refuse(refusal, scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _owner(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        if not self._own_site(headers):
            raise Refusal("forbidden", "web pages of other sites may not use this endpoint")
        if self.tokens.configured:
            owner = self.tokens.check(headers.get("authorization"))
            if owner is None:
                raise Refusal("unauthorized", headers={"WWW-Authenticate": "Bearer"})
            return owner
        if self.access.anonymous or (
            not self.behind_haproxy and _from_this_machine(scope, headers)
        ):
            return "anonymous"
        ways = f"set {self.access.tokens_variable} or access.tokens_file, or allow everybody with access.anonymous"
        raise Refusal(
            "unauthorized",
            f"without tokens only the endpoint's own machine is answered: {ways}",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _own_site(self, headers: Headers) -> bool:
        """Whether no browser says that another site's page is asking. Pages cannot forge these
        headers.
        """
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site in ("same-origin", "none") or (
            origin is not None and {origin, "*"} & set(self.access.cors_origins)
        ):
            return True
        if site == "cross-site":
            return False
        return origin is None or _authority(origin.partition("://")[2]) == _authority(
            headers.get("host", "")
        )


def _authority(host: str) -> str:
    return host.lower().removesuffix(":80").removesuffix(":443")


def _from_this_machine(scope: Scope, headers: Headers) -> bool:
    """Both ends are loopback and nothing says that a proxy stands between: a name that resolves
    here (DNS rebinding) is refused.
    """
    address = (scope.get("client") or ("",))[0]
    host = headers.get("host", "").lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return (
        is_loopback(address)
        and (name == "localhost" or is_loopback(name))
        and not any(key in headers for key in _FORWARDED)
    )


def is_loopback(address: str) -> bool:
    """Whether an IP address, also an IPv4 one written as IPv6, is this machine's own; False for
    what is none.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback
