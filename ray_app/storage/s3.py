"""The S3 requests that Touchstone makes, conditional ones among them: `get`, `get_range`, `put`, `head`, `delete`, `page`, `pages`;
`put_file` uploads in parts.

The client is s3fs's own (credentials, AWS_ENDPOINT_URL, one event loop per process); its retries are switched off, because retries inside
retries multiply and hide from the counts. Exceptions are botocore's and aiohttp's, for `storage.errors` to translate.
"""

import asyncio
import contextlib
import math
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from ray_app.storage import errors, ranged

Call = Callable[[Callable[[float], Any]], Any]  # `storage.fetch.Retrier.call`: asks with the seconds left, and again

T = TypeVar("T")

# Seconds of silence before a request counts as lost; a slow but living answer is bounded by the retry policy's deadline.
_CONNECT_S, _READ_S = 5, 20
_CONNECTIONS = 64
_PIECE = 2**20
_opening = threading.Lock()

PART_BYTES = 32 * 2**20
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_MOST_PARTS = 10_000
_CLEANING_S = 10.0


def filesystem() -> Any:
    """The process's s3fs file system for the present AWS environment; it carries no secret in its options, so it can be pickled."""
    identity = tuple(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_REGION", "FSSPEC_S3_ANON"))
    with _opening:  # sixteen threads that start together must not make sixteen clients
        return _filesystem(os.getpid(), errors.endpoint_url(), identity)


@lru_cache(maxsize=8)
def _filesystem(pid: int, endpoint: str | None, identity: tuple[str | None, ...]) -> Any:
    import s3fs  # half a second, for those who have a bucket

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
    fs.session = _session()
    return fs


def _session() -> Any:
    """botocore's session with a quicker reading of dates: its own takes more than half the time of a listing."""
    from aiobotocore.session import get_session  # type: ignore[import-untyped]

    session = get_session()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    return session


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
        if etag and answer["ETag"].strip('"') != etag:
            raise errors.ObjectChangedError("its ETag is another")
        if len(data) != size:
            raise errors.ShortReadError(f"{len(data)} of {size} bytes came")
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
        if etag and answer["ETag"].strip('"') != etag:
            answer["Body"].close()
            raise errors.ObjectChangedError("its ETag is another")
        content_range = answer.get("ContentRange")
        async with answer["Body"] as body:
            return await ranged.take(
                body.iter_chunks(_PIECE), content_range, ranged.total_size(content_range, answer["ContentLength"]), start, length
            )

    return _ask(request, timeout_s)


def put(bucket: str, key: str, data: bytes, *, timeout_s: float, only_if_absent: bool = False) -> None:
    """Store an object with one request; a reader sees all of it or nothing."""
    condition = {"IfNoneMatch": "*"} if only_if_absent else {}
    _ask(lambda client: client.put_object(Bucket=bucket, Key=key, Body=data, **condition), timeout_s)


def begin_upload(bucket: str, key: str, *, timeout_s: float) -> str:
    """Announce an object that comes in parts; returns the upload's id."""
    answer = _ask(lambda client: client.create_multipart_upload(Bucket=bucket, Key=key), timeout_s)
    return str(answer["UploadId"])


def put_part(bucket: str, key: str, upload: str, number: int, data: bytes, *, timeout_s: float) -> dict[str, Any]:
    """Store part `number` (1, 2, …) of an upload; returns what `end_upload` wants to know of it."""
    request = {"Bucket": bucket, "Key": key, "UploadId": upload, "PartNumber": number}
    answer = _ask(lambda client: client.upload_part(Body=data, **request), timeout_s)
    return {"PartNumber": number, "ETag": answer["ETag"]}


def end_upload(bucket: str, key: str, upload: str, parts: list[dict[str, Any]], *, timeout_s: float) -> None:
    """Make the parts the object, at once."""
    whole = {"Parts": parts}
    _ask(lambda client: client.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload=whole), timeout_s)


def drop_upload(bucket: str, key: str, upload: str, *, timeout_s: float) -> None:
    """Forget an upload and its parts."""
    _ask(lambda client: client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload), timeout_s)


def head(bucket: str, key: str, *, timeout_s: float) -> dict[str, Any]:
    """An object's size and ETag, as botocore gives them."""
    return _ask(lambda client: client.head_object(Bucket=bucket, Key=key), timeout_s)


def delete(bucket: str, key: str, *, timeout_s: float) -> None:
    """Remove an object; one that is not there is removed already."""
    _ask(lambda client: client.delete_object(Bucket=bucket, Key=key), timeout_s)


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


def put_file(bucket: str, key: str, source: Path, call: Call, part_bytes: int = PART_BYTES) -> None:
    """Store a file; a reader sees all of it or nothing. Each request goes through `call` (a retrier) on its own.

    A failed upload is dropped, since its parts would be paid for without being visible.
    """
    size = source.stat().st_size
    if size <= part_bytes:
        data = source.read_bytes()
        call(lambda left: put(bucket, key, data, timeout_s=left))
        return
    upload = call(lambda left: begin_upload(bucket, key, timeout_s=left))
    try:
        _put_parts(bucket, key, upload, source, max(part_bytes, math.ceil(size / _MOST_PARTS)), call)
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to hear of
            drop_upload(bucket, key, upload, timeout_s=_CLEANING_S)
        raise


def _put_parts(bucket: str, key: str, upload: str, source: Path, part_bytes: int, call: Call) -> None:
    parts: list[dict[str, Any]] = []
    with source.open("rb") as file:
        while data := file.read(part_bytes):
            number = len(parts) + 1
            parts.append(call(lambda left: put_part(bucket, key, upload, number, data, timeout_s=left)))  # noqa: B023 - called at once

    def end(left: float) -> None:
        try:
            end_upload(bucket, key, upload, parts, timeout_s=left)
        except Exception as error:
            # An upload that is not there any more was ended by a request whose answer got lost.
            if not errors.is_missing(error) or head(bucket, key, timeout_s=left)["ContentLength"] != source.stat().st_size:
                raise

    call(end)
