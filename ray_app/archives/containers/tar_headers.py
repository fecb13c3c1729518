"""A tar's headers, one member at a time: where its data lies, and what speaks against reading it. Knows the format; reads no data.

One block is parsed by `tarfile.TarInfo.frombuf`. Its reader of whole archives is not used: it keeps every member in memory,
recurses and backtracks over hostile extended headers, and takes a damaged header in the middle for the end.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ray_app.errors import InputError, Status

BLOCK = tarfile.BLOCKSIZE
# Long names and attributes of one member; Linux allows 64 KiB for all attributes of a file, and a few may be chained.
_MAX_HEADERS = 2**20
_MAX_SIZE = 2**56  # no disk holds more, and no sum of a few overflows
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_NO_FILES = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class Stream(Protocol):
    """What headers are read from; `seek` only ever goes forward."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, fewer only at the end."""

    def tell(self) -> int:
        """The place of the next byte."""

    def seek(self, offset: int, /) -> object:
        """Go on to a place."""


@dataclass(frozen=True, slots=True)
class Header:
    """One member. `stored` bytes of data lie at `offset`; `unsafe` says why it is no plain file."""

    name: str
    offset: int
    stored: int
    is_folder: bool
    unsafe: str | None


def read_headers(stream: Stream) -> Iterator[Header]:
    """Every member up to the end mark.

    Raises InputError: truncated_image where the archive ends first, corrupt_image for what is no header.
    """
    everywhere: dict[str, str] = {}
    offset = 0
    while True:
        stream.seek(offset)
        header = _next_header(stream, everywhere)
        if header is None:
            return
        yield header
        offset = header.offset + _padded(header.stored)


def _next_header(stream: Stream, everywhere: dict[str, str]) -> Header | None:
    """The header at the stream's place, with the extended ones before it; `everywhere` keeps what is said for all members."""
    begin = stream.tell()
    extended: dict[str, str] = {}
    while True:
        info = _block(stream, begin)
        if info is None:
            return None
        if info.type not in (*_PAX, *_LONG, tarfile.XGLTYPE):
            return _header(stream, info, everywhere | extended)
        body = _body(stream, info, begin)
        if info.type == tarfile.XGLTYPE:
            everywhere |= _pax_records(body, begin)
        elif info.type in _PAX:
            extended |= _pax_records(body, begin)
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            extended["path"] = body.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _block(stream: Stream, begin: int) -> tarfile.TarInfo | None:
    """One header block; None for the end mark."""
    data = stream.read(BLOCK)
    if len(data) < BLOCK:
        what = "inside a header" if data or stream.tell() > begin else "without its end mark"
        raise InputError(Status.TRUNCATED_IMAGE, f"the archive ends at byte {stream.tell()}, {what}: members may be missing")
    if data.count(0) == BLOCK:
        return None
    try:
        info = tarfile.TarInfo.frombuf(data, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _damaged(stream.tell() - BLOCK, str(error)) from None
    if not 0 <= info.size < _MAX_SIZE:
        raise _damaged(stream.tell() - BLOCK, f"a size of {info.size} bytes")
    if info.type == tarfile.GNUTYPE_SPARSE:
        more = data[482]
        while more:  # the map of a sparse file goes on in further blocks
            data = stream.read(BLOCK)
            more = len(data) == BLOCK and stream.tell() - begin < _MAX_HEADERS and data[504]
    return info


def _body(stream: Stream, info: tarfile.TarInfo, begin: int) -> bytes:
    if stream.tell() - begin + info.size > _MAX_HEADERS:
        raise _damaged(begin, f"extended headers of more than {_MAX_HEADERS} bytes")
    body = stream.read(_padded(info.size))
    if len(body) < info.size:
        raise InputError(Status.TRUNCATED_IMAGE, f"the archive ends at byte {stream.tell()}, inside a header: members may be missing")
    return body[: info.size]


def _header(stream: Stream, info: tarfile.TarInfo, extended: dict[str, str]) -> Header:
    stored, unsafe = info.size, _NO_FILES.get(info.type)
    if "size" in extended:
        digits = extended["size"]
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 20 and int(digits) < _MAX_SIZE):
            raise _damaged(stream.tell(), f"a size of {digits[:40]!r}")
        stored = int(digits)
    if any(key.startswith("GNU.sparse.") for key in extended):
        unsafe = _NO_FILES[tarfile.GNUTYPE_SPARSE]
    elif info.type not in _FILES and not info.isdir() and unsafe is None:
        unsafe = f"a member of type {info.type!r}"
    # What is no file has no data, whatever its size field says: a hard link repeats the size of what it links to.
    has_data = info.type in (*_FILES, tarfile.GNUTYPE_SPARSE) or info.type not in tarfile.SUPPORTED_TYPES
    return Header(extended.get("path", info.name), stream.tell(), stored if has_data else 0, info.isdir(), unsafe)


def _pax_records(body: bytes, begin: int) -> dict[str, str]:
    """`30 path=a/long/name.jpg\\n…` as a dict; the number is the whole record's length."""
    records: dict[str, str] = {}
    place = 0
    while place < len(body) and body[place]:
        space = body.find(b" ", place, place + 20)
        digits = body[place:space] if space > 0 else b""
        end = place + int(digits) if digits.isdigit() else 0
        key, equals, value = body[space + 1 : max(0, end - 1)].partition(b"=")
        if not place < end <= len(body) or not equals:
            raise _damaged(begin, "an extended header that cannot be read")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        place = end
    return records


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _damaged(offset: int, why: str) -> InputError:
    if not offset:
        return InputError(Status.CORRUPT_IMAGE, f"not a readable tar archive: {why}")
    return InputError(Status.CORRUPT_IMAGE, f"the tar archive is damaged at byte {offset}: {why}; members may be missing")
