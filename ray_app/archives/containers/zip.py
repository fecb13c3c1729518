"""List and read the members of zip files.

`index` reads the central directory; `reader` unpacks members from their own ranges.

Source of the layout: PKWARE APPNOTE 6.3.10, 4.3, 4.5.3, and 4.6.9. `zipfile` is not used. It holds
the whole directory in memory before any limit can be checked. If one name is invalid, it cannot
read the archive at all. A member that claims to unpack to more than `max_ratio` allows gets the
status `image_too_large`, like every other member that exceeds a limit. Entries that only a hostile
or broken writer makes (links, overlapping entries, unsafe names) get the status `unsafe_member`.

macOS writes zips over 4 GiB without zip64, with the low 32 bits of each offset. `_Spans` restores
the offsets.
"""

import bz2
import stat
import struct
import unicodedata
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_app.archives.containers.base import (
    Container,
    ContainerEntry,
    WindowReader,
    decode_text,
    find_size,
    iter_members,
    sidecar_column,
)
from ray_app.archives.members import ListedMember, MemberLocation, RefusedMember
from ray_app.errors import InputError, SourceError, Status
from ray_app.storage import Fetcher, ranged

_END, _END_SIGNATURE = struct.Struct("<4s4H2LH"), b"PK\x05\x06"
_LOCATOR, _LOCATOR_SIGNATURE = struct.Struct("<4sLQL"), b"PK\x06\x07"
_END64, _END64_SIGNATURE = struct.Struct("<4sQ2H2L4Q"), b"PK\x06\x06"
_ENTRY, _ENTRY_SIGNATURE = struct.Struct("<4s6H3L5H2L"), b"PK\x01\x02"
_LOCAL_SIGNATURE = b"PK\x03\x04"
_MAX_COMMENT_BYTES = 2**16 - 1
_IN_ZIP64_EXTRA, _ZIP64_EXTRA = 2**32 - 1, 1
_UNICODE_PATH_EXTRA, _UNICODE_PATH_VERSION = 0x7075, 1
_UTF8_NAME = 0x800
_MADE_ON_DOS, _MADE_ON_UNIX = 0, 3  # 4.4.2.2. Programs for Windows write 0, too.
_WRAP = 2**32  # Offsets without zip64 start again at 0 here.
_MAX_WRAPS = 1024  # 4 TiB, far more than any zip that a Mac writes.
_PROBE_BYTES = 4096  # Read to check for a local header.
_MAX_SIZE = 2**56  # No disk holds more, and the sum of a few such sizes does not overflow.

HEADER = struct.Struct("<4s5H3L2H")
_DESCRIPTOR = b"PK\x07\x08"
_LOCAL_ENCRYPTED = 0x1
_IN_DESCRIPTOR = 0x8  # Bit 3: checksum and sizes follow the data.
# The maximum size of what a member has in addition to header, name and packed data: an extra field
# of 16-bit length, and a zip64 descriptor.
MAX_OVERHEAD_BYTES = 2**16 - 1 + 24

_ENCRYPTED = 0x1 | 0x40 | 0x2000  # Encrypted data, strong encryption, an encrypted directory.
_ALWAYS_ALLOWED_BYTES = 10**6  # A megabyte is harmless at any ratio.


def index(container: Container, fetcher: Fetcher) -> Iterator[ListedMember]:
    """Yield every member of a zip. Only its central directory and sidecar files are read."""
    return iter_members(container, _entries(container, fetcher))


def reader(fetcher: Fetcher, max_bytes: int) -> WindowReader:
    """Return a reader of zip members, which reads neighbouring members with one request.

    Each member is unpacked up to its declared size.
    """
    return WindowReader(
        fetcher, max_bytes, lambda member, data: unpack_member(data, member.size_bytes)
    )


def _entries(container: Container, fetcher: Fetcher) -> Iterator[ContainerEntry]:
    size = find_size(container, fetcher)
    listing, content = (fetcher.open(container.uri, container.version, size) for _ in range(2))
    directory = find_directory(listing, size)
    probe = fetcher.open(container.uri, container.version, size, window=_PROBE_BYTES)
    spans = _Spans(listing, directory, probe)
    max_ratio = container.limits.max_ratio
    if spans.unpacked > max(_ALWAYS_ALLOWED_BYTES, size * max_ratio):
        reason = f"its {size} bytes claim to unpack to {spans.unpacked}, over container_limits.max_ratio ({max_ratio:g}); no file is listed"
        raise InputError(
            Status.IMAGE_TOO_LARGE, reason, limit=max_ratio, observed=spans.unpacked / size
        )
    for index, entry in enumerate(read_entries(listing, directory)):
        is_folder = entry.name.endswith("/") or _unix_type(entry) == stat.S_IFDIR
        if is_folder and not entry.size:
            continue
        refused = _refusal(entry, is_folder, spans, index, max_ratio)
        location = MemberLocation("zip", int(spans.starts[index]), int(spans.lengths[index]))
        text: str | None = None
        if refused is None and sidecar_column(entry.name, entry.size):
            text = _read_sidecar(content, location, entry.size)
        yield ContainerEntry(entry.name, entry.size, location, refused, text)
    if not spans.is_ordered:
        raise _unreadable(
            "it is over 4 GiB without zip64 records: unpack it on the machine that packed it, and pack it again with `zip -r`"
        )


@dataclass(frozen=True, slots=True)
class Directory:
    """The position and properties of the central directory of a zip.

    Attributes:
        end: The first byte behind the directory.
        entries: The number of entries that the end record states.
        shift: The number of bytes before the archive, such as the program of a self-extracting
            archive.
        wraps: How often the stated offsets start again at 0 in an archive over 4 GiB that was
            written without zip64.
    """

    start: int
    end: int
    entries: int
    shift: int
    wraps: int = 0


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One entry of the central directory of a zip.

    Attributes:
        name_bytes: The length of the encoded name.
        packed: The packed size in bytes.
        size: The unpacked size in bytes.
        offset: The position of the entry's local header in the file.
        made_on_unix: Whether `attributes` has a Unix file mode.
    """

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
    """Return the position of the central directory, which the end record of a zip states.

    Raises InputError: truncated_image if the archive ends too early, otherwise corrupt_image.
    """
    file.seek(max(0, size - _END.size - _MAX_COMMENT_BYTES))
    tail_start = file.tell()
    tail = file.read(_END.size + _MAX_COMMENT_BYTES)
    record = tail.rfind(_END_SIGNATURE, 0, max(0, len(tail) - _END.size + 4))
    if record < 0:
        file.seek(0)
        if file.read(4) in (_LOCAL_SIGNATURE, _END_SIGNATURE):
            raise InputError(
                Status.TRUNCATED_IMAGE, "the zip archive ends before its end record is complete"
            )
        raise _unreadable("it has no end record")
    _, disk, first_disk, _, entries, length, start, _ = _END.unpack_from(tail, record)
    end = tail_start + record
    has_zip64 = record >= _LOCATOR.size and tail[record - _LOCATOR.size :].startswith(
        _LOCATOR_SIGNATURE
    )
    if has_zip64:
        end, disk, first_disk, entries, length, start = _read_zip64_end(
            file, tail[record - _LOCATOR.size : record], end - _LOCATOR.size
        )
    if disk or first_disk:
        raise _unreadable(
            "it is one part of an archive that was split into several files: join them with `zip -s 0`"
        )
    shift = end - length - start
    if shift < 0 or length > end:
        raise _unreadable("its end record points outside the file")
    wraps = 0 if has_zip64 or shift % _WRAP else shift // _WRAP
    return Directory(end - length, end, entries, 0 if wraps else shift, wraps)


def _read_zip64_end(
    file: ranged.RangedFile, locator: bytes, before_locator: int
) -> tuple[int, int, int, int, int, int]:
    """Return the position of the zip64 end record, and its fields."""
    stated_position = _LOCATOR.unpack(locator)[2]
    # If an archive is appended to a program, the stated position is wrong.
    for position in (before_locator - _END64.size, stated_position):
        if 0 <= position < before_locator:
            file.seek(position)
            data = file.read(_END64.size)
            if len(data) == _END64.size and data.startswith(_END64_SIGNATURE):
                _, _, _, _, disk, first_disk, _, entries, length, start = _END64.unpack(data)
                return position, disk, first_disk, entries, length, start
    raise _unreadable("its zip64 end record is not where it should be")


def read_entries(file: ranged.RangedFile, directory: Directory) -> Iterator[ZipEntry]:
    """Yield every entry of the central directory in the directory's order.

    Raises InputError (corrupt_image) if the directory is damaged, or has another number of entries
    than the end record states.
    """
    file.seek(directory.start)
    count = 0
    while file.tell() < directory.end:
        position = file.tell()
        fixed = file.read(_ENTRY.size)
        if len(fixed) < _ENTRY.size or not fixed.startswith(_ENTRY_SIGNATURE):
            raise _unreadable(f"its directory is damaged at byte {position}; files may be missing")
        fields = _ENTRY.unpack(fixed)
        name, extra = file.read(fields[10]), file.read(fields[11])
        file.seek(fields[12], 1)
        if file.tell() > directory.end:
            raise _unreadable(f"its directory is cut at byte {position}; files may be missing")
        yield _build_entry(fields, name, extra, directory, position)
        count += 1
    if (count - directory.entries) % 2**16:  # Writers without zip64 let the number wrap around.
        raise _unreadable(
            f"its end record states {directory.entries} entries, but its directory has {count}; files may be missing"
        )


def _build_entry(
    fields: tuple[int, ...], name: bytes, extra: bytes, directory: Directory, position: int
) -> ZipEntry:
    _, made_by, _, flags, method, _, _, _, packed, size, _, _, _, _, _, attributes, offset = fields
    extras = _split_extra(extra) if extra else {}
    if _IN_ZIP64_EXTRA in (size, packed, offset):
        wide = list(_read_zip64_fields(extras.get(_ZIP64_EXTRA, b"")))
        # Without its zip64 field, an entry means the number itself, which affects only this entry.
        size, packed, offset = (
            wide.pop(0) if value == _IN_ZIP64_EXTRA and wide else value
            for value in (size, packed, offset)
        )
        if max(size, packed, offset) >= _MAX_SIZE:
            raise _unreadable(
                f"its directory has impossible sizes at byte {position}; files may be missing"
            )
    decoded_name = _decode_name(name, flags, extras.get(_UNICODE_PATH_EXTRA, b""))
    made_on = made_by >> 8
    # As in Info-ZIP's unzip: PowerShell 5 and .NET before 4.6.1 write backslashes between folders.
    if made_on == _MADE_ON_DOS and "/" not in decoded_name:
        decoded_name = decoded_name.replace("\\", "/")
    return ZipEntry(
        decoded_name,
        len(name),
        flags,
        method,
        packed,
        size,
        offset + directory.shift,
        made_on == _MADE_ON_UNIX,
        attributes,
    )


def _split_extra(extra: bytes) -> Mapping[int, bytes]:
    """Return the extra fields of an entry by their ids; the first of an id counts."""
    fields: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        fields.setdefault(kind, extra[position + 4 : position + 4 + length])
        position += 4 + length
    return fields


def _read_zip64_fields(body: bytes) -> tuple[int, ...]:
    """Return the 64-bit size, packed size, and offset, in this order.

    Only the numbers that do not fit into the entry are present.
    """
    return struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8])


def _decode_name(name: bytes, flags: int, unicode_path: bytes) -> str:
    """Decode the name of an entry.

    A name with the UTF-8 flag stays as it is, because names are part of image ids. Other names are,
    in this order: the Unicode path of Info-ZIP if its checksum shows that it belongs to the name;
    UTF-8 without the flag, as the Finder writes names, which code page 437 produces by chance only
    from box-drawing characters; code page 437, which has a character for every byte. Names from
    UTF-8 are composed (NFC), because macOS decomposes them, and patterns and labels are typed
    composed.
    """
    if flags & _UTF8_NAME:
        return name.decode("utf-8", "surrogateescape")
    if name.isascii() and not unicode_path:
        return name.decode("ascii")
    is_own = unicode_path[:5] == struct.pack("<BL", _UNICODE_PATH_VERSION, zlib.crc32(name))
    for candidate in [unicode_path[5:], name] if is_own else [name]:
        with suppress(UnicodeDecodeError):
            return unicodedata.normalize("NFC", candidate.decode("utf-8"))
    return name.decode("cp437")


def _unreadable(reason: str) -> InputError:
    return InputError(Status.CORRUPT_IMAGE, f"not a readable zip archive: {reason}")


def unpack_member(data: bytes, size: int) -> bytes | InputError:
    """Unpack one member of a zip from the bytes of its range, which begin with its local header.

    Bytes after the member are ignored. The error is corrupt_image, truncated_image,
    encrypted_member, or unsupported_format.
    """
    if len(data) < HEADER.size or not data.startswith(_LOCAL_SIGNATURE):
        return InputError(
            Status.CORRUPT_IMAGE,
            "there is no local header at the position that the zip's directory states",
        )
    _, _, flags, method, _, _, crc, packed, _, name_bytes, extra_bytes = HEADER.unpack_from(data)
    begin = HEADER.size + name_bytes + extra_bytes
    if flags & _LOCAL_ENCRYPTED:
        return InputError(
            Status.ENCRYPTED_MEMBER,
            "it is encrypted, but not marked as encrypted in the zip's directory",
        )
    has_packed_size = not flags & _IN_DESCRIPTOR and packed != _IN_ZIP64_EXTRA
    if begin + (packed if has_packed_size else 0) > len(data):
        return InputError(Status.CORRUPT_IMAGE, "its local header reaches into the next file")
    body = data[begin : begin + packed] if has_packed_size else data[begin:]
    if method not in METHODS:
        return InputError(
            Status.UNSUPPORTED_FORMAT, f"the zip compression method {method} is not supported"
        )
    try:
        content, tail = METHODS[method](body, size)
    except (zlib.error, OSError, EOFError, ValueError) as error:
        return InputError(Status.CORRUPT_IMAGE, f"the packed data does not unpack: {error}")
    if len(content) > size:
        return InputError(
            Status.CORRUPT_IMAGE,
            f"it unpacks to more than the {size} bytes that the zip's directory states",
        )
    if len(content) < size:
        return InputError(Status.TRUNCATED_IMAGE, f"it unpacks to {len(content)} of {size} bytes")
    if flags & _IN_DESCRIPTOR:
        crc = _read_descriptor_crc(tail)
    if zlib.crc32(content) != crc:
        return InputError(Status.CORRUPT_IMAGE, "its checksum does not match the one in the zip")
    return content


def _read_descriptor_crc(tail: bytes) -> int:
    """Return the checksum in a data descriptor, -1 if it is missing.

    The descriptor may begin with a signature.
    """
    position = 4 if tail.startswith(_DESCRIPTOR) else 0
    return (
        int.from_bytes(tail[position : position + 4], "little") if len(tail) >= position + 4 else -1
    )


def _inflate(body: bytes, size: int) -> tuple[bytes, bytes]:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    return stream.decompress(body, size + 1), stream.unused_data


def _bunzip(body: bytes, size: int) -> tuple[bytes, bytes]:
    stream = bz2.BZ2Decompressor()
    return stream.decompress(body, size + 1), stream.unused_data


# Each returns at most size + 1 bytes; an extra byte shows that the declared size is wrong.
METHODS: dict[int, Callable[[bytes, int], tuple[bytes, bytes]]] = {
    0: lambda body, size: (body[:size], body[size:]),
    8: _inflate,
    12: _bunzip,
}


class _Spans:
    """The positions of all entries, from a first pass over the directory: 25 bytes per entry.

    `file` is for the directory, `probe` for local headers in an archive whose offsets start again
    at 0.
    """

    def __init__(
        self, file: ranged.RangedFile, directory: Directory, probe: ranged.RangedFile
    ) -> None:
        starts, sizes = array("q"), array("q")
        self.unpacked = 0
        try:
            for entry in read_entries(file, directory):
                starts.append(entry.offset)
                sizes.append(HEADER.size + entry.name_bytes + entry.packed)
                self.unpacked += entry.size
        except SourceError:
            raise  # A second pass may read further, to entries that have no span.
        except InputError:
            pass  # The second pass reaches the same byte and raises the error.
        begin = np.array(starts, np.int64)
        restored = _restore_offsets(begin, directory, probe) if directory.wraps else begin
        self.is_ordered = restored is not None
        self.starts = begin = begin + directory.wraps * _WRAP if restored is None else restored
        end = begin + np.array(sizes, np.int64)
        self.outside = end > directory.start
        self.overlapping = _find_overlapping(begin, np.where(self.outside, begin, end))
        following = np.append(np.sort(begin), directory.start)
        after = following[np.searchsorted(following[:-1], begin, side="right")]
        self.lengths = (
            np.minimum(
                np.minimum(np.maximum(after, end), end + MAX_OVERHEAD_BYTES), directory.start
            )
            - begin
        )
        # Without zip64 the size of a file over 4 GiB is not stated either.
        self.unsized = (after - end >= _WRAP) if directory.wraps else np.zeros(len(begin), bool)


def _restore_offsets(
    offsets: npt.NDArray[np.int64], directory: Directory, file: ranged.RangedFile
) -> npt.NDArray[np.int64] | None:
    """Restore the offsets in a file over 4 GiB, of which the directory has the low 32 bits.

    The entries must follow each other. An offset below the one before it is in the next 4 GiB. A
    file over 4 GiB may hide such a step, and the position of the directory shows that a step is
    hidden. The first entry without a local header at its position is then the first entry behind
    the step. The result is None if the entries are in another order.
    """
    low_offsets = np.append(offsets, directory.start % _WRAP)
    wraps = np.cumsum(np.append(0, np.diff(low_offsets) < 0))
    hidden = directory.wraps - int(wraps[-1])
    if hidden < 0 or directory.wraps > _MAX_WRAPS:
        return None

    def is_moved(index: int) -> bool:
        file.seek(int(offsets[index] + wraps[index] * _WRAP))
        return file.read(len(_LOCAL_SIGNATURE)) != _LOCAL_SIGNATURE

    for _ in range(hidden):
        wraps[bisect_left(range(len(offsets)), True, key=is_moved) :] += 1
    restored: npt.NDArray[np.int64] = offsets + wraps[:-1] * _WRAP
    return restored


def _find_overlapping(
    begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return which entries begin before the end of an entry that begins earlier."""
    order = np.argsort(begin, kind="stable")
    reach = np.maximum.accumulate(end[order])
    overlaps = np.zeros(len(begin), bool)
    overlaps[order[1:]] = begin[order[1:]] < reach[:-1]
    return overlaps


def _refusal(
    entry: ZipEntry, is_folder: bool, spans: _Spans, index: int, max_ratio: float
) -> RefusedMember | None:
    kind = _unix_type(entry)
    if entry.flags & _ENCRYPTED:
        return RefusedMember(Status.ENCRYPTED_MEMBER, "it is encrypted")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return RefusedMember(
            Status.UNSAFE_MEMBER,
            "a symbolic link" if kind == stat.S_IFLNK else "a device, pipe or socket",
        )
    if is_folder:
        return RefusedMember(Status.UNSAFE_MEMBER, "a folder that has data")
    if spans.unsized[index]:
        return RefusedMember(
            Status.IMAGE_TOO_LARGE,
            "it has over 4 GiB, and its zip has no zip64 records to state the size",
        )
    if spans.outside[index]:
        return RefusedMember(
            Status.CORRUPT_IMAGE, "its data would reach beyond the data of the archive"
        )
    if spans.overlapping[index]:
        return RefusedMember(Status.UNSAFE_MEMBER, "it overlaps another file in the archive")
    if entry.method not in METHODS:
        return RefusedMember(
            Status.UNSUPPORTED_FORMAT, f"the zip compression method {entry.method} is not supported"
        )
    if entry.packed > 2 * entry.size + MAX_OVERHEAD_BYTES:
        return RefusedMember(
            Status.UNSAFE_MEMBER,
            f"{entry.packed} packed bytes are too many for {entry.size} unpacked bytes",
        )
    if entry.size > max(_ALWAYS_ALLOWED_BYTES, entry.packed * max_ratio):
        return RefusedMember(
            Status.IMAGE_TOO_LARGE,
            f"{entry.packed} bytes claim to unpack to {entry.size}, over container_limits.max_ratio ({max_ratio:g})",
        )
    return None


def _unix_type(entry: ZipEntry) -> int:
    return stat.S_IFMT(entry.attributes >> 16) if entry.made_on_unix else 0


def _read_sidecar(file: ranged.RangedFile, location: MemberLocation, size: int) -> str | None:
    file.seek(location.offset)
    content = unpack_member(file.read(location.length), size)
    return decode_text(content) if isinstance(content, bytes) else None
