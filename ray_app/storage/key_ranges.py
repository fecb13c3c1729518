"""Listing S3: `list_prefix` in the order of keys; and large prefixes in ranges of keys, to be
listed side by side: `list_divisions` cuts one at its folders, `split_range` where keys are found by
probing; `RangeReader` reads one, as far as is wanted.

The ranges of a prefix follow each other in key order and leave nothing out: together they give the
one listing, in its order, wherever they were cut. An edge need not be a key. Python compares texts
by code points, which is the order of their UTF-8, and so that of S3.

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
from ray_app.storage.retry import Gate, Retrier, RetryPolicy

PATIENCE = RetryPolicy(attempts=6, base_s=0.25, cap_s=10.0, deadline_s=300.0)
# Enough ranges for any cluster to share, few enough to be planned by one process; and what looking
# for them may cost.
_MAX_RANGES, _ENOUGH_FOLDERS, _MAX_REQUESTS = 256, 64, 64
_LETTERS = 64  # that are distinguished at one position of the keys, unless more pieces are wanted
_LAST_POINT, _SURROGATES = 0x10FFFF, range(0xD800, 0xE000)
# Several threads of a process list ranges side by side: fewer after a throttle, then slowly more.
_gate = Gate(64)


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys of a prefix that come after `after`, up to and with `until`; None = from its first,
    to its last.

    `pattern` is compared with the path below the prefix.
    """

    bucket: str
    prefix: str
    after: str | None = None
    until: str | None = None
    pattern: str | None = None


def list_prefix(place: str) -> Iterator[ObjectInfo]:
    """The objects below a prefix in the order of their keys, or the one object of that name; a page
    after the other.
    """
    bucket, key = urls.bucket_and_key(place)
    empty = True
    for info in RangeReader(_below(bucket, key)):
        empty = False
        yield info
    if empty and key and (found := _object_at(place)) is not None:
        yield found


def _object_at(place: str) -> ObjectInfo | None:
    """The one object of that name, as a listing of now would have it; None where there is none.
    Raises StorageError.
    """
    bucket, key = urls.bucket_and_key(place)
    try:
        found = _head(bucket, key, Retrier(PATIENCE))
    except Exception as error:
        raise errors.unreachable(error, place, "look at") from error
    return (
        None
        if found is None
        else ObjectInfo(f"s3://{bucket}/{key}", found["ContentLength"], found["ETag"].strip('"'))
    )


def list_divisions(source: str) -> list[KeyRange]:
    """The ranges that make up a source of more than one page, cut at its folders; none where one
    listing does as well.

    Raises StorageError when the store is out of reach or refuses.
    """
    place = urls.canonical(source)
    if urls.scheme_of(place) != "s3":
        return []
    try:
        retrier = Retrier(PATIENCE)
        whole = _whole(place, retrier)
        return [] if whole is None else _cut(whole, _folders(whole, retrier))
    except (ConfigError, StorageError):
        raise
    except Exception as error:
        raise errors.unreachable(error, place, "list") from error


class RangeReader:
    """The files of one range, sorted by uri; iterated once, a page at a time, until `stop` is
    called.

    `rest`: what was not read, None where that is nothing. Raises as `list_objects`.
    """

    def __init__(self, keys: KeyRange) -> None:
        self._keys = keys
        self._stops = self._stops_here = False
        self.rest: KeyRange | None = None

    def stop(self, *, here: bool = False) -> None:
        """Read no further than to the end of the page; `here`: behind the file that came last,
        whose page is then asked for again.
        """
        self._stops, self._stops_here = True, here

    def __iter__(self) -> Iterator[ObjectInfo]:
        keys = self._keys
        try:
            yield from self._files()
        except (ConfigError, StorageError):
            raise
        except Exception as error:
            raise errors.unreachable(error, f"s3://{keys.bucket}/{keys.prefix}", "list") from error

    def _files(self) -> Iterator[ObjectInfo]:
        keys = self._keys
        matches = None if keys.pattern is None else urls.full_matcher(keys.pattern)
        place, last = len(f"s3://{keys.bucket}/"), keys.after or ""
        for page in s3.pages(
            keys.bucket, keys.prefix, Retrier(PATIENCE), gate=_gate, above=keys.after
        ):
            contents = page.get("Contents")
            last = contents[-1]["Key"] if contents else last
            is_end = not page.get("IsTruncated") or (keys.until is not None and last >= keys.until)
            for info in _objects_of(
                keys.bucket,
                page if keys.until is None or last <= keys.until else _up_to(keys.until, page),
            ):
                key = info.uri[place:]
                if matches is None or matches(key[len(keys.prefix) :]):
                    yield info
                    if self._stops_here:
                        self.rest = replace(keys, after=key)
                        return
            if is_end:
                return
            if self._stops:
                self.rest = replace(keys, after=last)
                return


def split_range(keys: KeyRange, pieces: int) -> list[KeyRange]:
    """A range in about so many, of equal size where keys are spread evenly over their letters;
    itself where it has no two keys to part.

    Keys are found by requests for one each. From a known key on, these find how many of its first
    letters all keys behind it share; then, one after the other, which letters follow there: of
    numbered keys some 15 requests for ten pieces. Raises StorageError.
    """
    probe = _Probe(keys, most=2 * max(pieces, _LETTERS) + 16)
    try:
        first = (
            keys.after
            if keys.after is not None and keys.after.startswith(keys.prefix)
            else probe.behind(keys.after or "")
        )
        ranges = [(keys, first)]
        while len(ranges) < pieces / 2:
            divided = [
                part for whole, known in ranges for part in _parted(whole, known, probe, pieces)
            ]
            if len(divided) == len(ranges):
                break
            ranges = divided
    except Exception as error:
        raise errors.unreachable(error, f"s3://{keys.bucket}/{keys.prefix}", "list") from error
    return [one for one, _ in ranges]


class _Probe:
    """Asks for single keys of a range, `most` times; after that there seem to be none."""

    def __init__(self, keys: KeyRange, most: int) -> None:
        self._keys, self._left, self._retrier = keys, most, Retrier(PATIENCE)

    def behind(self, text: str) -> str | None:
        """The first key after `text`, as far as the range goes."""
        if self._left <= 0:
            return None
        self._left -= 1
        page = _page(self._keys, self._retrier, above=text, limit=1)
        found = [item["Key"] for item in page.get("Contents", ())]
        return (
            found[0]
            if found and (self._keys.until is None or found[0] <= self._keys.until)
            else None
        )

    def behind_all(self, stem: str) -> str | None:
        """The first key after all that begin with `stem`."""
        following = _successor(stem)
        return None if len(following) <= len(self._keys.prefix) else self.behind(following)


def _parted(
    keys: KeyRange, known: str | None, probe: _Probe, pieces: int
) -> list[tuple[KeyRange, str | None]]:
    """A range parted where its keys first differ, each part with a key that it begins with; `known`
    is such a key of the range itself.
    """
    if known is None:
        return [(keys, None)]
    shared, end = len(keys.prefix), len(known)
    following: str | None = None
    while shared < end:
        middle = (shared + end) // 2
        found = _beginning(keys, probe.behind_all(known[: middle + 1]), middle + 1)
        if found is None:
            shared = middle + 1
        else:
            end, following = middle, found
    if following is None:  # those that are left begin with all of `known`
        following = _beginning(keys, probe.behind(known), shared + 1)
    cuts: list[tuple[str, str]] = []  # edges, and the first key behind each
    while (
        following is not None
        and len(cuts) < max(pieces, _LETTERS)
        and following[: shared + 1] > (keys.after or "")
    ):
        cuts.append((following[: shared + 1], following))
        following = _beginning(keys, probe.behind_all(cuts[-1][0]), shared + 1)
    step = -(-(len(cuts) + 1) // (2 * pieces))
    cuts = cuts[step - 1 :: step]
    edges = [keys.after, *(edge for edge, _ in cuts), keys.until]
    return [
        (replace(keys, after=after, until=until), first)
        for (after, until), first in zip(
            pairwise(edges), [known, *(first for _, first in cuts)], strict=True
        )
    ]


def _beginning(keys: KeyRange, key: str | None, length: int) -> str | None:
    """A key whose first letters are a place to cut the range at; a key that is its last one, and no
    longer than they are, is not.
    """
    return None if key is None or (keys.until is not None and key[:length] >= keys.until) else key


def _successor(stem: str) -> str:
    """The least text of its length that is larger than all that begin with `stem`; shorter where
    there is none.
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
            found = s3.found(bucket, key, timeout_s=left)
    return found


def _whole(place: str, retrier: Retrier) -> KeyRange | None:
    """All keys of a source; None where they fit one page."""
    bucket, key = urls.bucket_and_key(place)
    keys = _below(bucket, key)
    first = _page(keys, retrier)
    if not first.get("Contents") and urls.has_magic(place) and _head(bucket, key, retrier) is None:
        base, pattern = urls.split_at_magic(place)
        keys = replace(_below(*urls.bucket_and_key(base)), pattern=pattern)
        first = _page(keys, retrier)
    return keys if first.get("IsTruncated") else None


def _below(bucket: str, key: str) -> KeyRange:
    return KeyRange(bucket, f"{key}/" if key else "")


def _folders(keys: KeyRange, retrier: Retrier) -> list[str]:
    """Folders of a prefix, level by level until there are enough of them, or finding more costs too
    much; sorted.

    A page without any ends the search in its folder: what lies there side by side is better parted
    by probing.
    """
    found: list[str] = []
    level, requests = [keys.prefix], _MAX_REQUESTS
    while level and len(found) < _ENOUGH_FOLDERS and requests > 0:
        below: list[str] = []
        for folder in level:
            for page in s3.pages(keys.bucket, folder, retrier, gate=_gate, delimiter="/"):
                requests -= 1
                below += [item["Prefix"] for item in page.get("CommonPrefixes", ())]
                if requests <= 0 or not page.get("CommonPrefixes"):
                    break
            if requests <= 0:
                break
        found += below
        level = below
    return sorted(found)


def _cut(keys: KeyRange, folders: list[str]) -> list[KeyRange]:
    """The range in stretches that end at folders, evenly many to each."""
    step = -(-(len(folders) + 1) // _MAX_RANGES)
    edges = [keys.after, *folders[step - 1 :: step], keys.until]
    return [replace(keys, after=after, until=until) for after, until in pairwise(edges)]


def _objects_of(bucket: str, page: dict[str, Any]) -> Iterator[ObjectInfo]:
    """The files on one page of an S3 listing."""
    for item in page.get("Contents", ()):
        # Consoles mark an empty folder by an empty object whose key ends in a slash.
        if not (item["Key"].endswith("/") and item["Size"] == 0):
            yield ObjectInfo(f"s3://{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))


def _up_to(until: str, page: dict[str, Any]) -> dict[str, Any]:
    return {"Contents": [item for item in page.get("Contents", ()) if item["Key"] <= until]}
