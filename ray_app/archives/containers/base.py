"""Define the types and functions that all container formats share, such as tar, zip, and Parquet.

A `Container` is a file that holds members. A `ContainerFormat` lists and reads the members of one
format. `iter_members` checks the files in a container's listing and turns them into members.
`WindowReader` reads members that are ranges of bytes.

Names of members are labels for people and are never used as paths. A sidecar is a small text file
that describes the image of the same key: the path up to the first dot of the base name
(https://github.com/webdataset/webdataset#the-webdataset-format). `a/7.jpg`, `a/7.json` and
`a/7.cls` are one sample if they follow each other.
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

# A request of 8 MiB costs a store as much as a request of 8 KiB. Reading a gap of 64 KiB takes less
# time than another request.
WINDOW_BYTES, GAP_BYTES = 8 * 2**20, 64 * 2**10
_AHEAD = 64 * 2**20

Unpack = Callable[[ManifestMember, bytes], bytes | InputError]

_COLUMNS = ("json", "cls", "txt")
MAX_SIDECAR_BYTES = 64 * 1024
# A sample has a handful of files. A key with more files than this follows another naming scheme,
# and must not fill memory.
_MAX_FILES_PER_KEY = 64


class ContainerLimits(Frozen):
    """Limits on the members and unpacked bytes of a container.

    A container or member that exceeds a limit is refused. The limits are checked while a container
    is listed, before any member is read for scoring.
    """

    max_members: int = Field(
        default=10_000_000,
        gt=0,
        description="maximum files in one container; further files are not listed",
    )
    max_ratio: float = Field(
        default=200.0,
        gt=1,
        description="maximum of unpacked ÷ packed bytes, of a file above 1 MB and of a whole container",
    )


@dataclass(frozen=True)
class Container:
    """A file that holds many members, such as a tar, as its store lists it, before it is opened.

    Attributes:
        version: The version of the object, "" if unknown.
        size_bytes: The size of the object in bytes, -1 if unknown.
        kind: The format, a key of `CONTAINERS`.
        path: The path of the container below its source. The user's patterns are compared with this
            path and the name of a member, as in `a/b.tar/c.jpg`.
        named: Whether the user gave this file itself as a source. A table may be a list of uris
            only in this case; uris in other containers are not followed.
        samples: The table that img2dataset writes next to a shard, with columns for its members
            (`ray_app.archives.object_prefix`). None if there is no such table.
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

    def as_unopened(self, reason: RefusedMember) -> "Unopened":
        """Return the container itself as a member, with the reason why it cannot be read."""
        return Unopened(self.uri, None, 0, self.version, self.size_bytes, refused=reason)


class Unopened(ListedMember):
    """A member that represents a container whose members could not be listed.

    The results have a row for it in place of rows for the container's members. Include patterns of
    the user let it pass if they might match members of the container.
    """

    __slots__ = ()


class Reader(Protocol):
    """Reads members of one container format, such as tar.

    A worker keeps the reader, so that a container stays open from one block of members to the next.
    """

    def read(self, members: Sequence[ManifestMember]) -> Iterator[bytes | InputError]:
        """Yield, for each of several members of one container, its bytes or the error for it.

        The results have the order of `members`. Errors that concern one member are yielded, not
        raised.
        """


class ContainerFormat(Protocol):
    """The interface of a container format, which lists (`index`) and reads (`reader`) members.

    Modules such as `ray_app.archives.containers.zip` implement it with functions of these names.
    """

    def index(self, container: Container, fetcher: Fetcher) -> Iterator[ListedMember]:
        """Yield every member in the container's order, while the container is read as a stream.

        A member that must not be read has `refused` set. If the container cannot be opened or ends
        early, the last member is `container.as_unopened(reason)`.
        """

    def reader(self, fetcher: Fetcher, max_bytes: int) -> Reader:
        """Return a reader of this format that never yields more than `max_bytes` for one member.

        This holds whatever size the archive declares, and whatever size a member unpacks to.
        """


def find_name_problem(name: str) -> str | None:
    """Return the reason why a member's name is unsafe, or None if it is safe.

    A careless tool would unpack a file with an unsafe name outside the target folder. Examples of
    reasons are `an absolute name` and `'..' in its name`.
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


def escape_name(name: str) -> str:
    r"""Return the name of a member as valid Unicode text, which a table can hold.

    NUL, and bytes that are not UTF-8 (surrogates in the name), become \xNN. All other characters
    are kept.
    """
    return (
        name.encode("utf-8", "surrogateescape")
        .decode("utf-8", "backslashreplace")
        .replace("\0", r"\x00")
    )


class Occurrences:
    """Counts how often each name occurs in one container.

    The counts tell members of equal names apart. To save memory, only 8 bytes of a hash are kept
    per name, because an archive may hold millions of names.
    """

    def __init__(self) -> None:
        self._hashes: set[int] = set()
        self._repeats: dict[int, int] = {}

    def count(self, name: str) -> int:
        """Count the name once more, and return how many times it was counted before."""
        key = int.from_bytes(
            blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
        )
        if key not in self._hashes:
            self._hashes.add(key)
            return 0
        self._repeats[key] = self._repeats.get(key, 0) + 1
        return self._repeats[key]


@dataclass
class _Window:
    """Bytes `start` to `end` of a container, and the members that are cut out of them."""

    start: int
    end: int
    members: list[ManifestMember] = field(default_factory=list)

    def takes(self, start: int, end: int) -> bool:
        return self.start <= start <= self.end + GAP_BYTES and end - self.start <= WINDOW_BYTES


class WindowReader:
    """A `Reader` for formats such as tar, in which each member is a range of bytes.

    Neighbouring members are read with one request. `unpack` converts the bytes of a member's range
    into the member, or into an error.
    """

    def __init__(
        self, fetcher: Fetcher, max_bytes: int, unpack: Unpack = lambda member, data: data
    ) -> None:
        self._fetcher, self._max_bytes, self._unpack = fetcher, max_bytes, unpack

    def read(self, members: Sequence[ManifestMember]) -> Iterator[bytes | InputError]:
        """Yield, for each of several members of one container, its bytes or the error for it.

        A member larger than `max_bytes` is not read, and its error shows this.
        """
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
        parts = (
            part for window, data in arriving for part in _cut_members(window, data, self._unpack)
        )
        for member in members:
            yield (
                errors.make_too_large_error(member.size_bytes, self._max_bytes)
                if member.size_bytes > self._max_bytes
                else next(parts)
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


def _cut_members(
    window: _Window, data: bytes | InputError, unpack: Unpack
) -> Iterator[bytes | InputError]:
    for member in window.members:
        if isinstance(data, InputError):
            yield data
            continue
        start, end = _span(member)
        part = data[start - window.start : end - window.start]
        if len(part) < end - start:
            yield SourceError(
                Status.SOURCE_CHANGED,
                f"the archive ends before the {member.member} that was listed",
            )
        else:
            yield unpack(member, part)


def _span(member: ManifestMember) -> tuple[int, int]:
    assert member.place is not None
    return member.place.offset, member.place.offset + member.place.length


def sidecar_column(name: str, size_bytes: int) -> str | None:
    """Return the name of the column for the text of a sidecar; None for any other file.

    A sidecar is named by a key and `.json`, `.cls`, or `.txt`, and has at most `MAX_SIDECAR_BYTES`.
    `join_sidecars` describes how its text becomes a column.
    """
    key, ending = _split(name)
    is_sidecar = (
        ending.lower() in _COLUMNS
        and key.rpartition("/")[2] != ""
        and 0 <= size_bytes <= MAX_SIDECAR_BYTES
    )
    return ending.lower() if is_sidecar else None


def sample_key(name: str) -> str:
    """Return the WebDataset key of the sample to which a file belongs, its path up to the ending.

    The ending begins at the first dot of the base name: the key of `a.b/c.tar.gz` is `a.b/c`.
    """
    return _split(name)[0]


def decode_text(data: bytes) -> str | None:
    """Return the content of a sidecar, a small text file that describes an image, as text.

    A byte order mark is left out. The result is None if the content is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def join_sidecars(entries: Iterable[tuple[ListedMember, str | None]]) -> Iterator[ListedMember]:
    """Add the texts of sidecar files to the images that they describe, and drop the sidecar files.

    The sidecar `a/7.json` describes neighbours with the same key, such as `a/7.jpg`. Its text
    becomes the column `json` of the image's `input`, a dict of the user's own columns. A sidecar
    without an image, or a second sidecar for the same column, stays a member. `entries` has each
    member in order, with its text if it is a sidecar.
    """
    for _, sample in groupby(entries, key=lambda item: sample_key(item[0].member or "")):
        while part := list(islice(sample, _MAX_FILES_PER_KEY)):
            yield from _join_sample(part)


def _join_sample(sample: list[tuple[ListedMember, str | None]]) -> Iterator[ListedMember]:
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
    """Return key and ending: `a.b/c.tar.gz` is (`a.b/c`, `tar.gz`)."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending


@dataclass(frozen=True, slots=True)
class ContainerEntry:
    """One file in the listing of a container, before its name is checked.

    Attributes:
        place: The location of its data, None if the data cannot be read.
        refused: The reason why the file must not be read, None if it may be.
        text: The content of a sidecar, a small text file that may describe an image. None for other
            files.
    """

    name: str
    size_bytes: int
    place: MemberLocation | None
    refused: RefusedMember | None = None
    text: str | None = None


def explain_refusal(container: Container, error: InputError) -> RefusedMember:
    """Return the reason to store in the row of a container that was not listed to its end.

    Raises StorageError if the store throttled the requests or did not answer in time, because other
    containers would fail, too. A timeout of a local disk is not raised, because it may concern only
    one damaged file.
    """
    is_damaged = error.status == Status.SOURCE_TIMEOUT and urls.get_scheme(container.uri) == "file"
    if error.status in (Status.SOURCE_THROTTLED, Status.SOURCE_TIMEOUT) and not is_damaged:
        raise StorageError(
            f"cannot list {container.uri}: {error.detail}",
            hint="run the same command again to list the archive again",
        ) from error
    return RefusedMember(error.status, error.detail)


def find_size(container: Container, fetcher: Fetcher) -> int:
    """Return a container's size in bytes. The store is asked if the listing does not have the size.

    The size is above 0. Raises InputError if the container is empty, or the store refuses to state
    the size.
    """
    size = (
        container.size_bytes
        if container.size_bytes >= 0
        else fetcher.size(container.uri, container.version)
    )
    if not size:
        raise InputError(Status.EMPTY_FILE, "an empty archive: it has no bytes")
    return size


def iter_members(container: Container, entries: Iterator[ContainerEntry]) -> Iterator[ListedMember]:
    """Check the files in the listing of a container, and yield them as members in order.

    A file with an unsafe name becomes a member that must not be read. The listing ends if `entries`
    raises an InputError, or if there are more than `max_members` files. Then the last member
    represents the container itself, with the reason.
    """
    reasons: list[RefusedMember] = []
    yield from join_sidecars(_iter_limited(container, entries, reasons))
    for reason in reasons:
        yield container.as_unopened(reason)


def _iter_limited(
    container: Container, entries: Iterator[ContainerEntry], reasons: list[RefusedMember]
) -> Iterator[tuple[ListedMember, str | None]]:
    occurrences = Occurrences()
    try:
        for index, entry in enumerate(entries):
            if index >= container.limits.max_members:
                raise InputError(
                    Status.UNSAFE_MEMBER,
                    f"more than container_limits.max_members ({container.limits.max_members}) files; further files are not listed",
                )
            yield _to_member(container, entry, occurrences)
    except InputError as error:
        reasons.append(explain_refusal(container, error))


def _to_member(
    container: Container, entry: ContainerEntry, occurrences: Occurrences
) -> tuple[ListedMember, str | None]:
    name, refused = escape_name(entry.name), entry.refused
    if reason := find_name_problem(entry.name):
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
