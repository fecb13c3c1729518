"""List S3 prefixes by continuation tokens, whole or divided at their folders.

`list_prefix` lists a whole prefix. `divide_prefix` divides a large prefix at its folders, so that
the parts can be listed in parallel. `PrefixReader` reads one of them until it is stopped.

Some stores do not list keys in the order of their bytes (stores with real folders, S3 Express), and
some ignore `start-after`. So nothing here depends on the order of keys, except if a store names no
continuation token (`s3.find_next`), which then checks the order.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from ray_app.errors import ConfigError, StorageError
from ray_app.storage import errors, s3, urls
from ray_app.storage.place import ObjectInfo
from ray_app.storage.retry import AdaptiveLimiter, Retrier, RetryPolicy

PATIENCE = RetryPolicy(attempts=6, base_s=0.25, cap_s=10.0, deadline_s=300.0)
# Folders are divided until there are enough for any cluster to share. A folder stays whole if its
# own listing has too many pages, or if it has too many folders: each costs a request, however few
# files it has.
_ENOUGH_PREFIXES, _MAX_PREFIXES, _MAX_FOLDER_PAGES, _MAX_FOLDERS_LISTED = 64, 2048, 3, 64
# Threads of a process list prefixes in parallel. This limits them after a throttle.
_gate = AdaptiveLimiter(64)


@dataclass(frozen=True, slots=True)
class KeyPrefix:
    """The keys of an S3 bucket that begin with a prefix, or the part of them that is not listed yet.

    Attributes:
        is_flat: Whether only keys without a slash after the prefix belong to it.
        pattern: A pattern that the path below `root` must match. None accepts all keys.
        root: The prefix of the source, at which the paths of the pattern begin.
        position: Where the listing continues (`s3.find_next`). None begins with the first page.
        listed: The number of keys before `position`.
    """

    bucket: str
    prefix: str
    is_flat: bool = False
    pattern: str | None = None
    root: str = ""
    position: s3.Position | None = None
    listed: int = 0


def list_prefix(url: str) -> Iterator[ObjectInfo]:
    """Yield the objects below an S3 prefix as the store orders them.

    If there are none, the object whose key is the prefix itself is yielded, if it exists.
    """
    bucket, key = urls.split_bucket(url)
    is_empty = True
    for info in PrefixReader(_make_prefix(bucket, key)):
        is_empty = False
        yield info
    if is_empty and key and (single := find_object(url)) is not None:
        yield single


def find_object(url: str) -> ObjectInfo | None:
    """Return the object with a name as a listing would return it, or None if there is none."""
    bucket, key = urls.split_bucket(url)
    try:
        head = _head(bucket, key, Retrier(PATIENCE))
    except Exception as error:
        raise errors.make_unreachable_error(error, url, "read") from error
    if head is None:
        return None
    size = head["ContentLength"]
    return ObjectInfo(f"s3://{bucket}/{key}", size, s3.get_version(head, size))


def divide_prefix(source: str) -> list[KeyPrefix]:
    """Divide a large S3 prefix at its folders into prefixes that can be listed in parallel.

    The prefixes have each key once, in order. The list is empty if the source is not on S3, or if
    its listing has only one page.
    """
    url = urls.canonicalize(source)
    if urls.get_scheme(url) != "s3":
        return []
    try:
        retrier = Retrier(PATIENCE)
        whole = _find_whole_prefix(url, retrier)
        return [] if whole is None else _divide_at_folders(whole, retrier)
    except (ConfigError, StorageError):
        raise
    except Exception as error:
        raise errors.make_unreachable_error(error, url, "list") from error


class PrefixReader:
    """An iterable of the files with one prefix, as the store orders them. It can be iterated once.

    Pages of the listing (up to 1000 keys each) are read until the end of the prefix, or until
    `stop` is called. Another reader of `rest` then yields the remaining files. Iterating raises
    ConfigError or StorageError if the listing fails.
    """

    def __init__(self, keys: KeyPrefix) -> None:
        self._keys, self._stops = keys, False
        self.rest: KeyPrefix | None = None

    def stop(self) -> None:
        """Stop the iteration at the end of the page, so that `rest` has the unread part."""
        self._stops = True

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
        keys, listed = self._keys, self._keys.listed
        matches = None if keys.pattern is None else urls.make_full_matcher(keys.pattern)
        path_start = len(f"s3://{keys.bucket}/{keys.root}")
        for page, following in _iter_pages(keys, Retrier(PATIENCE)):
            for info in _iter_objects(keys.bucket, page):
                if matches is None or matches(info.uri[path_start:]):
                    yield info
            listed += len(page.get("Contents", ()))
            if self._stops and following is not None:
                self.rest = replace(keys, position=following, listed=listed)
                return


def _iter_pages(
    keys: KeyPrefix, retrier: Retrier, *, delimiter: str = ""
) -> Iterator[tuple[dict[str, Any], s3.Position | None]]:
    return s3.pages(
        keys.bucket,
        keys.prefix,
        retrier,
        gate=_gate,
        delimiter="/" if keys.is_flat else delimiter,
        position=keys.position,
    )


def _head(bucket: str, key: str, retrier: Retrier) -> dict[str, Any] | None:
    for attempt in retrier.attempts(gate=_gate):
        with attempt as left:
            head = s3.find(bucket, key, timeout_s=left)
    return head


def _find_whole_prefix(url: str, retrier: Retrier) -> KeyPrefix | None:
    """Return the prefix of all keys of a source, or None if they fit one page."""
    bucket, key = urls.split_bucket(url)
    keys = _make_prefix(bucket, key)
    first, following = next(_iter_pages(keys, retrier))
    if not first.get("Contents") and urls.has_magic(url) and _head(bucket, key, retrier) is None:
        base, pattern = urls.split_at_magic(url)
        keys = replace(_make_prefix(*urls.split_bucket(base)), pattern=pattern)
        first, following = next(_iter_pages(keys, retrier))
    return None if following is None else keys


def _make_prefix(bucket: str, key: str) -> KeyPrefix:
    prefix = f"{key}/" if key else ""
    return KeyPrefix(bucket, prefix, root=prefix)


def _divide_at_folders(whole: KeyPrefix, retrier: Retrier) -> list[KeyPrefix]:
    """Divide a prefix at its folders, level by level, until there are enough prefixes."""
    divided: list[KeyPrefix] = []
    level, n_listed = [whole], 0
    while level and len(divided) + len(level) < _ENOUGH_PREFIXES:
        next_level: list[KeyPrefix] = []
        for folder in level:
            n_listed += 1
            parts = [] if n_listed > _MAX_FOLDERS_LISTED else _list_folder(folder, retrier)
            if len(divided) + len(next_level) + len(parts) > _MAX_PREFIXES:
                parts = []
            divided += [part for part in parts if part.is_flat] if parts else [folder]
            next_level += [part for part in parts if not part.is_flat]
        level = next_level
    return sorted([*divided, *level], key=lambda keys: keys.prefix)


def _list_folder(folder: KeyPrefix, retrier: Retrier) -> list[KeyPrefix]:
    """Return the prefixes of the folders in a folder, and the flat prefix of its own files.

    Empty if the folder has no folders, or if its listing is too long.
    """
    pages = list(islice(_iter_pages(folder, retrier, delimiter="/"), _MAX_FOLDER_PAGES))
    names = {item["Prefix"] for page, _ in pages for item in page.get("CommonPrefixes", ())}
    if pages[-1][1] is not None or not names:
        return []
    flat = [replace(folder, is_flat=True)] if any(page.get("Contents") for page, _ in pages) else []
    return [*flat, *(replace(folder, prefix=name) for name in names)]


def _iter_objects(bucket: str, page: dict[str, Any]) -> Iterator[ObjectInfo]:
    """Yield the files on one page of an S3 listing."""
    for item in page.get("Contents", ()):
        # Consoles mark an empty folder with an empty object whose key ends in a slash.
        if not (item["Key"].endswith("/") and item["Size"] == 0):
            yield ObjectInfo(
                f"s3://{bucket}/{item['Key']}", item["Size"], s3.get_version(item, item["Size"])
            )
