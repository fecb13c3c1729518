"""How a stream is unpacked: gzip, bzip2, xz and zstd, each by the interface that Python's own decompressors share.

None gives more than it is asked for, whatever a stream claims; what a decoder may hold itself is bounded for xz and zstd.
"""

import bz2
import lzma
import zlib
from dataclasses import dataclass
from typing import Any, Protocol

from ray_app.errors import InputError, Status

_GZIP = 16 + zlib.MAX_WBITS
_XZ_MEMORY = 192 * 2**20  # `xz -9` asks for 65 MiB; the format allows 4 GiB


class Decompressor(Protocol):
    """Unpacks one stream; after its end it is of no more use."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended, its checksum holding."""

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes without further packed bytes."""

    @property
    def unused_data(self) -> bytes:
        """What lies behind the end."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Up to `max_length` bytes, once `data` has joined what is waiting."""


@dataclass(frozen=True)
class StreamCodec:
    """One of them, under the name that a damaged stream is told by."""

    name: str

    def start(self) -> Decompressor:
        """For one stream. Raises InputError where what it needs is not installed."""
        if self.name == "gzip":
            return _Gzip()
        if self.name == "bzip2":
            return bz2.BZ2Decompressor()
        if self.name == "xz":
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)
        decompressor: Decompressor = _zstd().ZstdDecompressor()  # refuses windows of more than 128 MiB
        return decompressor

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What it raises for a stream that is none."""
        own = {"gzip": (zlib.error,), "bzip2": (OSError, ValueError), "xz": (lzma.LZMAError,)}
        return own[self.name] if self.name in own else (_zstd().ZstdError,)


class _Gzip:
    """zlib's, which leaves it to its caller to keep what it has not looked at yet."""

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
        from compression import zstd  # type: ignore[import-not-found, unused-ignore] # of Python 3.14
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise InputError(Status.UNSUPPORTED_FORMAT, "a zstd archive: pip install 'touchstone[zst]'") from None
    return zstd
