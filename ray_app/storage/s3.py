"""S3: `filesystem` is the process's s3fs, and the requests that s3fs does not make as Touchstone needs them: `get` and `get_range` of one
version, `head`, `found`, `delete_some`, `page`, `pages`.

They go through the client of s3fs (credentials, AWS_ENDPOINT_URL, one event loop per process). The retries of both are switched off:
retries inside retries multiply and hide from the counts. Exceptions are botocore's and aiohttp's, for `storage.errors` to translate.
"""

import asyncio
import os
import re
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Any, TypeVar

from ray_app.storage import errors, ranged

Call = Callable[[Callable[[float], Any]], Any]  # `storage.fetch.Retrier.call`: asks with the seconds left, and again

T = TypeVar("T")

# Seconds of silence before a request counts as lost; a slow but living answer is bounded by the retry policy's deadline.
_CONNECT_S, _READ_S = 5, 20
_CONNECTIONS = 64
_PIECE = 2**20
_opening = threading.Lock()

_TEXTS = [re.compile(b"<%s>([^<]*)</%s>" % (name, name)) for name in (b"Key", b"ETag", b"Size", b"LastModified")]
_IS_ENCODED = b"<EncodingType>url</EncodingType>"

MOST_DELETED = 1000  # objects in one DeleteObjects


def filesystem() -> Any:
    """The process's s3fs file system for the present AWS environment; it carries no secret in its options, so it can be pickled."""
    identity = tuple(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_REGION", "FSSPEC_S3_ANON"))
    with _opening:  # sixteen threads that start together must not make sixteen clients
        return _filesystem(os.getpid(), errors.endpoint_url(), identity)


@lru_cache(maxsize=8)
def _filesystem(pid: int, endpoint: str | None, identity: tuple[str | None, ...]) -> Any:
    import s3fs  # half a second, only for s3://

    fs = s3fs.S3FileSystem(
        endpoint_url=endpoint,
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": _CONNECT_S,
            "read_timeout": _READ_S,
            "max_pool_connections": _CONNECTIONS,
            "retries": {"total_max_attempts": 1},
        },
    )
    fs.session, fs.retries = _session(), 1
    return fs


def _session() -> Any:
    """botocore's session with a quicker reading of dates and of listings: its own takes more than twice as long for a page of keys."""
    from aiobotocore.session import get_session  # type: ignore[import-untyped]

    session = get_session()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    session.register("before-parse.s3.ListObjectsV2", _take_contents)
    return session


def _take_contents(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Take the objects out of a page of a listing, so that botocore's parsers are left with little. What is not as every store writes it
    (elements that lack, references to characters) stays there for them.
    """
    if response_dict.get("status_code") != HTTPStatus.OK:
        return
    body: bytes = response_dict["body"]
    start, end = body.find(b"<Contents>"), body.rfind(b"</Contents>") + len(b"</Contents>")
    if start < 0:
        return
    inside = body[start:end].replace(b"&quot;", b"").replace(b"&#34;", b"").replace(b"&amp;", b"%26" if _IS_ENCODED in body else b"&amp;")
    keys, etags, sizes, times = ([text.decode() for text in found.findall(inside)] for found in _TEXTS)
    if b"&" in inside or b"<CommonPrefixes>" in inside or {len(keys), len(etags), len(sizes), len(times)} != {inside.count(b"<Contents>")}:
        return
    customized_response_dict["Contents"] = [
        {"Key": key, "ETag": etag, "Size": int(size), "LastModified": _timestamp(time)}
        for key, etag, size, time in zip(keys, etags, sizes, times, strict=True)
    ]
    response_dict["body"] = body[:start] + body[end:]


def _timestamp(value: Any) -> Any:
    try:
        return datetime.fromisoformat(value) if value[:1].isdigit() else parsedate_to_datetime(value)
    except (TypeError, ValueError):
        from botocore.utils import parse_timestamp

        return parse_timestamp(value)


def _ask(request: Callable[[Any], Coroutine[Any, Any, T]], timeout_s: float) -> T:
    """Run `request(client)` on s3fs's loop. Raises TimeoutError when the whole of it takes longer."""
    fs = filesystem()

    async def timed() -> T:
        async with asyncio.timeout(timeout_s):
            return await request(await fs.set_session())

    return asyncio.run_coroutine_threadsafe(timed(), fs.loop).result()


def get(bucket: str, key: str, *, timeout_s: float, etag: str = "", max_bytes: int | None = None) -> bytes:
    """A whole object, only if its ETag is still `etag`. Raises InputError before the body is read when it is over `max_bytes`."""
    condition = {"IfMatch": f'"{etag}"'} if etag else {}

    async def request(client: Any) -> bytes:
        answer = await client.get_object(Bucket=bucket, Key=key, **condition)
        body, size = answer["Body"], answer["ContentLength"]
        if max_bytes is not None and size > max_bytes:
            body.close()
            raise errors.too_large(size, max_bytes)
        async with body:
            data: bytes = await body.read()
        # A store that does not know If-Match answers as if it had not been sent.
        errors.require_version(etag, answer["ETag"].strip('"'))
        errors.require_length(len(data), size)
        return data

    return _ask(request, timeout_s)


def get_range(bucket: str, key: str, start: int, length: int, *, timeout_s: float, etag: str = "") -> bytes:
    """`length` bytes from `start`, fewer where the object ends, only if its ETag is still `etag`."""
    condition = {"IfMatch": f'"{etag}"'} if etag else {}

    async def request(client: Any) -> bytes:
        try:
            answer = await client.get_object(Bucket=bucket, Key=key, Range=ranged.range_header(start, length), **condition)
        except client.exceptions.ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""  # the object ends before
            raise
        content_range = answer.get("ContentRange")
        async with answer["Body"] as body:
            errors.require_version(etag, answer["ETag"].strip('"'))
            return await ranged.take(
                body.iter_chunks(_PIECE), content_range, ranged.total_size(content_range, answer["ContentLength"]), start, length
            )

    return _ask(request, timeout_s)


def head(bucket: str, key: str, *, timeout_s: float) -> dict[str, Any]:
    """An object's size and ETag, as botocore gives them."""
    return _ask(lambda client: client.head_object(Bucket=bucket, Key=key), timeout_s)


def found(bucket: str, key: str, *, timeout_s: float) -> dict[str, Any] | None:
    """An object's size and ETag; None where there is none of that key. Raises where there is no such bucket."""
    try:
        return head(bucket, key, timeout_s=timeout_s)
    except Exception as error:
        if errors.is_missing(error):
            return None
        raise


def delete_some(bucket: str, keys: Sequence[str], *, timeout_s: float) -> None:
    """Remove up to `MOST_DELETED` objects with one request; those that are not there are removed already.

    An answer can be a success that names objects which stayed: of these the first is raised, one that no repetition helps before others.
    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
    """

    async def request(client: Any) -> None:
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = await client.delete_objects(Bucket=bucket, Delete=wanted)
        stayed = [one for one in answer.get("Errors", ()) if one.get("Code") != "NoSuchKey"]
        if stayed:
            said = [{"Code": one.get("Code", ""), "Message": f"{one.get('Message', '')}: {one.get('Key', '')}"} for one in stayed]
            refused = [client.exceptions.ClientError({"Error": one}, "DeleteObjects") for one in said]
            raise min(refused, key=errors.is_transient)

    _ask(request, timeout_s)


def page(
    bucket: str,
    prefix: str,
    *,
    timeout_s: float,
    delimiter: str = "",
    after: str | None = None,
    above: str | None = None,
    limit: int = 1000,
) -> dict[str, Any]:
    """One page of the listing in key order; `after` is the former page's NextContinuationToken, `above` the key to begin behind."""
    more = {"ContinuationToken": after} if after else {"StartAfter": above} if above else {}
    return _ask(lambda client: client.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter=delimiter, MaxKeys=limit, **more), timeout_s)


def pages(bucket: str, prefix: str, call: Call, delimiter: str = "", above: str | None = None) -> Iterator[dict[str, Any]]:
    """All pages; each goes through `call` (a retrier) on its own, so that a late failure does not list anew."""
    after: str | None = None
    while True:
        token = after
        answer = call(lambda left: page(bucket, prefix, timeout_s=left, delimiter=delimiter, after=token, above=above))  # noqa: B023 - called at once
        yield answer
        if not answer.get("IsTruncated"):
            return
        after = answer["NextContinuationToken"]
