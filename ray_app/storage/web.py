"""The requests that a plain web server answers: what is there, its bytes, a part of them. Knows nothing of retries.

The session is fsspec's own; exceptions are aiohttp's, for `errors` to translate.
"""

import asyncio
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

from ray_app.storage.backends import fsspec_for
from ray_app.storage.errors import ObjectChangedError, ShortReadError, too_large
from ray_app.storage.ranged import range_header, take, total_size
from ray_app.storage.versions import version_of

T = TypeVar("T")

# What is compressed on the way would not have the size that the server announces.
_AS_STORED = {"Accept-Encoding": "identity"}
_NOTHING_THERE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


def head(url: str, *, timeout_s: float) -> dict[str, Any]:
    """Size (None where the server does not say) and whatever names a version."""

    async def request(session: Any, encoded: Any) -> dict[str, Any]:
        async with session.head(encoded, headers=_AS_STORED, allow_redirects=True) as answer:
            if answer.ok:
                return _facts(answer)
            if answer.status in _NOTHING_THERE:
                answer.raise_for_status()
        # A URL presigned for GET, or a server that knows no HEAD: ask for the file, and leave before its body.
        async with session.get(encoded, headers=_AS_STORED) as answer:
            answer.raise_for_status()
            return _facts(answer)

    return _ask(url, request, timeout_s)


def get(url: str, *, version: str, max_bytes: int, timeout_s: float) -> bytes:
    """The whole file if it is still of `version`. Raises InputError as soon as more than `max_bytes` have come."""

    async def request(session: Any, encoded: Any) -> bytes:
        async with session.get(encoded, headers=_AS_STORED) as answer:
            answer.raise_for_status()
            facts = _facts(answer)
            _same(version, facts)
            data = bytearray()
            async for piece in answer.content.iter_any():
                data += piece
                if len(data) > max_bytes:
                    raise too_large(facts["size"] or len(data), max_bytes)
            if facts["size"] is not None and len(data) != facts["size"]:
                raise ShortReadError(f"{len(data)} of {facts['size']} bytes came")
            return bytes(data)

    return _ask(url, request, timeout_s)


def get_range(url: str, start: int, length: int, *, version: str, timeout_s: float) -> bytes:
    """`length` bytes from `start`, fewer where the file ends, if it is still of `version`."""

    async def request(session: Any, encoded: Any) -> bytes:
        async with session.get(encoded, headers={**_AS_STORED, "Range": range_header(start, length)}) as answer:
            if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""  # the file ends before
            answer.raise_for_status()
            facts = _facts(answer)
            _same(version, facts)
            return await take(answer.content.iter_any(), answer.headers.get("Content-Range"), facts["size"], start, length)

    return _ask(url, request, timeout_s)


def _same(version: str, facts: dict[str, Any]) -> None:
    if version and version_of(facts) != version:
        raise ObjectChangedError(f"listed as {version}, found as {version_of(facts) or 'nothing that names a version'}")


def _ask(url: str, request: Callable[[Any, Any], Coroutine[Any, Any, T]], timeout_s: float) -> T:
    fs, _ = fsspec_for(url)

    async def timed() -> T:
        async with asyncio.timeout(timeout_s):
            return await request(await fs.set_session(), fs.encode_url(url))

    return asyncio.run_coroutine_threadsafe(timed(), fs.loop).result()


def _facts(answer: Any) -> dict[str, Any]:
    whole = total_size(answer.headers.get("Content-Range"), answer.content_length)
    size = None if answer.headers.get("Content-Encoding") else whole
    return {"size": size, "ETag": answer.headers.get("ETag"), "Last-Modified": answer.headers.get("Last-Modified")}
