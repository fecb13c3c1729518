"""Zip files: members listed from the central directory, unpacked from their own ranges. Knows what is refused, and why.

What claims to unpack to more than `max_ratio` allows is `image_too_large`, as every other crossing of an intake limit; what only a
hostile or broken writer makes (links, overlapping entries, unsafe names) is `unsafe_member`.
"""

import stat
from array import array
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ray_app.archives.containers.container import Container
from ray_app.archives.containers.entries import Entry, members_of, size_of
from ray_app.archives.containers.sidecars import as_text, sidecar_column
from ray_app.archives.containers.windows import WindowReader
from ray_app.archives.containers.zip_directory import Directory, ZipEntry, find_directory, read_entries
from ray_app.archives.containers.zip_local import HEADER, LONGEST_AROUND, METHODS, unpacked
from ray_app.archives.members import Listed, Place, Refused
from ray_app.errors import InputError, SourceError, Status
from ray_app.storage import Fetcher
from ray_app.storage.ranged import RangedFile

_ENCRYPTED = 0x1 | 0x40 | 0x2000  # the data, strongly, the directory itself
_ALWAYS_ALLOWED = 10**6  # a megabyte is dangerous from nothing


def index(container: Container, fetcher: Fetcher) -> Iterator[Listed]:
    """Every member; read are the directory at the file's end and, in its windows, the sidecars."""
    return members_of(container, _entries(container, fetcher))


def reader(fetcher: Fetcher, max_bytes: int) -> WindowReader:
    """Reads runs of neighbouring members with one request; each is unpacked to its declared size at most."""
    return WindowReader(fetcher, max_bytes, lambda member, data: unpacked(data, member.size_bytes))


def _entries(container: Container, fetcher: Fetcher) -> Iterator[Entry]:
    size = size_of(container, fetcher)
    listing, content = (fetcher.open(container.uri, container.version, size) for _ in range(2))
    directory = find_directory(listing, size)
    spans = _Spans(listing, directory)
    max_ratio = container.limits.max_ratio
    if spans.unpacked > max(_ALWAYS_ALLOWED, size * max_ratio):
        reason = (
            f"its {size} bytes claim to unpack to {spans.unpacked}, over container_limits.max_ratio ({max_ratio:g}); no member is listed"
        )
        raise InputError(Status.IMAGE_TOO_LARGE, reason, limit=max_ratio, observed=spans.unpacked / size)
    for number, entry in enumerate(read_entries(listing, directory)):
        is_folder = entry.name.endswith("/") or _unix_type(entry) == stat.S_IFDIR
        if is_folder and not entry.size:
            continue
        refused = _refusal(entry, is_folder, spans, number, max_ratio)
        place = Place("zip", entry.offset, int(spans.lengths[number]))
        text: str | None = None
        if refused is None and sidecar_column(entry.name, entry.size):
            text = _text(content, place, entry.size)
        yield Entry(entry.name, entry.size, place, refused, text)


class _Spans:
    """Where all entries lie, from a first pass over the directory: 25 bytes per entry."""

    def __init__(self, file: RangedFile, directory: Directory) -> None:
        starts, ends = array("q"), array("q")
        self.unpacked = 0
        try:
            for entry in read_entries(file, directory):
                starts.append(entry.offset)
                ends.append(entry.offset + HEADER.size + entry.name_bytes + entry.packed)
                self.unpacked += entry.size
        except SourceError:
            raise  # a second pass may come further, to entries that have no span
        except InputError:
            pass  # the second pass comes to the same place and says so
        begin, end = np.array(starts, np.int64), np.array(ends, np.int64)
        self.outside = end > directory.start
        self.overlapping = _overlapping(begin, np.where(self.outside, begin, end))
        following = np.append(np.sort(begin), directory.start)
        after = following[np.searchsorted(following[:-1], begin, side="right")]
        self.lengths = np.minimum(np.minimum(np.maximum(after, end), end + LONGEST_AROUND), directory.start) - begin


def _overlapping(begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which entries begin before one that begins earlier has ended."""
    order = np.argsort(begin, kind="stable")
    reach = np.maximum.accumulate(end[order])
    found = np.zeros(len(begin), bool)
    found[order[1:]] = begin[order[1:]] < reach[:-1]
    return found


def _refusal(entry: ZipEntry, is_folder: bool, spans: _Spans, number: int, max_ratio: float) -> Refused | None:
    kind = _unix_type(entry)
    if entry.flags & _ENCRYPTED:
        return Refused(Status.ENCRYPTED_MEMBER, "it is encrypted")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return Refused(Status.UNSAFE_MEMBER, "a symbolic link" if kind == stat.S_IFLNK else "a device, pipe or socket")
    if is_folder:
        return Refused(Status.UNSAFE_MEMBER, "a folder that has data")
    if spans.outside[number]:
        return Refused(Status.CORRUPT_IMAGE, "its data would lie outside the archive's")
    if spans.overlapping[number]:
        return Refused(Status.UNSAFE_MEMBER, "it overlaps another member")
    if entry.method not in METHODS:
        return Refused(Status.UNSUPPORTED_FORMAT, f"zip compression method {entry.method}")
    if entry.packed > 2 * entry.size + LONGEST_AROUND:
        return Refused(Status.UNSAFE_MEMBER, f"{entry.packed} packed bytes for {entry.size} unpacked ones")
    if entry.size > max(_ALWAYS_ALLOWED, entry.packed * max_ratio):
        return Refused(
            Status.IMAGE_TOO_LARGE, f"{entry.packed} bytes claim to unpack to {entry.size}, over container_limits.max_ratio ({max_ratio:g})"
        )
    return None


def _unix_type(entry: ZipEntry) -> int:
    return stat.S_IFMT(entry.attributes >> 16) if entry.made_on_unix else 0


def _text(file: RangedFile, place: Place, size: int) -> str | None:
    file.seek(place.offset)
    found = unpacked(file.read(place.length), size)
    return as_text(found) if isinstance(found, bytes) else None
