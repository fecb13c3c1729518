"""Read ranges of files over HTTP: Range headers, responses, and a seekable file (`RangedFile`)."""

import io
import re
from collections.abc import AsyncIterator, Callable

from ray_app.errors import InputError, SourceError, Status
from ray_app.storage.errors import ShortReadError

# Large enough to keep a fast network busy with one request after another, and small enough that
# every reader can hold a window.
WINDOW_BYTES = 4 * 2**20
_CONTENT_RANGE = re.compile(r"^bytes (\d+)-(\d+)/(\d+|\*)$")
# A server without ranges sends the whole file. Up to this size, skipping the beginning costs less
# than a failure.
_MAX_SKIPPED = 64 * 2**20


def range_header(start: int, length: int) -> str:
    """Return the value of the HTTP Range header for `length` bytes from `start`."""
    return f"bytes={start}-{start + length - 1}"


def total_size(content_range: str | None, content_length: int | None) -> int | None:
    """Return the size of a whole object from the headers of a response, None if it is unknown.

    For `Content-Range: bytes 0-9/1000`, the size is 1000. Without this header, the response is the
    whole object, and the size is its Content-Length.
    """
    match = _CONTENT_RANGE.match(content_range or "")
    if match is None:
        return content_length
    return None if match[3] == "*" else int(match[3])


async def take(
    chunks: AsyncIterator[bytes],
    content_range: str | None,
    total: int | None,
    start: int,
    length: int,
) -> bytes:
    """Return the requested bytes from the response to a range request.

    The response has only the requested bytes, or the whole object if the server ignores ranges.

    Args:
        chunks: The body of the response.
        content_range: The Content-Range header of the response.
        total: The size of the object, None if it is unknown.
        start: The position of the first byte.
        length: The number of bytes.

    Returns:
        The bytes, which are fewer than `length` if the object ends.

    Raises:
        ShortReadError: The response has too few bytes, or bytes of another range.
        SourceError: The server does not support ranges, `start` is not 0, and the requested bytes
            end after the first 64 MiB of the object.
    """
    match = _CONTENT_RANGE.match(content_range or "")
    if match is not None and int(match[1]) != start:
        raise ShortReadError(f"requested bytes from {start}, received bytes from {match[1]}")
    skipped = start if match is None else 0
    if skipped + length > _MAX_SKIPPED and skipped:
        raise SourceError(
            Status.SOURCE_DENIED,
            f"the server sends only whole files, and the required bytes begin at {start}",
        )
    data = bytearray()
    async for chunk in chunks:
        data += chunk
        if len(data) >= skipped + length and match is None:
            # Reading to the end would keep the connection usable, but the rest may be gigabytes.
            break
    data_in_range = bytes(memoryview(data)[skipped : skipped + length])
    if total is not None and len(data_in_range) < min(length, max(0, total - start)):
        raise ShortReadError(f"received {len(data_in_range)} of {min(length, total - start)} bytes")
    return data_in_range


class RangedFile(io.RawIOBase):
    """A seekable binary file that is read in windows, of which one is in memory.

    Reads inside the current window make no request. A read after it requests the next window. A
    read near the end of the file requests the whole last window, because containers such as zip
    have their directories there.

    Args:
        read_range: A function that returns `length` bytes of the file from `start`.
        size_bytes: The size of the file in bytes.
        window: The size of a window in bytes.

    Attributes:
        failed: The exception of a failed read, or None. Some libraries do not raise it again.
    """

    def __init__(
        self, read_range: Callable[[int, int], bytes], size_bytes: int, window: int
    ) -> None:
        self._read_range, self._size, self._window = read_range, size_bytes, window
        self._position = self._start = 0
        self._loaded = memoryview(b"")
        self.failed: InputError | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True. Seeking makes no request."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte to be read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position of the next read, which may be after the end, and return the position.

        Raises:
            ValueError: The position is negative.
        """
        position = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        )
        if position < 0:
            raise ValueError(f"position must be at least 0, got {position}")
        self._position = position
        return position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read bytes into the buffer until it is full or the file ends, and return their number."""
        target = memoryview(buffer).cast("B")
        n_read = 0
        while n_read < len(target) and self._position < self._size:
            chunk = self._get_bytes(len(target) - n_read)
            if not chunk:
                break
            target[n_read : n_read + len(chunk)] = chunk
            n_read += len(chunk)
            self._position += len(chunk)
        return n_read

    def read(self, size: int | None = -1) -> bytes:
        """Return the next `size` bytes, or fewer at the end. -1 returns the rest of the file."""
        # RawIOBase would allocate any size that a malicious header requests, even if the file is
        # smaller.
        remaining = max(0, self._size - self._position)
        return super().read(remaining if size is None or size < 0 else min(size, remaining)) or b""

    def _get_bytes(self, length: int) -> memoryview:
        """Return up to `length` bytes at the current position, and fetch a window if needed."""
        skip = self._position - self._start
        if not 0 <= skip < len(self._loaded):
            begin, window_end = self._position, self._start + len(self._loaded)
            if (
                begin + self._window >= self._size
            ):  # Begin before that position, but read no byte twice.
                begin = max(
                    0,
                    self._size - max(self._window, length),
                    window_end if window_end <= begin else 0,
                )
            self._loaded = memoryview(b"")  # Never hold two windows at the same time.
            try:
                self._loaded = memoryview(
                    self._read_range(begin, min(max(self._window, length), self._size - begin))
                )
            except InputError as error:
                self.failed = error
                raise
            self._start, skip = begin, self._position - begin
        return self._loaded[skip : skip + length]
