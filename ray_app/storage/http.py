"""Make requests to plain web servers without retries: `head`, `get`, and `get_range`.

`Guard` decides which servers may be requested. A host that the user names may have any address. All
other hosts are in URLs that the user did not write, such as a row of a list or the target of a
redirect. They are requested through the SSRF guard (`storage.ssrf`), which connects only to public
addresses. The functions raise SourceError, or exceptions of aiohttp, which `storage.errors`
translates.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from ray_app.errors import SourceError, Status
from ray_app.storage import errors, object_store, ranged
from ray_app.storage.urls import get_scheme, get_version

T = TypeVar("T")

WEB = ("http", "https")
# A compressed body would not have the size that the server announces.
_AS_STORED = {"Accept-Encoding": "identity"}
_NOTHING_THERE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 10  # The default of aiohttp.


@dataclass(frozen=True)
class Guard:
    """The web servers that may be requested: those that the user names, and the public Internet.

    Attributes:
        named: The origins (scheme, host, and port) of the servers that the user names.
        allow_private: Whether all other servers may also be requested, including those in private
            networks.
    """

    named: frozenset[str] = frozenset()
    allow_private: bool = False

    @classmethod
    def from_urls(cls, urls: Iterable[str], *, allow_private: bool = False) -> "Guard":
        """Return the guard that allows the servers of URLs that the user gave.

        Args:
            urls: The URLs. Those that are not web URLs are ignored.
            allow_private: Whether all other servers may also be requested, including those in
                private networks.
        """
        return cls(frozenset(filter(None, map(_get_origin, urls))), allow_private)

    def merge(self, other: "Guard") -> "Guard":
        """Return a guard that allows the servers that either of the two guards allows."""
        return Guard(self.named | other.named, self.allow_private or other.allow_private)

    def trusts(self, url: str) -> bool:
        """Return whether a URL may be requested even if its host has a private address."""
        origin = _get_origin(url)
        return origin is not None and (self.allow_private or origin in self.named)


def head(url: str, guard: Guard, *, timeout_s: float) -> dict[str, Any]:
    """Return the size of a file on a web server, and its version headers, without its content.

    If the server refuses a HEAD request, a GET request is made.

    Args:
        url: The URL.
        guard: The servers that may be requested.
        timeout_s: Seconds for the request.

    Returns:
        A dict with the keys `size`, `ETag`, and `Last-Modified`. A value is None if the server does
        not state it.
    """

    async def request() -> dict[str, Any]:
        async with _open_response("HEAD", url, guard) as response:
            if response.ok:
                return _get_facts(response)
            if response.status in _NOTHING_THERE:
                response.raise_for_status()
        # The URL is presigned for GET, or the server does not support HEAD. Request the file, and
        # do not read its body.
        async with _open_response("GET", url, guard) as response:
            response.raise_for_status()
            return _get_facts(response)

    return _run_request(request, timeout_s)


def get(url: str, guard: Guard, *, version: str, max_bytes: int | None, timeout_s: float) -> bytes:
    """Read a whole file from a web server.

    Args:
        url: The URL.
        guard: The servers that may be requested.
        version: The version that the file must have. "" accepts any version.
        max_bytes: The maximum size of the file, None for no limit.
        timeout_s: The maximum seconds for the request.

    Raises:
        InputError: More than `max_bytes` have arrived.
        SourceError: The server may not be requested, or it redirects too often.
        ObjectChangedError: The file has another version.
    """

    async def request() -> bytes:
        async with _open_response("GET", url, guard) as response:
            response.raise_for_status()
            facts = _get_facts(response)
            errors.require_version(version, get_version(facts))
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if max_bytes is not None and len(data) > max_bytes:
                    raise errors.make_too_large_error(facts["size"] or len(data), max_bytes)
            errors.require_length(len(data), facts["size"])
            return bytes(data)

    return _run_request(request, timeout_s)


def get_range(
    url: str, guard: Guard, start: int, length: int, *, version: str, timeout_s: float
) -> bytes:
    """Read `length` bytes of a file on a web server from `start`, fewer if the file ends.

    Args:
        url: The URL.
        guard: The servers that may be requested.
        start: The first byte.
        length: The number of bytes.
        version: The version that the file must have. "" accepts any version.
        timeout_s: Seconds for the request.
    """

    async def request() -> bytes:
        async with _open_response(
            "GET", url, guard, {"Range": ranged.range_header(start, length)}
        ) as response:
            if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""  # The file ends before `start`.
            response.raise_for_status()
            facts = _get_facts(response)
            errors.require_version(version, get_version(facts))
            return await ranged.take(
                response.content.iter_any(),
                response.headers.get("Content-Range"),
                facts["size"],
                start,
                length,
            )

    return _run_request(request, timeout_s)


def _run_request(request: Callable[[], Coroutine[Any, Any, T]], timeout_s: float) -> T:
    from fsspec.asyn import get_loop

    async def timed() -> T:
        async with asyncio.timeout(timeout_s):
            return await request()

    return asyncio.run_coroutine_threadsafe(timed(), get_loop()).result()


@asynccontextmanager
async def _open_response(
    method: str, url: str, guard: Guard, headers: Mapping[str, str] | None = None
) -> AsyncIterator[Any]:
    """Yield the response after all redirects. The target of each redirect is checked like any URL.

    Raises:
        SourceError: A server may not be requested (`source_denied`).
    """
    for _ in range(_MAX_REDIRECTS + 1):
        session, target = await _choose_session(url, guard)
        async with session.request(
            method, target, headers={**_AS_STORED, **(headers or {})}, allow_redirects=False
        ) as response:
            if response.status not in _REDIRECTS:
                yield response
                return
            url = _get_redirect_target(response, url)
    raise SourceError(Status.SOURCE_DENIED, f"redirected more than {_MAX_REDIRECTS} times")


def _get_redirect_target(response: Any, requested: str) -> str:
    """Return the target of a redirect. On the same server it keeps the user name of the request."""
    try:
        target = urljoin(str(response.url), str(response.headers["Location"]))
        parsed = urlsplit(target)
    except (KeyError, ValueError):
        raise SourceError(
            Status.SOURCE_DENIED, "the server redirects without a valid location"
        ) from None
    user, at, _ = urlsplit(requested).netloc.rpartition("@")
    if not at or "@" in parsed.netloc or _get_origin(target) != _get_origin(requested):
        return target
    return parsed._replace(netloc=f"{user}@{parsed.netloc}").geturl()


async def _choose_session(url: str, guard: Guard) -> tuple[Any, Any]:
    """Return the session for a URL, and the URL to request.

    Raises:
        SourceError: The URL may not be requested.
    """
    if guard.trusts(url):
        fs, _ = object_store.open_fsspec(url)
        return await fs.set_session(), fs.encode_url(url)
    from ray_app.storage.ssrf import check_public_url, open_guarded_session

    return await open_guarded_session(), check_public_url(url)


def _get_origin(url: str) -> str | None:
    """Return scheme, host, and port of a URL, or None if it is not the URL of a web server."""
    if get_scheme(url) not in WEB:
        return None
    from yarl import URL  # Imported here, since only requests to web servers need it.

    try:
        return str(URL(url).origin())
    except ValueError:
        return None


def _get_facts(response: Any) -> dict[str, Any]:
    total_bytes = ranged.total_size(response.headers.get("Content-Range"), response.content_length)
    size = None if response.headers.get("Content-Encoding") else total_bytes
    return {
        "size": size,
        "ETag": response.headers.get("ETag"),
        "Last-Modified": response.headers.get("Last-Modified"),
    }
