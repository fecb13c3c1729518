"""What the container formats share: `Container`, `ContainerFormat`, `members_of` (entries → checked
members), `WindowReader`, WebDataset's sidecars.

Names of members are labels for people, never paths. A sidecar is a small text file that describes
the image of the same key: the path up to the first dot of the base name
(https://github.com/webdataset/webdataset#the-webdataset-format). `a/7.jpg`, `a/7.json` and
`a/7.cls` are one sample when they stand side by side.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import groupby, islice
from typing import Protocol

from pydantic import Field

from ray_app.archives.members import (
    ListedMember,
    ManifestMember,
    MemberLocation,
    RefusedMember,
    TableColumns,
)
from ray_app.config import Frozen
from ray_app.errors import InputError, SourceError, Status, StorageError
from ray_app.storage import Fetcher, errors, urls

_DRIVE = re.compile(r"^[A-Za-z]:")

# One request of 8 MiB costs a store as much as one of 8 KiB; a gap of 64 KiB takes less time than a
# further request.
WINDOW_BYTES, GAP_BYTES = 8 * 2**20, 64 * 2**10
_AHEAD = 64 * 2**20

Unpack = Callable[[ManifestMember, bytes], bytes | InputError]

_COLUMNS = ("json", "cls", "txt")
MAX_SIDECAR_BYTES = 64 * 1024
# A sample has a handful of files; a key that goes on for ever is another way of naming, and must
# not fill memory.
_MOST_OF_ONE_KEY = 64


class ContainerLimits(Frozen):
    """What an archive may cost before it, or a member, is refused (specs/intake.md §4.3). All are
    checked before anything is unpacked.
    """

    max_members: int = Field(
        default=10_000_000, gt=0, description="files in one container; further ones are refused"
    )
    max_ratio: float = Field(
        default=200.0,
        gt=1,
        description="unpacked ÷ packed bytes, of a file above 1 MB and of a whole container",
    )


@dataclass(frozen=True)
class Container:
    """An unopened container as its store lists it. `path` is what patterns are compared with,
    before the member's own name.

    `named`: the user gave this very file as a source, so that a table may be a list of uris; any
    other names nothing that is fetched. `samples`: the table beside a shard with columns of its
    members (`ray_app.archives.object_prefix`).
    """

    uri: str
    version: str
    size_bytes: int
    kind: str
    path: str
    columns: TableColumns
    limits: ContainerLimits
    named: bool = False
    samples: "Container | None" = None

    def itself(self, why: RefusedMember) -> "Unopened":
        """The container as a member: what stands in the manifest where it cannot be opened, or ends
        early.
        """
        return Unopened(self.uri, None, 0, self.version, self.size_bytes, refused=why)


class Unopened(ListedMember):
    """A container whose members could not be listed, in their place: patterns on names cannot leave
    it out.
    """

    __slots__ = ()


class Reader(Protocol):
    """Reads members of one format for as long as a worker lives; what it keeps open saves reading
    again.
    """

    def read(self, members: Sequence[ManifestMember]) -> Iterator[bytes | InputError]:
        """The bytes of members of one container, in their order, or why there are none. Raises
        nothing that is about one member.
        """


class ContainerFormat(Protocol):
    """One container format: a module of this package with these two functions."""

    def index(self, container: Container, fetcher: Fetcher) -> Iterator[ListedMember]:
        """Every member, streamed, in the container's order. One that must not be read has `refused`
        set; a container that cannot be opened, or ends early, adds `container.itself(reason)`.
        Raises StorageError when the store is out of reach.
        """

    def reader(self, fetcher: Fetcher, max_bytes: int) -> Reader:
        """A reader that never gives more than `max_bytes` for one member, however much its archive
        claims or unpacks to.
        """


def why_unsafe(name: str) -> str | None:
    """What is wrong with a name that a careless tool would unpack outside its folder; None for a
    safe one.
    """
    if not name:
        return "it has no name"
    if "\0" in name:
        return "a NUL in its name"
    if name.startswith(("/", "\\")):
        return "an absolute name"
    if _DRIVE.match(name):
        return "a drive letter in its name"
    if ".." in re.split(r"[/\\]", name):
        return "'..' in its name"
    return None


def printable(name: str) -> str:
    r"""The name as a table can hold it: bytes that are no UTF-8 (as surrogates) and NUL become
    \xNN, all else is kept verbatim.
    """
    return (
        name.encode("utf-8", "surrogateescape")
        .decode("utf-8", "backslashreplace")
        .replace("\0", r"\x00")
    )


class Occurrences:
    """Counts equal names of one container: 8 bytes of a hash per name, since an archive may hold
    millions.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._again: dict[int, int] = {}

    def count(self, name: str) -> int:
        """How many times the name was counted before."""
        key = int.from_bytes(
            blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
        )
        if key not in self._seen:
            self._seen.add(key)
            return 0
        self._again[key] = self._again.get(key, 0) + 1
        return self._again[key]


@dataclass
class _Window:
    """Bytes `start` to `end`, and how many members are cut out of them."""

    start: int
    end: int
    members: list[ManifestMember] = field(default_factory=list)

    def takes(self, start: int, end: int) -> bool:
        return self.start <= start <= self.end + GAP_BYTES and end - self.start <= WINDOW_BYTES


class WindowReader:
    """A `Reader` for formats in which a member is a range of its file; `unpack` makes the member of
    what its range holds.
    """

    def __init__(
        self, fetcher: Fetcher, max_bytes: int, unpack: Unpack = lambda member, data: data
    ) -> None:
        self._fetcher, self._max_bytes, self._unpack = fetcher, max_bytes, unpack

    def read(self, members: Sequence[ManifestMember]) -> Iterator[bytes | InputError]:
        """See `Reader`; a member over `max_bytes` is refused unread."""
        windows = list(
            _windows([member for member in members if member.size_bytes <= self._max_bytes])
        )
        uri, version = (members[0].uri, members[0].version) if members else ("", "")
        ranges = [(window.start, window.end - window.start) for window in windows]
        arriving = zip(
            windows,
            self._fetcher.prefetch_ranges(uri, version, ranges, depth_bytes=_AHEAD),
            strict=True,
        )
        cut = (piece for window, data in arriving for piece in _pieces(window, data, self._unpack))
        for member in members:
            yield (
                errors.too_large(member.size_bytes, self._max_bytes)
                if member.size_bytes > self._max_bytes
                else next(cut)
            )


def _windows(members: Sequence[ManifestMember]) -> Iterator[_Window]:
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


def _pieces(
    window: _Window, data: bytes | InputError, unpack: Unpack
) -> Iterator[bytes | InputError]:
    for member in window.members:
        if isinstance(data, InputError):
            yield data
            continue
        start, end = _span(member)
        piece = data[start - window.start : end - window.start]
        if len(piece) < end - start:
            yield SourceError(
                Status.SOURCE_CHANGED,
                f"the archive ends before the {member.member} that was listed",
            )
        else:
            yield unpack(member, piece)


def _span(member: ManifestMember) -> tuple[int, int]:
    assert member.place is not None
    return member.place.offset, member.place.offset + member.place.length


def sidecar_column(name: str, size_bytes: int) -> str | None:
    """The column that a member would become; None for one that is no sidecar by its name or size."""
    key, ending = _split(name)
    is_one = (
        ending.lower() in _COLUMNS
        and key.rpartition("/")[2] != ""
        and 0 <= size_bytes <= MAX_SIDECAR_BYTES
    )
    return ending.lower() if is_one else None


def sample_key(name: str) -> str:
    """The key of the sample that a file belongs to."""
    return _split(name)[0]


def as_text(data: bytes) -> str | None:
    """A sidecar's text; None for what is no text, which stays a member."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def join_sidecars(found: Iterable[tuple[ListedMember, str | None]]) -> Iterator[ListedMember]:
    """Members in order, those with a text as columns of the others of their key. An orphan, or a
    second of one column, stays a member.
    """
    for _, sample in groupby(found, key=lambda item: sample_key(item[0].member or "")):
        while part := list(islice(sample, _MOST_OF_ONE_KEY)):
            yield from _joined(part)


def _joined(sample: list[tuple[ListedMember, str | None]]) -> Iterator[ListedMember]:
    if all(text is not None for _, text in sample):
        yield from (item for item, _ in sample)
        return
    columns: dict[str, str] = {}
    members: list[ListedMember] = []
    for item, text in sample:
        column = sidecar_column(item.member or "", item.size_bytes)
        if text is None or column is None or column in columns:
            members.append(item)
        else:
            columns[column] = text
    yield from (replace(item, input=item.input | columns) for item in members)


def _split(name: str) -> tuple[str, str]:
    """Key and ending: `a.b/c.tar.gz` is (`a.b/c`, `tar.gz`)."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending


@dataclass(frozen=True, slots=True)
class ContainerEntry:
    """One file that a container names. `text`: what it says, where it may be a sidecar."""

    name: str
    size_bytes: int
    place: MemberLocation | None
    refused: RefusedMember | None = None
    text: str | None = None


def why_closed(container: Container, error: InputError) -> RefusedMember:
    """Return what an archive's own row shows when listing its members ends with `error`.

    Raises:
        StorageError: The store gave no answer, so it will give none for other archives either; but
            a disk may have one damaged file.
    """
    is_damaged = error.status == Status.SOURCE_TIMEOUT and urls.scheme_of(container.uri) == "file"
    if error.status in (Status.SOURCE_THROTTLED, Status.SOURCE_TIMEOUT) and not is_damaged:
        raise StorageError(
            f"cannot list {container.uri}: {error.detail}",
            hint="run the same command again: it lists the archive anew",
        ) from error
    return RefusedMember(error.status, error.detail)


def size_of(container: Container, fetcher: Fetcher) -> int:
    """The archive's size in bytes, requested from its store where the listing lacks it. Raises
    InputError for an empty one.
    """
    size = (
        container.size_bytes
        if container.size_bytes >= 0
        else fetcher.size(container.uri, container.version)
    )
    if not size:
        raise InputError(Status.EMPTY_FILE, "an empty archive: it has no bytes")
    return size


def members_of(container: Container, entries: Iterator[ContainerEntry]) -> Iterator[ListedMember]:
    """The entries as members, in order. An InputError of `entries`, or one member too many, ends
    them: a row of the container says why.

    Raises StorageError where the store gave no answer.
    """
    ended: list[RefusedMember] = []
    yield from join_sidecars(_counted(container, entries, ended))
    for reason in ended:
        yield container.itself(reason)


def _counted(
    container: Container, entries: Iterator[ContainerEntry], ended: list[RefusedMember]
) -> Iterator[tuple[ListedMember, str | None]]:
    occurrences = Occurrences()
    try:
        for number, entry in enumerate(entries):
            if number >= container.limits.max_members:
                raise InputError(
                    Status.UNSAFE_MEMBER,
                    f"more than {container.limits.max_members} files; further ones are not listed",
                )
            yield _listed(container, entry, occurrences)
    except InputError as error:
        ended.append(why_closed(container, error))


def _listed(
    container: Container, entry: ContainerEntry, occurrences: Occurrences
) -> tuple[ListedMember, str | None]:
    name, refused = printable(entry.name), entry.refused
    if reason := why_unsafe(entry.name):
        refused = RefusedMember(Status.UNSAFE_MEMBER, reason)
    item = ListedMember(
        container.uri,
        name,
        occurrences.count(name),
        container.version,
        entry.size_bytes,
        place=None if refused else entry.place,
        refused=refused,
    )
    return item, None if refused else entry.text
