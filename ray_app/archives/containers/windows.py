"""Members that lie near each other in one file, read with one request. Knows places and lengths; knows no format."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ray_app.archives.members import Member
from ray_app.errors import InputError, SourceError, Status
from ray_app.storage import Fetcher
from ray_app.storage.errors import too_large

# One request of 8 MiB costs a store as much as one of 8 KiB; a gap of 64 KiB takes less time than a further request.
WINDOW_BYTES, GAP_BYTES = 8 * 2**20, 64 * 2**10
_AHEAD = 64 * 2**20

Unpack = Callable[[Member, bytes], bytes | InputError]


@dataclass
class _Window:
    """Bytes `start` to `end`, and how many members are cut out of them."""

    start: int
    end: int
    members: list[Member] = field(default_factory=list)

    def takes(self, start: int, end: int) -> bool:
        return self.start <= start <= self.end + GAP_BYTES and end - self.start <= WINDOW_BYTES


class WindowReader:
    """A `Reader` for formats in which a member is a range of its file; `unpack` makes the member of what its range holds."""

    def __init__(self, fetcher: Fetcher, max_bytes: int, unpack: Unpack = lambda member, data: data) -> None:
        self._fetcher, self._max_bytes, self._unpack = fetcher, max_bytes, unpack

    def read(self, members: Sequence[Member]) -> Iterator[bytes | InputError]:
        """See `Reader`; a member over `max_bytes` is refused unread."""
        windows = list(_windows([member for member in members if member.size_bytes <= self._max_bytes]))
        uri, version = (members[0].uri, members[0].version) if members else ("", "")
        ranges = [(window.start, window.end - window.start) for window in windows]
        arriving = zip(windows, self._fetcher.prefetch_ranges(uri, version, ranges, depth_bytes=_AHEAD), strict=True)
        cut = (piece for window, data in arriving for piece in _pieces(window, data, self._unpack))
        for member in members:
            yield too_large(member.size_bytes, self._max_bytes) if member.size_bytes > self._max_bytes else next(cut)


def _windows(members: Sequence[Member]) -> Iterator[_Window]:
    window: _Window | None = None
    for member in members:
        start, end = _span(member)
        if window is None or not window.takes(start, end):
            if window is not None:
                yield window
            window = _Window(start, end)
        window.end = max(window.end, end)
        window.members.append(member)
    if window is not None:
        yield window


def _pieces(window: _Window, data: bytes | InputError, unpack: Unpack) -> Iterator[bytes | InputError]:
    for member in window.members:
        if isinstance(data, InputError):
            yield data
            continue
        start, end = _span(member)
        piece = data[start - window.start : end - window.start]
        if len(piece) < end - start:
            yield SourceError(Status.SOURCE_CHANGED, f"the archive ends before the {member.member} that was listed")
        else:
            yield unpack(member, piece)


def _span(member: Member) -> tuple[int, int]:
    assert member.place is not None
    return member.place.offset, member.place.offset + member.place.length
