"""A zip's central directory, entry by entry: what is in the archive and where. Knows the format's records; unpacks nothing.

Source of the layout: PKWARE APPNOTE 6.3.10, 4.3 and 4.5.3. `zipfile` is not used for it: it holds the whole directory in
memory before any limit can be checked, and one bad name spoils the archive.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ray_app.errors import InputError, Status
from ray_app.storage.ranged import RangedFile

_END, _END_SIGNATURE = struct.Struct("<4s4H2LH"), b"PK\x05\x06"
_LOCATOR, _LOCATOR_SIGNATURE = struct.Struct("<4sLQL"), b"PK\x06\x07"
_END64, _END64_SIGNATURE = struct.Struct("<4sQ2H2L4Q"), b"PK\x06\x06"
_ENTRY, _ENTRY_SIGNATURE = struct.Struct("<4s6H3L5H2L"), b"PK\x01\x02"
_LOCAL_SIGNATURE = b"PK\x03\x04"
_LONGEST_COMMENT = 2**16 - 1
_SEE_EXTRA, _ZIP64_EXTRA = 2**32 - 1, 1
_MAX_SIZE = 2**56  # no disk holds more, and no sum of a few overflows


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


def find_directory(file: RangedFile, size: int) -> Directory:
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


def _zip64_end(file: RangedFile, locator: bytes, place: int) -> tuple[int, int, int, int, int, int]:
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


def read_entries(file: RangedFile, directory: Directory) -> Iterator[ZipEntry]:
    """Every entry in the directory's order. Raises InputError (corrupt_image) where the directory is damaged or does not add up."""
    file.seek(directory.start)
    count = 0
    while file.tell() < directory.end:
        begin = file.tell()
        fixed = file.read(_ENTRY.size)
        if len(fixed) < _ENTRY.size or not fixed.startswith(_ENTRY_SIGNATURE):
            raise _unreadable(f"its directory is damaged at byte {begin}; members may be missing")
        fields = _ENTRY.unpack(fixed)
        name, extra = file.read(fields[10]), file.read(fields[11])
        file.seek(fields[12], 1)
        if file.tell() > directory.end:
            raise _unreadable(f"its directory is cut at byte {begin}; members may be missing")
        yield _entry(fields, name, extra, directory, begin)
        count += 1
    if (count - directory.entries) % 2**16:  # writers without zip64 let the number wrap around
        raise _unreadable(f"its end record counts {directory.entries} entries, its directory {count}; members may be missing")


def _entry(fields: tuple[int, ...], name: bytes, extra: bytes, directory: Directory, begin: int) -> ZipEntry:
    _, made_by, _, flags, method, _, _, _, packed, size, _, _, _, _, _, attributes, offset = fields
    wide = list(_zip64_fields(extra))
    if len(wide) < (size, packed, offset).count(_SEE_EXTRA):
        raise _unreadable(f"a zip64 entry without its sizes at byte {begin}; members may be missing")
    size, packed, offset = (wide.pop(0) if value == _SEE_EXTRA else value for value in (size, packed, offset))
    if max(size, packed, offset) >= _MAX_SIZE:
        raise _unreadable(f"impossible sizes at byte {begin}; members may be missing")
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
