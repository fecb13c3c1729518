"""Tar files that are compressed as a whole: one stream, unpacked from its start, in memory that does not grow. Knows no codec."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ray_app.archives.containers.container import Container
from ray_app.archives.containers.entries import Entry, members_of
from ray_app.archives.containers.stream_codecs import StreamCodec
from ray_app.archives.containers.tar import entries_of
from ray_app.archives.members import Listed, Member
from ray_app.errors import InputError, SourceError, Status
from ray_app.storage import Fetcher
from ray_app.storage.errors import too_large

_PIECE = 64 * 2**10  # packed bytes at once
_STEP = 2**20  # unpacked at once; also what may be unpacked before a ratio counts
_TAIL = 2**20  # after the end mark there is padding, then the checksum


@dataclass(frozen=True)
class CompressedTar:
    """A `Format`: tar in the streams of one codec."""

    kind: str
    codec: StreamCodec

    def index(self, container: Container, fetcher: Fetcher) -> Iterator[Listed]:
        """Every member; the whole stream is unpacked once, up to `max_ratio`."""
        return members_of(container, _entries(container, fetcher, self))

    def reader(self, fetcher: Fetcher, max_bytes: int) -> "TarStreamReader":
        """Goes on where it stopped, from one block of a shard to the next."""
        return TarStreamReader(fetcher, max_bytes, self.codec)


class Unpacked:
    """The unpacked stream of one compressed object, read forward; one that is cut short just ends, and `cut` says so.

    Every method raises InputError: corrupt_image for a damaged stream, image_too_large over `max_ratio`, or what the store says.
    """

    def __init__(
        self, codec: StreamCodec, fetcher: Fetcher, uri: str, version: str, size_bytes: int = -1, max_ratio: float | None = None
    ) -> None:
        self._codec = codec
        self._stream = codec.start()
        self._packed = fetcher.open(uri, version, size_bytes)
        self._waiting = b""
        self._place = 0
        self._max_ratio = max_ratio
        self.cut = False

    def tell(self) -> int:
        """The place of the next unpacked byte."""
        return self._place

    def read(self, size: int) -> bytes:
        """The next bytes, fewer only where the stream ends."""
        parts: list[bytes] = []
        while size > 0 and (part := self._some(min(size, _STEP))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def seek(self, offset: int) -> int:
        """Go on to a place, or to the end when that comes first; there is no way back."""
        while self.tell() < offset and self._some(min(offset - self.tell(), _STEP)):
            pass
        return self.tell()

    def _some(self, size: int) -> bytes:
        try:
            data = self._inflated(size)
        except self._codec.errors as error:
            reason = f"not a readable {self._codec.name} stream after {self._place} unpacked bytes: {error}"
            raise InputError(Status.CORRUPT_IMAGE, reason) from None
        self._place += len(data)
        packed = max(1, self._packed.tell() - len(self._waiting))
        if self._max_ratio is not None and self._place > max(_STEP, packed * self._max_ratio):
            reason = (
                f"{self._place} bytes unpacked from {packed}, over container_limits.max_ratio ({self._max_ratio:g}); members may be missing"
            )
            raise InputError(Status.IMAGE_TOO_LARGE, reason, limit=self._max_ratio, observed=self._place / packed)
        return data

    def _inflated(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end. Streams behind one another are one, with zeros between them."""
        while True:
            if self._stream.eof:
                self._pass_zeros()
                if not self._waiting:
                    return b""
                self._stream = self._codec.start()
            if self._stream.needs_input:
                self._waiting = self._waiting or self._packed.read(_PIECE)
                if not self._waiting:
                    self.cut = True
                    return b""
            data = self._stream.decompress(self._waiting, size)
            self._waiting = self._stream.unused_data if self._stream.eof else b""
            if data:
                return data

    def _pass_zeros(self) -> None:
        while not self._waiting.strip(b"\0") and (more := self._packed.read(_PIECE)):
            self._waiting = more
        self._waiting = self._waiting.lstrip(b"\0")


class TarStreamReader:
    """Keeps one stream open: members in the order of the archive are had by unpacking it once."""

    def __init__(self, fetcher: Fetcher, max_bytes: int, codec: StreamCodec) -> None:
        self._fetcher, self._max_bytes, self._codec = fetcher, max_bytes, codec
        self._open: tuple[str, str, Unpacked] | None = None

    def read(self, members: Sequence[Member]) -> Iterator[bytes | InputError]:
        """See `Reader`. A stream that breaks is not tried again for those that lie behind the break."""
        broken: tuple[int, InputError] | None = None
        for member in members:
            assert member.place is not None
            if member.size_bytes > self._max_bytes:
                yield too_large(member.size_bytes, self._max_bytes)
            elif broken is not None and member.place.offset >= broken[0]:
                yield broken[1]
            else:
                try:
                    yield self._one(member.uri, member.version, member.place.offset, member.place.length)
                except InputError as error:
                    self._open, broken = None, (member.place.offset, error)
                    yield error

    def _one(self, uri: str, version: str, offset: int, length: int) -> bytes:
        if self._open is None or self._open[:2] != (uri, version) or self._open[2].tell() > offset:
            self._open = None
            self._open = (uri, version, Unpacked(self._codec, self._fetcher, uri, version))
        stream = self._open[2]
        stream.seek(offset)
        data = stream.read(length)
        if len(data) < length and stream.cut:
            raise InputError(Status.TRUNCATED_IMAGE, f"the {self._codec.name} stream ends after {stream.tell()} unpacked bytes")
        if len(data) < length:
            raise SourceError(Status.SOURCE_CHANGED, "the archive ends before the member that was listed")
        return data


def _entries(container: Container, fetcher: Fetcher, form: CompressedTar) -> Iterator[Entry]:
    if not container.size_bytes:
        raise InputError(Status.EMPTY_FILE, "an archive without a byte")
    stream = Unpacked(form.codec, fetcher, container.uri, container.version, container.size_bytes, container.limits.max_ratio)

    yield from entries_of(stream, form.kind, lambda header: stream.seek(header.offset + header.stored) - header.offset)
    if stream.cut:
        return  # as the last member says
    stream.seek(stream.tell() + _TAIL)  # raises where the checksum does not hold
    if stream.cut:
        raise InputError(Status.TRUNCATED_IMAGE, f"the {form.codec.name} stream ends before its checksum: members may be damaged")
