"""List and read the members of tar files, plain or compressed.

`index` lists an uncompressed tar, and `reader` reads its members. `CompressedTar` does both for
tars that are compressed with gzip, bzip2, xz, or zstd.

`tarfile.TarInfo.frombuf` parses single header blocks. `tarfile.open` is not used: it keeps every
member in memory, recurses and backtracks over hostile extended headers, and treats a damaged header
in the middle as the end. A compressed tar is one stream, unpacked from its start in constant
memory.

If further archives follow an end mark, their members are also listed, as by `tar --ignore-zeros`.
The result of `cat a.tar b.tar` has the members of both archives.
"""

import bz2
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ray_app.archives.containers.base import (
    Container,
    ContainerEntry,
    WindowReader,
    decode_text,
    find_size,
    iter_members,
    sidecar_column,
)
from ray_app.archives.members import ListedMember, ManifestMember, MemberLocation, RefusedMember
from ray_app.errors import InputError, SourceError, Status
from ray_app.storage import Fetcher, ranged
from ray_app.storage.errors import make_too_large_error

BLOCK = tarfile.BLOCKSIZE
# The limit for long names and attributes of one member. Linux allows 64 KiB for all attributes of a
# file, and a few headers may be chained.
_MAX_HEADERS = 2**20
_MAX_SIZE = 2**56  # No disk holds more, and the sum of a few such sizes does not overflow.
# The limit for zeros after end marks. Tools fill the last record with zeros: 10 KiB by default, up
# to some MiB if a user sets the blocking factor.
_MAX_PADDING = 64 * 2**20
_END_MARK = 2 * BLOCK
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTENDED = frozenset({*_PAX, *_LONG, tarfile.XGLTYPE})
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITH_DATA = (*_FILES, tarfile.GNUTYPE_SPARSE)
_NOT_FILES = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
# Folders of GNU's incremental backups, whose data is a list of names, GNU's volume labels, and
# Solaris's access control lists.
_METADATA = (b"D", b"V", b"A")
_CONTINUED = b"M"  # In GNU tar, the remainder of a file that begins in another volume.
# Records of a global header that concern the next member only.
_VOLUME = "GNU.volume."
_VOLUME_NAME, _VOLUME_OFFSET = f"{_VOLUME}filename", f"{_VOLUME}offset"
_SPARSE = ("major", "minor", "name", "realsize", "size", "map", "numblocks", "offset", "numbytes")
# All other records are dropped. An archive may have any number of global records, which apply to
# each of its members.
_USED_RECORDS = frozenset(
    key.encode()
    for key in (
        "path",
        "size",
        _VOLUME_NAME,
        _VOLUME_OFFSET,
        *(f"GNU.sparse.{name}" for name in _SPARSE),
    )
)
_OTHER_VOLUME = RefusedMember(
    Status.TRUNCATED_IMAGE,
    "the file begins in another volume of this archive: unpack it with `tar --multi-volume`",
)

# In GNU's own format, the field that holds the prefix of a name in POSIX holds the times of access
# and change.
_GNU_MAGIC = b"ustar  \0"
_GNU_TIMES = re.compile(rb"(?:[ 0-7]{11}[ \0]|[\x80\xff].{11}|\0{12}){2}", re.DOTALL)

_GZIP = 16 + zlib.MAX_WBITS
_XZ_MEMORY = 192 * 2**20  # `xz -9` needs 65 MiB; the format allows 4 GiB.

_INPUT_BYTES = 64 * 2**10  # Packed bytes that are read at once.
_OUTPUT_BYTES = 2**20  # Bytes that are unpacked at once, and before the ratio counts.


def index(container: Container, fetcher: Fetcher) -> Iterator[ListedMember]:
    """Yield every member of an uncompressed tar.

    Only the headers and small sidecar files (texts that describe images) are needed. So most bytes
    of the images are not read.
    """
    return iter_members(container, _entries(container, fetcher))


reader = WindowReader  # Reads neighbouring members with one request.


def _entries(container: Container, fetcher: Fetcher) -> Iterator[ContainerEntry]:
    size = find_size(container, fetcher)
    file = fetcher.open(container.uri, container.version, size)
    yield from list_tar_entries(
        file, "tar", lambda header: min(header.stored, max(0, size - header.offset))
    )


# Headers are read from such a stream. Its `seek` only goes forward.
Stream: TypeAlias = "ranged.RangedFile | Unpacked"


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one entry of a tar.

    Attributes:
        name: The name of the entry.
        offset: The first byte of the data.
        stored: The number of bytes of the data.
        is_member: Whether the entry is a member, and not a folder or metadata.
        refused: The reason why a member must not or cannot be read; None for a plain file.
    """

    name: str
    offset: int
    stored: int
    is_member: bool
    refused: RefusedMember | None


def read_headers(stream: Stream) -> Iterator[Header]:
    """Yield the header of every entry of a tar, and of the tars that follow its end mark.

    Args:
        stream: The uncompressed tar.

    Raises:
        InputError: truncated_image if the archive ends without an end mark, corrupt_image for data
            that is not a header, image_too_large if more than some 64 MiB of zeros follow end
            marks. Tools write some MiB at most.
    """
    reader = _HeaderReader(stream)
    offset = 0
    while (header := reader.read_next(offset)) is not None:
        yield header
        offset = header.offset + _pad_to_block(header.stored)


class _HeaderReader:
    """Reads one header after another, with the extended headers before it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        # Records that apply to all members of an archive.
        self._global_records: dict[str, str] = {}
        self._padding_left = _MAX_PADDING

    def read_next(self, offset: int) -> Header | None:
        """Return the first header at or after `offset`; None if only zeros are there."""
        self._stream.seek(offset)
        begin = offset
        extended: dict[str, str] = {}
        while True:
            block, zeros = self._stream.read(BLOCK), 0
            if block and block.count(0) == len(block):
                block, zeros = self._skip_zeros(len(block))
                begin, extended = self._stream.tell() - len(block), {}
                if len(block) < BLOCK:  # The end, or bytes that are too few for a header.
                    return None
            if zeros >= _END_MARK:
                self._global_records = {}
            info = _parse_header(self._stream, block, begin, has_ended=zeros > 0)
            if info.type not in _EXTENDED:
                self._padding_left += tarfile.RECORDSIZE
                return _build_header(
                    self._stream,
                    info,
                    self._global_records | extended if self._global_records else extended,
                )
            body = _read_body(self._stream, info, begin)
            if info.type == tarfile.XGLTYPE:
                records = _pax_records(body, begin)
                extended |= {
                    key: records.pop(key) for key in list(records) if key.startswith(_VOLUME)
                }
                self._global_records |= records
            elif info.type in _PAX:
                extended |= _pax_records(body, begin)
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                extended["path"] = body.partition(b"\0")[0].decode("utf-8", "surrogateescape")

    def _skip_zeros(self, zeros: int) -> tuple[bytes, int]:
        """Return the next block that is not zero, and the number of zero bytes before it.

        The block is short at the end of the stream.

        Args:
            zeros: The number of zero bytes that were read before.

        Raises:
            InputError: image_too_large if the zeros of all end marks together exceed the limit.
        """
        start = self._stream.tell() - zeros
        while (block := self._stream.read(BLOCK)) and block.count(0) == len(block):
            zeros += len(block)
            if zeros > self._padding_left:
                reason = f"over {_MAX_PADDING} bytes of zeros follow the end mark at byte {start}; what follows them is not listed"
                raise InputError(Status.IMAGE_TOO_LARGE, reason, limit=_MAX_PADDING, observed=zeros)
            if isinstance(self._stream, Unpacked):
                self._stream.padding_bytes += len(block)
        self._padding_left -= zeros
        return block, zeros


def _parse_header(stream: Stream, block: bytes, begin: int, *, has_ended: bool) -> tarfile.TarInfo:
    """Parse one header block; `has_ended` is True if the block follows an end mark."""
    if len(block) < BLOCK:
        where_cut = "inside a header" if block or stream.tell() > begin else "without its end mark"
        raise InputError(
            Status.TRUNCATED_IMAGE,
            f"the archive ends at byte {stream.tell()}, {where_cut}; files may be missing",
        )
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        position = stream.tell() - len(block)
        if has_ended:
            reason = f"the data at byte {position}, after the end mark of the tar archive, is not a tar header ({error}); files may be missing"
            raise InputError(Status.CORRUPT_IMAGE, reason) from None
        raise _damaged(position, str(error)) from None
    if not 0 <= info.size < _MAX_SIZE:
        raise _damaged(
            stream.tell() - BLOCK, f"a header states an invalid size of {info.size} bytes"
        )
    if block[345] and block[257:265] == _GNU_MAGIC and _GNU_TIMES.match(block, 345):
        short_name = block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
        info.name = short_name.rstrip("/") if info.isdir() else short_name
    if info.type == tarfile.GNUTYPE_SPARSE:
        more = block[482]
        while more:  # The map of a sparse file continues in further blocks.
            block = stream.read(BLOCK)
            more = len(block) == BLOCK and stream.tell() - begin < _MAX_HEADERS and block[504]
    return info


def _read_body(stream: Stream, info: tarfile.TarInfo, begin: int) -> bytes:
    if stream.tell() - begin + info.size > _MAX_HEADERS:
        raise _damaged(begin, f"extended headers of more than {_MAX_HEADERS} bytes")
    body = stream.read(_pad_to_block(info.size))
    if len(body) < info.size:
        raise InputError(
            Status.TRUNCATED_IMAGE,
            f"the archive ends at byte {stream.tell()}, inside a header; files may be missing",
        )
    return body[: info.size]


def _build_header(stream: Stream, info: tarfile.TarInfo, extended: dict[str, str]) -> Header:
    stored = info.size
    if "size" in extended:
        digits = extended["size"]
        if not (
            digits.isascii() and digits.isdigit() and len(digits) <= 20 and int(digits) < _MAX_SIZE
        ):
            raise _damaged(
                stream.tell(), f"an extended header states an invalid size, {digits[:40]!r}"
            )
        stored = int(digits)
    # Only files have data. The size field of other entries is ignored: a hard link repeats the size
    # of its target.
    has_data = info.type in _WITH_DATA or info.type not in tarfile.SUPPORTED_TYPES
    is_member = not info.isdir() and info.type not in _METADATA
    name = info.name
    if extended:  # GNU tar invents the names in headers of sparse files and of parts of files.
        name = (
            extended.get("GNU.sparse.name")
            or extended.get(_VOLUME_NAME)
            or extended.get("path", name)
        )
    is_plain = not extended and info.type in _FILES
    refused = None if is_plain or not is_member else _refusal(info, extended)
    return Header(name, stream.tell(), stored if has_data else 0, is_member, refused)


def _refusal(info: tarfile.TarInfo, extended: dict[str, str]) -> RefusedMember | None:
    """Return why a member is not read; None for a plain file."""
    if info.type == _CONTINUED or extended.get(_VOLUME_OFFSET, "0") != "0":
        return _OTHER_VOLUME
    kind = _NOT_FILES.get(info.type)
    if any(key.startswith("GNU.sparse.") for key in extended):
        kind = _NOT_FILES[tarfile.GNUTYPE_SPARSE]
    elif kind is None and info.type not in _FILES:
        kind = f"an entry of type {info.type!r}"
    return None if kind is None else RefusedMember(Status.UNSAFE_MEMBER, kind)


def _pax_records(body: bytes, begin: int) -> dict[str, str]:
    r"""Return the used records of an extended header.

    A record is `30 path=a/long/name.jpg\n`; the number is the length of the whole record.
    """
    records: dict[str, str] = {}
    position = 0
    while position < len(body) and body[position]:
        space = body.find(b" ", position, position + 20)
        digits = body[position:space] if space > 0 else b""
        end = position + int(digits) if digits.isdigit() else 0
        key, equals, value = body[space + 1 : max(0, end - 1)].partition(b"=")
        if not position < end <= len(body) or not equals:
            raise _damaged(begin, "an extended header that cannot be read")
        if key in _USED_RECORDS:
            records[key.decode()] = value.decode("utf-8", "surrogateescape")
        position = end
    return records


def _pad_to_block(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _damaged(offset: int, reason: str) -> InputError:
    if not offset:
        return InputError(Status.CORRUPT_IMAGE, f"not a readable tar archive: {reason}")
    return InputError(
        Status.CORRUPT_IMAGE,
        f"the tar archive is damaged at byte {offset}: {reason}; files may be missing",
    )


def list_tar_entries(
    stream: Stream, kind: str, measure: Callable[[Header], int]
) -> Generator[ContainerEntry, None, bool]:
    """Yield the files of a tar, without folders, before their names are checked.

    Args:
        stream: The tar.
        kind: The container's format, such as `tar.gz`.
        measure: A function that returns how many bytes of a file's data the tar contains. These are
            fewer than the header states if the tar is cut short. The function may skip these bytes
            in the stream.

    Returns:
        Whether the data of the last file is complete.

    Raises:
        InputError: The archive ends early, or continues with data that is not a tar.
    """
    for header in read_headers(stream):
        if not header.is_member:
            continue
        text: str | None = None
        if header.refused is None and sidecar_column(header.name, header.stored):
            text = decode_text(stream.read(header.stored))
        present = measure(header)
        location = MemberLocation(kind, header.offset, header.stored)
        if header.refused is not None:
            yield ContainerEntry(header.name, header.stored, None, header.refused)
        elif present < header.stored:
            reason = f"the archive ends after {present} of its {header.stored} bytes"
            yield ContainerEntry(
                header.name, header.stored, None, RefusedMember(Status.TRUNCATED_IMAGE, reason)
            )
            return False  # The archive may have had more files.
        else:
            yield ContainerEntry(header.name, header.stored, location, text=text)
    return True


# The codecs share the interface of Python's own decompressors (`bz2.BZ2Decompressor`). They never
# return more bytes than requested, whatever a stream claims. The memory of the xz and zstd decoders
# is limited.
Codec = Literal["gzip", "bzip2", "xz", "zstd"]


def _create_decompressor(codec: Codec) -> Any:
    """Create the decompressor for one stream; it is of no use after the stream's end.

    Raises:
        InputError: The codec is not installed.
    """
    if codec == "zstd":
        return _zstd().ZstdDecompressor()  # It refuses windows of more than 128 MiB.
    return (
        _Gzip()
        if codec == "gzip"
        else bz2.BZ2Decompressor()
        if codec == "bzip2"
        else lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)
    )


def _get_decoder_errors(codec: Codec) -> tuple[type[Exception], ...]:
    """Return the exceptions that a decompressor raises for a damaged stream."""
    errors = {"gzip": (zlib.error,), "bzip2": (OSError, ValueError), "xz": (lzma.LZMAError,)}
    return errors[codec] if codec in errors else (_zstd().ZstdError,)


class _Gzip:
    """zlib's decompressor, with the input that it has not consumed kept between calls."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(_GZIP)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)


def _zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore] # since Python 3.14
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise InputError(
                Status.UNSUPPORTED_FORMAT,
                "reading a zstd archive requires: pip install 'touchstone-forensics[zst]'",
            ) from None
    return zstd


@dataclass(frozen=True)
class CompressedTar:
    """A `ContainerFormat` for tars that are compressed with one codec.

    Attributes:
        kind: The name of the format, such as `tar.gz`.
        codec: The codec, such as `gzip`.
    """

    kind: str
    codec: Codec

    def index(self, container: Container, fetcher: Fetcher) -> Iterator[ListedMember]:
        """Yield every member of the tar. The whole stream is unpacked once to find them.

        The listing ends early if the stream exceeds the container's limit `max_ratio` of unpacked
        to packed bytes.
        """
        return iter_members(container, _stream_entries(container, fetcher, self))

    def reader(self, fetcher: Fetcher, max_bytes: int) -> "TarStreamReader":
        """Return a reader that keeps the tar open from one block of members to the next."""
        return TarStreamReader(fetcher, max_bytes, self.codec)


class Unpacked:
    """The unpacked stream of one compressed object, which can only be read forward.

    If the object is cut short, the stream ends early and sets `is_cut`. Reading and seeking may
    raise an InputError: corrupt_image for a damaged stream, image_too_large if the stream exceeds
    `max_ratio`, or the error of the store.

    Args:
        codec: The codec of the stream.
        fetcher: Reads the object.
        uri: The uri of the object.
        version: The version of the object.
        size_bytes: The size of the object, -1 if unknown.
        max_ratio: The maximum of unpacked ÷ packed bytes, None for no limit.
    """

    def __init__(
        self,
        codec: Codec,
        fetcher: Fetcher,
        uri: str,
        version: str,
        size_bytes: int = -1,
        max_ratio: float | None = None,
    ) -> None:
        self._codec = codec
        self._stream = _create_decompressor(codec)
        self._packed = fetcher.open(uri, version, size_bytes)
        self._input = b""
        self._position = 0
        self._max_ratio = max_ratio
        # Up to `_MAX_PADDING`, zeros do not count for the ratio: they are packed about 1000 to 1.
        self.padding_bytes = 0
        self.is_cut = False

    def tell(self) -> int:
        """Return the position in the unpacked stream of the next byte to read."""
        return self._position

    def read(self, size: int) -> bytes:
        """Return the next `size` unpacked bytes, or fewer at the end of the stream."""
        parts: list[bytes] = []
        while size > 0 and (part := self._read_part(min(size, _OUTPUT_BYTES))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def seek(self, offset: int) -> int:
        """Skip forward to a position of the unpacked stream, and return the new position.

        If the stream ends before the position, the new position is the end.
        """
        while self.tell() < offset and self._read_part(min(offset - self.tell(), _OUTPUT_BYTES)):
            pass
        return self.tell()

    def _read_part(self, size: int) -> bytes:
        try:
            data = self._decompress(size)
        except _get_decoder_errors(self._codec) as error:
            reason = f"not a readable {self._codec} stream after {self._position} unpacked bytes: {error}"
            raise InputError(Status.CORRUPT_IMAGE, reason) from None
        self._position += len(data)
        packed = max(1, self._packed.tell() - len(self._input))
        counted = self._position - min(self.padding_bytes, _MAX_PADDING)
        if self._max_ratio is not None and counted > max(_OUTPUT_BYTES, packed * self._max_ratio):
            reason = f"{counted} bytes unpacked from {packed}, over container_limits.max_ratio ({self._max_ratio:g}); files may be missing"
            raise InputError(
                Status.IMAGE_TOO_LARGE, reason, limit=self._max_ratio, observed=counted / packed
            )
        return data

    def _decompress(self, size: int) -> bytes:
        """Return up to `size` bytes; none at the end.

        Streams that follow one another, with or without zeros between them, are one stream.
        """
        while True:
            if self._stream.eof:
                self._skip_zeros_between()
                if not self._input:
                    return b""
                self._stream = _create_decompressor(self._codec)
            if self._stream.needs_input:
                self._input = self._input or self._packed.read(_INPUT_BYTES)
                if not self._input:
                    self.is_cut = True
                    return b""
            data: bytes = self._stream.decompress(self._input, size)
            self._input = self._stream.unused_data if self._stream.eof else b""
            if data:
                return data

    def _skip_zeros_between(self) -> None:
        start = self._packed.tell() - len(self._input)
        while not self._input.strip(b"\0") and (more := self._packed.read(_INPUT_BYTES)):
            self._input = more
            if (zeros := self._packed.tell() - start) > _MAX_PADDING:
                reason = f"over {_MAX_PADDING} bytes of zeros follow the {self._codec} stream at byte {start}"
                raise InputError(Status.IMAGE_TOO_LARGE, reason, limit=_MAX_PADDING, observed=zeros)
        self._input = self._input.lstrip(b"\0")


class TarStreamReader:
    """Reads members of a compressed tar from one open stream.

    If members are requested in the archive's order, the archive is unpacked only once.
    """

    def __init__(self, fetcher: Fetcher, max_bytes: int, codec: Codec) -> None:
        self._fetcher, self._max_bytes, self._codec = fetcher, max_bytes, codec
        self._open: tuple[str, str, Unpacked] | None = None

    def read(self, members: Sequence[ManifestMember]) -> Iterator[bytes | InputError]:
        """Yield, for each of several members of one archive, its bytes or the error for it.

        If the stream is damaged at a member, the members behind it in the archive get the same
        error in this call.
        """
        broken: tuple[int, InputError] | None = None
        for member in members:
            assert member.place is not None
            if member.size_bytes > self._max_bytes:
                yield make_too_large_error(member.size_bytes, self._max_bytes)
            elif broken is not None and member.place.offset >= broken[0]:
                yield broken[1]
            else:
                try:
                    yield self._read_member(
                        member.uri, member.version, member.place.offset, member.place.length
                    )
                except InputError as error:
                    self._open, broken = None, (member.place.offset, error)
                    yield error

    def _read_member(self, uri: str, version: str, offset: int, length: int) -> bytes:
        if self._open is None or self._open[:2] != (uri, version) or self._open[2].tell() > offset:
            self._open = None
            self._open = (uri, version, Unpacked(self._codec, self._fetcher, uri, version))
        stream = self._open[2]
        stream.seek(offset)
        data = stream.read(length)
        if len(data) < length and stream.is_cut:
            raise InputError(
                Status.TRUNCATED_IMAGE,
                f"the {self._codec} stream ends after {stream.tell()} unpacked bytes",
            )
        if len(data) < length:
            raise SourceError(
                Status.SOURCE_CHANGED, "the archive ends before the file that was listed"
            )
        return data


def _stream_entries(
    container: Container, fetcher: Fetcher, tar_format: CompressedTar
) -> Iterator[ContainerEntry]:
    if not container.size_bytes:
        raise InputError(Status.EMPTY_FILE, "an empty archive: it has no bytes")
    stream = Unpacked(
        tar_format.codec,
        fetcher,
        container.uri,
        container.version,
        container.size_bytes,
        container.limits.max_ratio,
    )
    is_whole = yield from list_tar_entries(
        stream,
        tar_format.kind,
        lambda header: stream.seek(header.offset + header.stored) - header.offset,
    )
    if stream.is_cut and is_whole:  # Otherwise the last member has the reason.
        raise InputError(
            Status.TRUNCATED_IMAGE,
            f"the {tar_format.codec} stream ends before its checksum; files may be damaged",
        )
