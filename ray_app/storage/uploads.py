"""A file of this machine → one S3 object, in parts, so that neither memory nor one request has to hold it. Knows sizes, not contents."""

import contextlib
import math
from pathlib import Path
from typing import Any

from ray_app.storage import s3
from ray_app.storage.errors import is_missing
from ray_app.storage.retrying import Call

PART_BYTES = 32 * 2**20
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_MOST_PARTS = 10_000
_CLEANING_S = 10.0


def put_file(bucket: str, key: str, source: Path, call: Call, part_bytes: int = PART_BYTES) -> None:
    """Store a file; a reader sees all of it or nothing. Each request goes through `call` (a retrier) on its own.

    A failed upload is dropped, since its parts would be paid for without being visible.
    """
    size = source.stat().st_size
    if size <= part_bytes:
        data = source.read_bytes()
        call(lambda left: s3.put(bucket, key, data, timeout_s=left))
        return
    upload = call(lambda left: s3.begin_upload(bucket, key, timeout_s=left))
    try:
        _put_parts(bucket, key, upload, source, max(part_bytes, math.ceil(size / _MOST_PARTS)), call)
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to hear of
            s3.drop_upload(bucket, key, upload, timeout_s=_CLEANING_S)
        raise


def _put_parts(bucket: str, key: str, upload: str, source: Path, part_bytes: int, call: Call) -> None:
    parts: list[dict[str, Any]] = []
    with source.open("rb") as file:
        while data := file.read(part_bytes):
            number = len(parts) + 1
            parts.append(call(lambda left: s3.put_part(bucket, key, upload, number, data, timeout_s=left)))  # noqa: B023 - called at once

    def end(left: float) -> None:
        try:
            s3.end_upload(bucket, key, upload, parts, timeout_s=left)
        except Exception as error:
            # An upload that is not there any more was ended by a request whose answer got lost.
            if not is_missing(error) or s3.head(bucket, key, timeout_s=left)["ContentLength"] != source.stat().st_size:
                raise

    call(end)
