"""One zip member's own bytes: local header, packed data, checksum → the file. Knows no archive; never gives more than was declared."""

import bz2
import struct
import zlib
from collections.abc import Callable

from ray_app.errors import InputError, Status

HEADER = struct.Struct("<4s5H3L2H")
_SIGNATURE, _DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"
_ENCRYPTED = 0x1
_IN_DESCRIPTOR = 0x8  # bit 3: checksum and sizes stand behind the data
_SEE_EXTRA = 2**32 - 1
# The most that may stand around name and packed data: an extra field of 16-bit length, and a descriptor of zip64.
LONGEST_AROUND = 2**16 - 1 + 24


def unpacked(data: bytes, size: int) -> bytes | InputError:
    """The file of `size` bytes whose local header starts `data`; bytes after it are no matter.

    An InputError is corrupt_image, truncated_image or unsupported_format.
    """
    if len(data) < HEADER.size or not data.startswith(_SIGNATURE):
        return InputError(Status.CORRUPT_IMAGE, "no local header where the zip's directory says that there is one")
    _, _, flags, method, _, _, crc, packed, _, name_bytes, extra_bytes = HEADER.unpack_from(data)
    begin = HEADER.size + name_bytes + extra_bytes
    if flags & _ENCRYPTED:
        return InputError(Status.ENCRYPTED_MEMBER, "it is encrypted, though the zip's directory does not say so")
    known = not flags & _IN_DESCRIPTOR and packed != _SEE_EXTRA
    if begin + (packed if known else 0) > len(data):
        return InputError(Status.CORRUPT_IMAGE, "its local header reaches into the next member")
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
        return InputError(Status.CORRUPT_IMAGE, "its checksum is another than the zip says")
    return found


def _described(rest: bytes) -> int:
    """The checksum in a data descriptor, which may have a signature or not; -1 where there is none."""
    place = 4 if rest.startswith(_DESCRIPTOR) else 0
    return int.from_bytes(rest[place : place + 4], "little") if len(rest) >= place + 4 else -1


def _stored(body: bytes, size: int) -> tuple[bytes, bytes]:
    return body[:size], body[size:]


def _inflated(body: bytes, size: int) -> tuple[bytes, bytes]:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    return stream.decompress(body, size + 1), stream.unused_data


def _bunzipped(body: bytes, size: int) -> tuple[bytes, bytes]:
    stream = bz2.BZ2Decompressor()
    return stream.decompress(body, size + 1), stream.unused_data


# size + 1 bytes at most: what is more shows that the declared size was a lie.
METHODS: dict[int, Callable[[bytes, int], tuple[bytes, bytes]]] = {0: _stored, 8: _inflated, 12: _bunzipped}
