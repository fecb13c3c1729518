"""Ranged reads: the Range header and its answers (`range_header`, `total_size`, `take`), and
`RangedFile`, a seekable file of ranges.
"""

import io
import re
from collections.abc import AsyncIterator, Callable

from ray_app.errors import InputError, SourceError, Status
from ray_app.storage.errors import ShortReadError

# Large enough that a fast network is busy with one request after the other, small enough to be held
# by every reader.
WINDOW_BYTES = 4 * 2**20
_CONTENT_RANGE = re.compile(r"^bytes (\d+)-(\d+)/(\d+|\*)$")
# A server that knows no ranges sends everything: passing over a little costs less than giving up,
# over much it costs everyone.
_PASSED_OVER = 64 * 2**20


def range_header(start: int, length: int) -> str:
    """The bytes from `start`, as an HTTP Range."""
    return f"bytes={start}-{start + length - 1}"


def total_size(content_range: str | None, content_length: int | None) -> int | None:
    """The whole object's size, which `Content-Range: bytes 0-9/1000` says; without that header the
    answer is the whole object.
    """
    match = _CONTENT_RANGE.match(content_range or "")
    if match is None:
        return content_length
    return None if match[3] == "*" else int(match[3])


async def take(
    pieces: AsyncIterator[bytes],
    content_range: str | None,
    total: int | None,
    start: int,
    length: int,
) -> bytes:
    """Bytes `start` to `start + length` of the object out of an answer that holds them, or all of
    it.

    Raises ShortReadError (fewer came than there are, or others), SourceError (a store that knows no
    ranges, asked deep into an object).
    """
    match = _CONTENT_RANGE.match(content_range or "")
    if match is not None and int(match[1]) != start:
        raise ShortReadError(f"asked for the bytes from {start}, got those from {match[1]}")
    skipped = start if match is None else 0
    if skipped + length > _PASSED_OVER and skipped:
        raise SourceError(
            Status.SOURCE_DENIED,
            f"the server sends only whole files, and the bytes needed begin at {start}",
        )
    data = bytearray()
    async for piece in pieces:
        data += piece
        if len(data) >= skipped + length and match is None:
            # an answer that is read to its end leaves the connection usable, but this one may go on
            # for gigabytes
            break
    found = bytes(memoryview(data)[skipped : skipped + length])
    if total is not None and len(found) < min(length, max(0, total - start)):
        raise ShortReadError(f"{len(found)} of {min(length, total - start)} bytes came")
    return found


class RangedFile(io.RawIOBase):
    """A seekable binary file of which only windows are ever held: `read_range(start, length)` gets
    each.

    What lies in the present window costs nothing, reading on gets the next one, and a jump towards
    the end gets the last window whole, where containers keep their directories. `failed` is what a
    read raised, since not every library hands that on.
    """

    def __init__(
        self, read_range: Callable[[int, int], bytes], size_bytes: int, window: int
    ) -> None:
        self._read_range, self._size, self._window = read_range, size_bytes, window
        self._position = self._start = 0
        self._held = memoryview(b"")
        self.failed: InputError | None = None

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes, at no cost by itself."""
        return True

    def tell(self) -> int:
        """The place of the next byte to be read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, also one behind the end. Raises ValueError for one before the first byte."""
        place = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        )
        if place < 0:
            raise ValueError(f"no place before the first byte: {place}")
        self._position = place
        return place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as the object reaches."""
        wanted = memoryview(buffer).cast("B")
        done = 0
        while done < len(wanted) and self._position < self._size:
            part = self._here(len(wanted) - done)
            if not part:
                break
            wanted[done : done + len(part)] = part
            done += len(part)
            self._position += len(part)
        return done

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, fewer only where the object ends; -1 = all that is left."""
        # RawIOBase would allocate whatever a lying header asks for before it finds that there is
        # less.
        left = max(0, self._size - self._position)
        return super().read(left if size is None or size < 0 else min(size, left)) or b""

    def _here(self, length: int) -> memoryview:
        """Held bytes from the present position on, at most `length`, after fetching a window where
        none are.
        """
        skip = self._position - self._start
        if not 0 <= skip < len(self._held):
            begin, held_end = self._position, self._start + len(self._held)
            if begin + self._window >= self._size:  # from before that place, but nothing twice
                begin = max(
                    0, self._size - max(self._window, length), held_end if held_end <= begin else 0
                )
            self._held = memoryview(b"")  # never two windows at once
            try:
                self._held = memoryview(
                    self._read_range(begin, min(max(self._window, length), self._size - begin))
                )
            except InputError as error:
                self.failed = error
                raise
            self._start, skip = begin, self._position - begin
        return self._held[skip : skip + length]
