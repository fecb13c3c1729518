"""Zip files: `index` lists members from the central directory, `reader` unpacks them from their own ranges.

Source of the layout: PKWARE APPNOTE 6.3.10, 4.3 and 4.5.3. `zipfile` is not used for it: it holds the whole directory in memory before any
limit can be checked, and one bad name spoils the archive. What claims to unpack to more than `max_ratio` allows is `image_too_large`, as
every other crossing of an intake limit; what only a hostile or broken writer makes (links, overlapping entries, unsafe names) is
`unsafe_member`.
"""

import bz2
import stat
import struct
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_app.archives.containers.base import Container, ContainerEntry, WindowReader, as_text, members_of, sidecar_column, size_of
from ray_app.archives.members import ListedMember, MemberLocation, RefusedMember
from ray_app.errors import InputError, SourceError, Status
from ray_app.storage import Fetcher, ranged

_END, _END_SIGNATURE = struct.Struct("<4s4H2LH"), b"PK\x05\x06"
_LOCATOR, _LOCATOR_SIGNATURE = struct.Struct("<4sLQL"), b"PK\x06\x07"
_END64, _END64_SIGNATURE = struct.Struct("<4sQ2H2L4Q"), b"PK\x06\x06"
_ENTRY, _ENTRY_SIGNATURE = struct.Struct("<4s6H3L5H2L"), b"PK\x01\x02"
_LOCAL_SIGNATURE = b"PK\x03\x04"
_LONGEST_COMMENT = 2**16 - 1
_SEE_EXTRA, _ZIP64_EXTRA = 2**32 - 1, 1
_MAX_SIZE = 2**56  # no disk holds more, and no sum of a few overflows

HEADER = struct.Struct("<4s5H3L2H")
_DESCRIPTOR = b"PK\x07\x08"
_LOCAL_ENCRYPTED = 0x1
_IN_DESCRIPTOR = 0x8  # bit 3: checksum and sizes stand behind the data
# The most that may stand around name and packed data: an extra field of 16-bit length, and a descriptor of zip64.
LONGEST_AROUND = 2**16 - 1 + 24

_ENCRYPTED = 0x1 | 0x40 | 0x2000  # the data, strongly, the directory itself
_ALWAYS_ALLOWED = 10**6  # a megabyte is dangerous from nothing


def index(container: Container, fetcher: Fetcher) -> Iterator[ListedMember]:
    """Every member; read are the directory at the file's end and, in its windows, the sidecars."""
    return members_of(container, _entries(container, fetcher))


def reader(fetcher: Fetcher, max_bytes: int) -> WindowReader:
    """Reads runs of neighbouring members with one request; each is unpacked to its declared size at most."""
    return WindowReader(fetcher, max_bytes, lambda member, data: unpacked(data, member.size_bytes))


def _entries(container: Container, fetcher: Fetcher) -> Iterator[ContainerEntry]:
    size = size_of(container, fetcher)
    listing, content = (fetcher.open(container.uri, container.version, size) for _ in range(2))
    directory = find_directory(listing, size)
    spans = _Spans(listing, directory)
    max_ratio = container.limits.max_ratio
    if spans.unpacked > max(_ALWAYS_ALLOWED, size * max_ratio):
        reason = f"its {size} bytes claim to unpack to {spans.unpacked}, over container_limits.max_ratio ({max_ratio:g}); no file is listed"
        raise InputError(Status.IMAGE_TOO_LARGE, reason, limit=max_ratio, observed=spans.unpacked / size)
    for number, entry in enumerate(read_entries(listing, directory)):
        is_folder = entry.name.endswith("/") or _unix_type(entry) == stat.S_IFDIR
        if is_folder and not entry.size:
            continue
        refused = _refusal(entry, is_folder, spans, number, max_ratio)
        place = MemberLocation("zip", entry.offset, int(spans.lengths[number]))
        text: str | None = None
        if refused is None and sidecar_column(entry.name, entry.size):
            text = _text(content, place, entry.size)
        yield ContainerEntry(entry.name, entry.size, place, refused, text)


@dataclass(frozen=True, slots=True)
class Directory:
    """Where the central directory lies. `shift`: bytes before the archive, such as the program of a self-extracting one."""

    start: int
    end: int
    entries: int
    shift: int


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One entry; `offset` is that of its local header in the file."""

    name: str
    name_bytes: int
    flags: int
    method: int
    packed: int
    size: int
    offset: int
    made_on_unix: bool
    attributes: int


def find_directory(file: ranged.RangedFile, size: int) -> Directory:
    """The directory that the end record names. Raises InputError: truncated_image or corrupt_image."""
    file.seek(max(0, size - _END.size - _LONGEST_COMMENT))
    place = file.tell()
    tail = file.read(_END.size + _LONGEST_COMMENT)
    found = tail.rfind(_END_SIGNATURE, 0, len(tail) - _END.size + 4)
    if found < 0:
        file.seek(0)
        if file.read(4) == _LOCAL_SIGNATURE:
            raise InputError(Status.TRUNCATED_IMAGE, "the zip archive ends before its directory")
        raise _unreadable("it has no end record")
    _, disk, first_disk, _, entries, length, start, _ = _END.unpack_from(tail, found)
    end = place + found
    if found >= _LOCATOR.size and tail[found - _LOCATOR.size :].startswith(_LOCATOR_SIGNATURE):
        end, disk, first_disk, entries, length, start = _zip64_end(file, tail[found - _LOCATOR.size : found], end - _LOCATOR.size)
    if disk or first_disk:
        raise _unreadable("it is one of several parts")
    shift = end - length - start
    if shift < 0 or length > end:
        raise _unreadable("its end record points outside the file")
    return Directory(end - length, end, entries, shift)


def _zip64_end(file: ranged.RangedFile, locator: bytes, place: int) -> tuple[int, int, int, int, int, int]:
    """The zip64 end record's own place and what it says."""
    stated = _LOCATOR.unpack(locator)[2]
    for at in (place - _END64.size, stated):  # before an archive that was put behind a program, the stated place is off
        if 0 <= at < place:
            file.seek(at)
            data = file.read(_END64.size)
            if len(data) == _END64.size and data.startswith(_END64_SIGNATURE):
                _, _, _, _, disk, first_disk, _, entries, length, start = _END64.unpack(data)
                return at, disk, first_disk, entries, length, start
    raise _unreadable("its zip64 end record is not where it should be")


def read_entries(file: ranged.RangedFile, directory: Directory) -> Iterator[ZipEntry]:
    """Every entry in the directory's order. Raises InputError (corrupt_image) where the directory is damaged or does not add up."""
    file.seek(directory.start)
    count = 0
    while file.tell() < directory.end:
        begin = file.tell()
        fixed = file.read(_ENTRY.size)
        if len(fixed) < _ENTRY.size or not fixed.startswith(_ENTRY_SIGNATURE):
            raise _unreadable(f"its directory is damaged at byte {begin}; files may be missing")
        fields = _ENTRY.unpack(fixed)
        name, extra = file.read(fields[10]), file.read(fields[11])
        file.seek(fields[12], 1)
        if file.tell() > directory.end:
            raise _unreadable(f"its directory is cut at byte {begin}; files may be missing")
        yield _entry(fields, name, extra, directory, begin)
        count += 1
    if (count - directory.entries) % 2**16:  # writers without zip64 let the number wrap around
        raise _unreadable(f"its end record counts {directory.entries} entries, its directory {count}; files may be missing")


def _entry(fields: tuple[int, ...], name: bytes, extra: bytes, directory: Directory, begin: int) -> ZipEntry:
    _, made_by, _, flags, method, _, _, _, packed, size, _, _, _, _, _, attributes, offset = fields
    wide = list(_zip64_fields(extra))
    if len(wide) < (size, packed, offset).count(_SEE_EXTRA):
        raise _unreadable(f"a zip64 entry without its sizes at byte {begin}; files may be missing")
    size, packed, offset = (wide.pop(0) if value == _SEE_EXTRA else value for value in (size, packed, offset))
    if max(size, packed, offset) >= _MAX_SIZE:
        raise _unreadable(f"impossible sizes at byte {begin}; files may be missing")
    # Bit 11: the name is UTF-8; without it the format says code page 437, which names every byte.
    text = name.decode("utf-8", "surrogateescape") if flags & 0x800 else name.decode("cp437")
    return ZipEntry(text, len(name), flags, method, packed, size, offset + directory.shift, made_by >> 8 == 3, attributes)


def _zip64_fields(extra: bytes) -> tuple[int, ...]:
    """The 64-bit numbers of the extra field with id 1: those of size, packed size and offset that had no room, in this order."""
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        body = extra[place + 4 : place + 4 + length]
        if kind == _ZIP64_EXTRA:
            return struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8])
        place += 4 + length
    return ()


def _unreadable(why: str) -> InputError:
    return InputError(Status.CORRUPT_IMAGE, f"not a readable zip archive: {why}")


def unpacked(data: bytes, size: int) -> bytes | InputError:
    """The file of `size` bytes whose local header starts `data`; bytes after it are no matter.

    An InputError is corrupt_image, truncated_image or unsupported_format.
    """
    if len(data) < HEADER.size or not data.startswith(_LOCAL_SIGNATURE):
        return InputError(Status.CORRUPT_IMAGE, "no local header where the zip's directory says that there is one")
    _, _, flags, method, _, _, crc, packed, _, name_bytes, extra_bytes = HEADER.unpack_from(data)
    begin = HEADER.size + name_bytes + extra_bytes
    if flags & _LOCAL_ENCRYPTED:
        return InputError(Status.ENCRYPTED_MEMBER, "it is encrypted, though the zip's directory does not say so")
    known = not flags & _IN_DESCRIPTOR and packed != _SEE_EXTRA
    if begin + (packed if known else 0) > len(data):
        return InputError(Status.CORRUPT_IMAGE, "its local header reaches into the next file")
    body = data[begin : begin + packed] if known else data[begin:]
    if method not in METHODS:
        return InputError(Status.UNSUPPORTED_FORMAT, f"zip compression method {method}")
    try:
        found, rest = METHODS[method](body, size)
    except (zlib.error, OSError, EOFError, ValueError) as error:
        return InputError(Status.CORRUPT_IMAGE, f"the packed data does not unpack: {error}")
    if len(found) > size:
        return InputError(Status.CORRUPT_IMAGE, f"it unpacks to more than the {size} bytes that the zip's directory says")
    if len(found) < size:
        return InputError(Status.TRUNCATED_IMAGE, f"it unpacks to {len(found)} of {size} bytes")
    if flags & _IN_DESCRIPTOR:
        crc = _described(rest)
    if zlib.crc32(found) != crc:
        return InputError(Status.CORRUPT_IMAGE, "its checksum does not match the one in the zip")
    return found


def _described(rest: bytes) -> int:
    """The checksum in a data descriptor, which may have a signature or not; -1 where there is none."""
    place = 4 if rest.startswith(_DESCRIPTOR) else 0
    return int.from_bytes(rest[place : place + 4], "little") if len(rest) >= place + 4 else -1


def _inflated(body: bytes, size: int) -> tuple[bytes, bytes]:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    return stream.decompress(body, size + 1), stream.unused_data


def _bunzipped(body: bytes, size: int) -> tuple[bytes, bytes]:
    stream = bz2.BZ2Decompressor()
    return stream.decompress(body, size + 1), stream.unused_data


# size + 1 bytes at most: what is more shows that the declared size was a lie.
METHODS: dict[int, Callable[[bytes, int], tuple[bytes, bytes]]] = {
    0: lambda body, size: (body[:size], body[size:]),
    8: _inflated,
    12: _bunzipped,
}


class _Spans:
    """Where all entries lie, from a first pass over the directory: 25 bytes per entry."""

    def __init__(self, file: ranged.RangedFile, directory: Directory) -> None:
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


def _refusal(entry: ZipEntry, is_folder: bool, spans: _Spans, number: int, max_ratio: float) -> RefusedMember | None:
    kind = _unix_type(entry)
    if entry.flags & _ENCRYPTED:
        return RefusedMember(Status.ENCRYPTED_MEMBER, "it is encrypted")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return RefusedMember(Status.UNSAFE_MEMBER, "a symbolic link" if kind == stat.S_IFLNK else "a device, pipe or socket")
    if is_folder:
        return RefusedMember(Status.UNSAFE_MEMBER, "a folder that has data")
    if spans.outside[number]:
        return RefusedMember(Status.CORRUPT_IMAGE, "its data would lie outside the archive's")
    if spans.overlapping[number]:
        return RefusedMember(Status.UNSAFE_MEMBER, "it overlaps another file in the archive")
    if entry.method not in METHODS:
        return RefusedMember(Status.UNSUPPORTED_FORMAT, f"zip compression method {entry.method}")
    if entry.packed > 2 * entry.size + LONGEST_AROUND:
        return RefusedMember(Status.UNSAFE_MEMBER, f"{entry.packed} packed bytes for {entry.size} unpacked ones")
    if entry.size > max(_ALWAYS_ALLOWED, entry.packed * max_ratio):
        return RefusedMember(
            Status.IMAGE_TOO_LARGE, f"{entry.packed} bytes claim to unpack to {entry.size}, over container_limits.max_ratio ({max_ratio:g})"
        )
    return None


def _unix_type(entry: ZipEntry) -> int:
    return stat.S_IFMT(entry.attributes >> 16) if entry.made_on_unix else 0


def _text(file: ranged.RangedFile, place: MemberLocation, size: int) -> str | None:
    file.seek(place.offset)
    found = unpacked(file.read(place.length), size)
    return as_text(found) if isinstance(found, bytes) else None
