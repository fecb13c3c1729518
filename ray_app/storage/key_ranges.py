"""List S3 prefixes in the order of keys, whole or in ranges that are listed in parallel.

`list_prefix` lists a whole prefix. `list_divisions` divides a large prefix at its folders, and
`split_range` divides a range at keys that it finds by probing. `RangeReader` reads a range until it
is stopped.

The ranges of a prefix follow each other in key order without gaps. So listing all ranges in order
gives the listing of the prefix, wherever the prefix was divided. The bounds of a range need not be
existing keys. Python compares strings by code points, which is the order of their UTF-8, and so the
order of S3.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html (`start-after`, order
by UTF-8).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from ray_app.errors import ConfigError, StorageError
from ray_app.storage import errors, s3, urls
from ray_app.storage.place import ObjectInfo
from ray_app.storage.retry import AdaptiveLimiter, Retrier, RetryPolicy

PATIENCE = RetryPolicy(attempts=6, base_s=0.25, cap_s=10.0, deadline_s=300.0)
# Enough ranges for any cluster to share, and few enough for one process to plan. The search stops
# after enough folders or requests.
_MAX_RANGES, _ENOUGH_FOLDERS, _MAX_REQUESTS = 256, 64, 64
# Characters that are distinguished at one position of the keys, unless more parts are requested.
_MIN_CUTS = 64
_LAST_POINT, _SURROGATES = 0x10FFFF, range(0xD800, 0xE000)
# Threads of a process list ranges in parallel. This limits them after a throttle.
_gate = AdaptiveLimiter(64)


@dataclass(frozen=True, slots=True)
class KeyRange:
    """A range of the keys below a prefix of an S3 bucket.

    Attributes:
        bucket: The bucket.
        prefix: The prefix.
        after: The range begins after this key. None begins it with the first key of the prefix.
        until: The range ends with this key, which it includes. None ends it with the last key of
            the prefix.
        pattern: A pattern that the path below the prefix must match. None accepts all keys.
    """

    bucket: str
    prefix: str
    after: str | None = None
    until: str | None = None
    pattern: str | None = None


def list_prefix(url: str) -> Iterator[ObjectInfo]:
    """Yield the objects below an S3 prefix in key order.

    If there are none, the object whose key is the prefix itself is yielded, if it exists.
    """
    bucket, key = urls.split_bucket(url)
    is_empty = True
    for info in RangeReader(_make_range(bucket, key)):
        is_empty = False
        yield info
    if is_empty and key and (single := _find_object(url)) is not None:
        yield single


def _find_object(url: str) -> ObjectInfo | None:
    """Return the object with a name as a listing would return it, or None if there is none.

    Raises:
        StorageError: The store is unreachable.
    """
    bucket, key = urls.split_bucket(url)
    try:
        head = _head(bucket, key, Retrier(PATIENCE))
    except Exception as error:
        raise errors.make_unreachable_error(error, url, "read") from error
    return (
        None
        if head is None
        else ObjectInfo(f"s3://{bucket}/{key}", head["ContentLength"], head["ETag"].strip('"'))
    )


def list_divisions(source: str) -> list[KeyRange]:
    """Divide a large S3 prefix at its folders into ranges that can be listed in parallel.

    Returns:
        The ranges in the order of keys. Empty if the source is not on S3, or if its listing has
        only one page.

    Raises:
        StorageError: The store is unreachable or refuses the request.
    """
    url = urls.canonicalize(source)
    if urls.get_scheme(url) != "s3":
        return []
    try:
        retrier = Retrier(PATIENCE)
        full_range = _find_full_range(url, retrier)
        return (
            []
            if full_range is None
            else _cut_at_folders(full_range, _list_folders(full_range, retrier))
        )
    except (ConfigError, StorageError):
        raise
    except Exception as error:
        raise errors.make_unreachable_error(error, url, "list") from error


class RangeReader:
    """An iterable of the files in one range of S3 keys, sorted by uri. It can be iterated once.

    Pages of the listing (up to 1000 keys each) are read until the end of the range, or until `stop`
    is called. After `stop`, another reader of `rest` yields the remaining files. Iterating raises
    ConfigError or StorageError if the listing fails.

    Attributes:
        rest: The part of the range that was not read after `stop`. None if the whole range was
            read.
    """

    def __init__(self, keys: KeyRange) -> None:
        self._keys = keys
        self._stops = self._stops_here = False
        self.rest: KeyRange | None = None

    def stop(self, *, here: bool = False) -> None:
        """Stop the iteration early, so that the attribute `rest` has the unread part of the range.

        Args:
            here: Whether to stop directly after the last yielded file. False first yields the other
                files of its page, so that a reader of `rest` need not request that page again.
        """
        self._stops, self._stops_here = True, here

    def __iter__(self) -> Iterator[ObjectInfo]:
        keys = self._keys
        try:
            yield from self._iter_files()
        except (ConfigError, StorageError):
            raise
        except Exception as error:
            raise errors.make_unreachable_error(
                error, f"s3://{keys.bucket}/{keys.prefix}", "list"
            ) from error

    def _iter_files(self) -> Iterator[ObjectInfo]:
        keys = self._keys
        matches = None if keys.pattern is None else urls.make_full_matcher(keys.pattern)
        key_start, last_key = len(f"s3://{keys.bucket}/"), keys.after or ""
        for page in s3.pages(
            keys.bucket, keys.prefix, Retrier(PATIENCE), gate=_gate, above=keys.after
        ):
            contents = page.get("Contents")
            last_key = contents[-1]["Key"] if contents else last_key
            is_end = not page.get("IsTruncated") or (
                keys.until is not None and last_key >= keys.until
            )
            for info in _iter_objects(
                keys.bucket,
                page
                if keys.until is None or last_key <= keys.until
                else _limit_page(keys.until, page),
            ):
                key = info.uri[key_start:]
                if matches is None or matches(key[len(keys.prefix) :]):
                    yield info
                    if self._stops_here:
                        self.rest = replace(keys, after=key)
                        return
            if is_end:
                return
            if self._stops:
                self.rest = replace(keys, after=last_key)
                return


def split_range(keys: KeyRange, pieces: int) -> list[KeyRange]:
    """Split a range of keys into about `pieces` parts, and return the parts in order.

    A range with only one key is not split. The parts are about equally large if each character is
    about equally frequent in the keys. To find positions for the splits, single keys are requested.
    They show which beginning all keys of the range share, and which characters follow this
    beginning. The range is split between these characters. For numbered keys, ten parts need about
    15 requests.

    Raises:
        StorageError: The store is unreachable.
    """
    probe = _Probe(keys, max_requests=2 * max(pieces, _MIN_CUTS) + 16)
    try:
        first = (
            keys.after
            if keys.after is not None and keys.after.startswith(keys.prefix)
            else probe.find_after(keys.after or "")
        )
        ranges = [(keys, first)]
        while len(ranges) < pieces / 2:
            parts = [
                part
                for key_range, known_key in ranges
                for part in _split_once(key_range, known_key, probe, pieces)
            ]
            if len(parts) == len(ranges):
                break
            ranges = parts
    except Exception as error:
        raise errors.make_unreachable_error(
            error, f"s3://{keys.bucket}/{keys.prefix}", "list"
        ) from error
    return [key_range for key_range, _ in ranges]


class _Probe:
    """Request single keys of a range, up to a number of requests. After that it finds no key.

    Args:
        keys: The range.
        max_requests: Maximum number of requests.
    """

    def __init__(self, keys: KeyRange, max_requests: int) -> None:
        self._keys, self._remaining, self._retrier = keys, max_requests, Retrier(PATIENCE)

    def find_after(self, text: str) -> str | None:
        """Return the first key of the range after `text`, or None."""
        if self._remaining <= 0:
            return None
        self._remaining -= 1
        page = _page(self._keys, self._retrier, above=text, limit=1)
        matches = [item["Key"] for item in page.get("Contents", ())]
        return (
            matches[0]
            if matches and (self._keys.until is None or matches[0] <= self._keys.until)
            else None
        )

    def find_after_all(self, stem: str) -> str | None:
        """Return the first key of the range after all keys that begin with `stem`, or None."""
        following = _get_successor(stem)
        return None if len(following) <= len(self._keys.prefix) else self.find_after(following)


def _split_once(
    keys: KeyRange, first_key: str | None, probe: _Probe, pieces: int
) -> list[tuple[KeyRange, str | None]]:
    """Split a range where its keys first differ, and return each part with its first key.

    Args:
        keys: The range.
        first_key: The first key of the range. None returns the range as it is.
        probe: Requests keys.
        pieces: The requested number of parts.
    """
    if first_key is None:
        return [(keys, None)]
    shared, end = len(keys.prefix), len(first_key)
    next_key: str | None = None
    while shared < end:
        middle = (shared + end) // 2
        key = _check_cut(keys, probe.find_after_all(first_key[: middle + 1]), middle + 1)
        if key is None:
            shared = middle + 1
        else:
            end, next_key = middle, key
    if next_key is None:  # All other keys begin with the whole of `first_key`.
        next_key = _check_cut(keys, probe.find_after(first_key), shared + 1)
    cuts: list[tuple[str, str]] = []  # The edges, with the first key after each.
    while (
        next_key is not None
        and len(cuts) < max(pieces, _MIN_CUTS)
        and next_key[: shared + 1] > (keys.after or "")
    ):
        cuts.append((next_key[: shared + 1], next_key))
        next_key = _check_cut(keys, probe.find_after_all(cuts[-1][0]), shared + 1)
    step = -(-(len(cuts) + 1) // (2 * pieces))
    cuts = cuts[step - 1 :: step]
    edges = [keys.after, *(edge for edge, _ in cuts), keys.until]
    return [
        (replace(keys, after=after, until=until), first)
        for (after, until), first in zip(
            pairwise(edges), [first_key, *(first for _, first in cuts)], strict=True
        )
    ]


def _check_cut(keys: KeyRange, key: str | None, length: int) -> str | None:
    """Return a key if the range can be cut at its first `length` characters, else None.

    A range cannot be cut at or after its end.
    """
    return None if key is None or (keys.until is not None and key[:length] >= keys.until) else key


def _get_successor(stem: str) -> str:
    """Return the smallest text that is larger than all texts that begin with `stem`.

    It is at most as long as `stem`, and empty if there is none.
    """
    while stem and ord(stem[-1]) == _LAST_POINT:
        stem = stem[:-1]
    point = ord(stem[-1]) + 1 if stem else 0
    return stem[:-1] + chr(_SURROGATES.stop if point in _SURROGATES else point) if stem else ""


def _page(
    keys: KeyRange, retrier: Retrier, *, above: str | None = None, limit: int = 1000
) -> dict[str, Any]:
    for attempt in retrier.attempts(gate=_gate):
        with attempt as left:
            page = s3.page(keys.bucket, keys.prefix, timeout_s=left, above=above, limit=limit)
    return page


def _head(bucket: str, key: str, retrier: Retrier) -> dict[str, Any] | None:
    for attempt in retrier.attempts(gate=_gate):
        with attempt as left:
            head = s3.find(bucket, key, timeout_s=left)
    return head


def _find_full_range(url: str, retrier: Retrier) -> KeyRange | None:
    """Return the range of all keys of a source, or None if they fit one page."""
    bucket, key = urls.split_bucket(url)
    keys = _make_range(bucket, key)
    first = _page(keys, retrier)
    if not first.get("Contents") and urls.has_magic(url) and _head(bucket, key, retrier) is None:
        base, pattern = urls.split_at_magic(url)
        keys = replace(_make_range(*urls.split_bucket(base)), pattern=pattern)
        first = _page(keys, retrier)
    return keys if first.get("IsTruncated") else None


def _make_range(bucket: str, key: str) -> KeyRange:
    return KeyRange(bucket, f"{key}/" if key else "")


def _list_folders(keys: KeyRange, retrier: Retrier) -> list[str]:
    """Return sorted folders of a prefix, level by level, until there are enough.

    The search also ends after too many requests. A page without folders ends the search in its
    folder, since its objects are better split by probing.
    """
    folders: list[str] = []
    level, requests = [keys.prefix], _MAX_REQUESTS
    while level and len(folders) < _ENOUGH_FOLDERS and requests > 0:
        subfolders: list[str] = []
        for folder in level:
            for page in s3.pages(keys.bucket, folder, retrier, gate=_gate, delimiter="/"):
                requests -= 1
                subfolders += [item["Prefix"] for item in page.get("CommonPrefixes", ())]
                if requests <= 0 or not page.get("CommonPrefixes"):
                    break
            if requests <= 0:
                break
        folders += subfolders
        level = subfolders
    return sorted(folders)


def _cut_at_folders(keys: KeyRange, folders: list[str]) -> list[KeyRange]:
    """Split a range at folders, with about the same number of folders in each part."""
    step = -(-(len(folders) + 1) // _MAX_RANGES)
    edges = [keys.after, *folders[step - 1 :: step], keys.until]
    return [replace(keys, after=after, until=until) for after, until in pairwise(edges)]


def _iter_objects(bucket: str, page: dict[str, Any]) -> Iterator[ObjectInfo]:
    """Yield the files on one page of an S3 listing."""
    for item in page.get("Contents", ()):
        # Consoles mark an empty folder with an empty object whose key ends in a slash.
        if not (item["Key"].endswith("/") and item["Size"] == 0):
            yield ObjectInfo(f"s3://{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))


def _limit_page(until: str, page: dict[str, Any]) -> dict[str, Any]:
    return {"Contents": [item for item in page.get("Contents", ()) if item["Key"] <= until]}
