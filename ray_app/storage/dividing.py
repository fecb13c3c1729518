"""A large S3 source cut into ranges of keys that can be listed side by side, by any number of processes. Reads no file.

The ranges follow each other in key order and leave nothing out, so that together they tell what one listing tells, in its order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from ray_app.errors import ConfigError, StorageError
from ray_app.storage import s3
from ray_app.storage.errors import is_missing, unreachable
from ray_app.storage.globs import full_matcher, has_magic, split_at_magic
from ray_app.storage.in_order import in_order
from ray_app.storage.listing import PATIENCE, ObjectInfo, objects_of
from ray_app.storage.locations import bucket_and_key, canonical, scheme_of
from ray_app.storage.retrying import Call, Retrier

# Enough ranges for any cluster to share, few enough to be planned by one process; and what looking for them may cost.
_MAX_RANGES, _ENOUGH_FOLDERS, _MAX_REQUESTS = 256, 64, 64
_RANGES_AT_ONCE, _PAGES_AHEAD = 8, 32


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys of a prefix that come after `after`, up to and with `until`; None = from its first, to its last.

    `pattern` is compared with the path below the prefix.
    """

    bucket: str
    prefix: str
    after: str | None = None
    until: str | None = None
    pattern: str | None = None


def list_divisions(source: str) -> list[KeyRange]:
    """The ranges that make up a source of more than one page, cut at its folders; none where one listing does as well.

    Raises StorageError when the store is out of reach or refuses.
    """
    place = canonical(source)
    if scheme_of(place) != "s3":
        return []
    try:
        call = Retrier(PATIENCE).call
        whole = _whole(place, call)
        return [] if whole is None else _cut(whole, _folders(whole, call, _ENOUGH_FOLDERS, _MAX_REQUESTS))
    except (ConfigError, StorageError):
        raise
    except Exception as error:
        raise unreachable(error, place, "list") from error


def list_range(keys: KeyRange) -> Iterator[ObjectInfo]:
    """Every file of one range, sorted by uri. A long one is read at several places at once. Raises as `list_objects`."""
    matches = (lambda _: True) if keys.pattern is None else full_matcher(keys.pattern)
    skipped = len(keys.prefix)
    call = Retrier(PATIENCE).call
    try:
        for page in _pages(keys, call):
            for item, info in ((info.uri.partition("://")[2].partition("/")[2], info) for info in objects_of(keys.bucket, page)):
                if matches(item[skipped:]):
                    yield info
    except (ConfigError, StorageError):
        raise
    except Exception as error:
        raise unreachable(error, f"s3://{keys.bucket}/{keys.prefix}", "list") from error


def _whole(place: str, call: Call) -> KeyRange | None:
    """All keys of a source; None where they fit one page."""
    bucket, key = bucket_and_key(place)
    keys = KeyRange(bucket, f"{key}/" if key else "")
    first = call(lambda left: s3.page(bucket, keys.prefix, timeout_s=left))
    if not first.get("Contents") and has_magic(place) and not _exists(bucket, key, call):
        base, pattern = split_at_magic(place)
        _, key = bucket_and_key(base)
        keys = KeyRange(bucket, f"{key}/" if key else "", pattern=pattern)
        first = call(lambda left: s3.page(bucket, keys.prefix, timeout_s=left))
    return keys if first.get("IsTruncated") else None


def _exists(bucket: str, key: str, call: Call) -> bool:
    try:
        call(lambda left: s3.head(bucket, key, timeout_s=left))
    except Exception as error:
        if is_missing(error):
            return False
        raise
    return True


def _folders(keys: KeyRange, call: Call, enough: int, requests: int) -> list[str]:
    """Folders of a range, level by level until there are enough of them, or finding more costs too much; sorted."""
    found: list[str] = []
    level = [keys.after if keys.after is not None and keys.after.endswith("/") else keys.prefix]
    while level and len(found) < enough and requests > 0:
        below: list[str] = []
        for folder in level:
            for page in s3.pages(keys.bucket, folder, call, delimiter="/"):
                requests -= 1
                below += [item["Prefix"] for item in page.get("CommonPrefixes", ()) if _is_inside(item["Prefix"], keys)]
                if requests <= 0:
                    break
            if requests <= 0:
                break
        found += below
        level = below
    return sorted(found)


def _is_inside(key: str, keys: KeyRange) -> bool:
    return (keys.after is None or key > keys.after) and (keys.until is None or key < keys.until)


def _cut(keys: KeyRange, folders: list[str]) -> list[KeyRange]:
    """The range in stretches that end at folders, evenly many to each."""
    step = -(-(len(folders) + 1) // _MAX_RANGES)
    edges = [keys.after, *folders[step - 1 :: step], keys.until]
    return [replace(keys, after=after, until=until) for after, until in pairwise(edges)]


def _pages(keys: KeyRange, call: Call) -> Iterator[dict[str, Any]]:
    """One request for a short range; a long one is cut again at the folders in it, which are read side by side and told in order."""
    first = call(lambda left: s3.page(keys.bucket, keys.prefix, timeout_s=left, above=keys.after))
    if not first.get("IsTruncated") or _ends_in(first, keys):
        yield _up_to(keys.until, first)
        return
    parts = _cut(keys, _folders(keys, call, _RANGES_AT_ONCE, _RANGES_AT_ONCE))
    yield from in_order((_range_pages(part, call) for part in parts), at_once=_RANGES_AT_ONCE, ahead=_PAGES_AHEAD)


def _range_pages(keys: KeyRange, call: Call) -> Iterator[dict[str, Any]]:
    for page in s3.pages(keys.bucket, keys.prefix, call, above=keys.after):
        yield _up_to(keys.until, page)
        if _ends_in(page, keys):
            return


def _ends_in(page: dict[str, Any], keys: KeyRange) -> bool:
    contents = page.get("Contents", ())
    return keys.until is not None and bool(contents) and contents[-1]["Key"] >= keys.until


def _up_to(until: str | None, page: dict[str, Any]) -> dict[str, Any]:
    return page if until is None else {"Contents": [item for item in page.get("Contents", ()) if item["Key"] <= until]}
