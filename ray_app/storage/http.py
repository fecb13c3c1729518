"""HTTP requests to plain web servers: `head`, `get`, `get_range`; and `Guard`, the servers that may
be requested. No retries.

Hosts that the user names are requested by fsspec's own session, whatever their address is. All
others, named by a list, a label or a redirect, go through the SSRF guard (`storage.ssrf`).
Exceptions are aiohttp's, for `storage.errors` to translate, or SourceError.
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
from ray_app.storage.urls import scheme_of, version_of

T = TypeVar("T")

WEB = ("http", "https")
# What is compressed on the way would not have the size that the server announces.
_AS_STORED = {"Accept-Encoding": "identity"}
_NOTHING_THERE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 10  # as aiohttp follows by itself


@dataclass(frozen=True)
class Guard:
    """Which web servers may be requested: those that the user names (`named`: their origins), and
    all on the public Internet.

    `allow_private`: every other one too.
    """

    named: frozenset[str] = frozenset()
    allow_private: bool = False

    @classmethod
    def of(cls, urls: Iterable[str], *, allow_private: bool = False) -> "Guard":
        """The guard for these URLs of the user: their servers are trusted."""
        return cls(frozenset(filter(None, map(_origin, urls))), allow_private)

    def joined(self, other: "Guard") -> "Guard":
        """What either lets through."""
        return Guard(self.named | other.named, self.allow_private or other.allow_private)

    def trusts(self, url: str) -> bool:
        """Whether a URL is requested without a check of its host's address."""
        origin = _origin(url)
        return origin is not None and (self.allow_private or origin in self.named)


def head(url: str, guard: Guard, *, timeout_s: float) -> dict[str, Any]:
    """Size (None where the server does not say) and whatever names a version."""

    async def request() -> dict[str, Any]:
        async with _answer("HEAD", url, guard) as answer:
            if answer.ok:
                return _facts(answer)
            if answer.status in _NOTHING_THERE:
                answer.raise_for_status()
        # A URL presigned for GET, or a server that knows no HEAD: ask for the file, and leave
        # before its body.
        async with _answer("GET", url, guard) as answer:
            answer.raise_for_status()
            return _facts(answer)

    return _ask(request, timeout_s)


def get(url: str, guard: Guard, *, version: str, max_bytes: int | None, timeout_s: float) -> bytes:
    """The whole file if it is still of `version`. Raises InputError as soon as more than
    `max_bytes` have come.
    """

    async def request() -> bytes:
        async with _answer("GET", url, guard) as answer:
            answer.raise_for_status()
            facts = _facts(answer)
            errors.require_version(version, version_of(facts))
            data = bytearray()
            async for piece in answer.content.iter_any():
                data += piece
                if max_bytes is not None and len(data) > max_bytes:
                    raise errors.too_large(facts["size"] or len(data), max_bytes)
            errors.require_length(len(data), facts["size"])
            return bytes(data)

    return _ask(request, timeout_s)


def get_range(
    url: str, guard: Guard, start: int, length: int, *, version: str, timeout_s: float
) -> bytes:
    """`length` bytes from `start`, fewer where the file ends, if it is still of `version`."""

    async def request() -> bytes:
        async with _answer(
            "GET", url, guard, {"Range": ranged.range_header(start, length)}
        ) as answer:
            if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""  # the file ends before
            answer.raise_for_status()
            facts = _facts(answer)
            errors.require_version(version, version_of(facts))
            return await ranged.take(
                answer.content.iter_any(),
                answer.headers.get("Content-Range"),
                facts["size"],
                start,
                length,
            )

    return _ask(request, timeout_s)


def _ask(request: Callable[[], Coroutine[Any, Any, T]], timeout_s: float) -> T:
    from fsspec.asyn import get_loop

    async def timed() -> T:
        async with asyncio.timeout(timeout_s):
            return await request()

    return asyncio.run_coroutine_threadsafe(timed(), get_loop()).result()


@asynccontextmanager
async def _answer(
    method: str, url: str, guard: Guard, headers: Mapping[str, str] | None = None
) -> AsyncIterator[Any]:
    """The answer behind all redirects; the place that one leads to is looked at like any other.
    Raises SourceError (source_denied).
    """
    for _ in range(_MOST_REDIRECTS + 1):
        session, place = await _session_for(url, guard)
        async with session.request(
            method, place, headers={**_AS_STORED, **(headers or {})}, allow_redirects=False
        ) as answer:
            if answer.status not in _REDIRECTS:
                yield answer
                return
            url = _next_place(answer, url)
    raise SourceError(Status.SOURCE_DENIED, f"redirected more than {_MOST_REDIRECTS} times")


def _next_place(answer: Any, requested: str) -> str:
    """Where a redirect leads; on the same server, under the user name of the request."""
    try:
        place = urljoin(str(answer.url), str(answer.headers["Location"]))
        led = urlsplit(place)
    except (KeyError, ValueError):
        raise SourceError(
            Status.SOURCE_DENIED, "the server redirects without saying where"
        ) from None
    user, at, _ = urlsplit(requested).netloc.rpartition("@")
    if not at or "@" in led.netloc or _origin(place) != _origin(requested):
        return place
    return led._replace(netloc=f"{user}@{led.netloc}").geturl()


async def _session_for(url: str, guard: Guard) -> tuple[Any, Any]:
    """The session for a URL, and the URL to request. Raises SourceError for one that may not be
    requested.
    """
    if guard.trusts(url):
        fs, _ = object_store.fsspec_for(url)
        return await fs.set_session(), fs.encode_url(url)
    from ray_app.storage.ssrf import guarded_session, public_url

    return await guarded_session(), public_url(url)


def _origin(url: str) -> str | None:
    """Scheme, host and port, as they are dialled; None for what is no address of a web server."""
    if scheme_of(url) not in WEB:
        return None
    from yarl import URL  # here: only requests to web servers need it

    try:
        return str(URL(url).origin())
    except ValueError:
        return None


def _facts(answer: Any) -> dict[str, Any]:
    whole = ranged.total_size(answer.headers.get("Content-Range"), answer.content_length)
    size = None if answer.headers.get("Content-Encoding") else whole
    return {
        "size": size,
        "ETag": answer.headers.get("ETag"),
        "Last-Modified": answer.headers.get("Last-Modified"),
    }
