"""List one section (part) of an archive into raw files (`SectionLister`).

A section is for example a folder of an S3 prefix. A raw file (`RawFile`) has consecutive
members of a section, which are not cut into blocks yet. Raw files are temporary. They are stored in
`listing/` in the folder of the manifest or portion until their members are cut into blocks. The
content of a small raw file is kept in its `RawFile` object instead.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.archives import members, object_prefix, sources
from ray_app.archives.containers import Container, Unopened
from ray_app.archives.manifest import (
    get_input_type,
    has_archive_columns,
    listed_rows,
    merge_input_types,
    to_parquet_bytes,
    widen_input,
)
from ray_app.archives.selection import Selection
from ray_app.storage import Fetcher, NotedFolders, Store, count_linked_folders

Progress = Callable[[int], object]

RAW_ROWS = 131_072  # Members of one raw file, which a task holds in memory.
SUMS = 1 << 256  # Digests of sections are sums modulo this.
_BATCH_ROWS = 8192
_CARRIED_BYTES = 256 * 1024  # A smaller raw file is not written to the store.
_CLOSED_TYPES = (members.UnreadableFolder, members.VersionlessFile, Unopened)


@dataclass(frozen=True)
class RawFile:
    """A Parquet file with consecutive members of one section, before they are cut into blocks.

    The column `check` has a further word of each member's digest, which differs if two members have
    the same id.

    Attributes:
        has_groups: Whether some members are in containers. Such members are best read together with
            their neighbours.
        as_text: Whether columns whose types clash become texts (`merge_input_types`).
        input_type: The type of the column `input`, which has the user's own columns. None if there
            are none.
        data: The content of a small file, which is not stored at `path`; None if it is stored.
    """

    rows: int
    largest_bytes: int
    has_groups: bool
    as_text: bool
    input_type: pa.StructType | None
    path: str
    data: bytes | None

    def stored(self, store: Store) -> "RawFile":
        """Write the content to `path` if this object holds it.

        The result is the same raw file without its content.
        """
        if self.data is None:
            return self
        store.write(self.path, self.data)
        return replace(self, data=None)

    @property
    def carried_bytes(self) -> int:
        """The memory in bytes that this `RawFile` object takes."""
        return len(self.data or b"")

    def tables(self, store: Store, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of the members in order, as tables of some thousand rows each."""
        file = pq.ParquetFile(
            pa.BufferReader(store.read(self.path) if self.data is None else self.data)
        )
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)


@dataclass(frozen=True)
class ClosedPlace:
    """A folder, file, or container whose members could not be listed.

    The version is None for a folder, "" if it is unknown.
    """

    uri: str
    version: str | None


@dataclass(frozen=True)
class SectionListing:
    """The result of listing one section of a source: its members and containers.

    Attributes:
        found: The number of members before the user's patterns are applied.
        kept: The number of members that the patterns let pass.
        files: The raw files with the members that passed, which are not cut into blocks yet.
        digest: The sum, modulo 2**256, of the SHA-256 digests of all members and containers that
            passed. If a section is listed in parts, the digests of the parts add up to the same
            sum.
        settled: Whether each member that passed is inside a container, or is refused for a lasting
            reason, such as damage. If so, an unchanged container still has the same members.
        linked: The number of symbolic links to folders, which were not followed, and an example.
        rest: The part of a section of an S3 prefix that was not listed, because only its beginning was
            requested. None if the section was listed to its end.
    """

    found: int
    kept: int
    files: tuple[RawFile, ...]
    containers: tuple[Container, ...]
    digest: int
    settled: bool
    linked: NotedFolders
    closed: tuple[ClosedPlace, ...] = ()
    rest: object_prefix.PrefixSection | None = None


@dataclass(frozen=True)
class SectionLister:
    """Lists sections of one archive into raw files. It is picklable, so that tasks can use it.

    A raw file has members that are not cut into blocks yet.

    Attributes:
        raw_rows: The maximum number of members of a raw file.
        limit: The maximum number of members that pass the patterns, None for all.
        most: About how many objects to list of each section of an S3 prefix, None for all.
        batch: The number of members that are hashed at once.
    """

    store: Store
    folder: str
    selection: Selection
    fetcher: Fetcher
    digest: members.Digest
    raw_rows: int = RAW_ROWS
    limit: int | None = None
    most: int | None = None
    progress: Progress | None = None
    batch: int = _BATCH_ROWS

    def __call__(self, item: tuple[int, Sequence[sources.SourceSection]]) -> list[SectionListing]:
        """List sections in parallel, each in a thread.

        The number is for the names of the raw files.
        """
        number, sections = item
        part = replace(
            self,
            raw_rows=max(1, self.raw_rows // len(sections)),
            batch=max(1, self.batch // len(sections)),
        )
        stems = [
            f"{self.folder}/{number:06}" + f"-{index:02}" * (len(sections) > 1)
            for index in range(len(sections))
        ]
        if len(sections) == 1:
            return [self._list_section(stems[0], sections[0])]
        with ThreadPoolExecutor(len(sections), thread_name_prefix="list") as pool:
            return list(pool.map(part._list_section, stems, sections))

    def _list_section(self, stem: str, section: sources.SourceSection) -> SectionListing:
        partial_section = None
        if isinstance(section, object_prefix.PrefixSection) and self.most is not None:
            partial_section = object_prefix.PartialSection(section, self.most)
        writer = _RawWriter(self.store, stem, self.raw_rows)
        containers: list[Container] = []
        closed: list[ClosedPlace] = []
        n_found, is_settled = 0, True

        def iter_passed() -> Iterator[members.ListedMember]:
            nonlocal n_found, is_settled
            for (_, entry), passes in self.selection.filter_entries(
                (partial_section or section).list_entries(self.fetcher)
            ):
                if isinstance(entry, Container) and passes:
                    containers.append(entry)
                    continue
                n_found += 1
                if passes:
                    assert isinstance(entry, members.ListedMember)
                    is_permanent = (
                        entry.refused is not None and not entry.refused.status.startswith("source_")
                    )
                    is_settled &= entry.place is not None or is_permanent
                    if isinstance(entry, _CLOSED_TYPES) and not is_permanent:
                        is_folder = isinstance(entry, members.UnreadableFolder)
                        closed.append(ClosedPlace(entry.uri, None if is_folder else entry.version))
                    yield entry

        count = 0
        entries = islice(iter_passed(), self.limit)
        with count_linked_folders() as linked:
            while batch := list(islice(entries, min(self.batch, self.raw_rows))):
                writer.add(batch, self.digest)
                count += len(batch)
                if self.progress is not None:
                    self.progress(count)
        files = tuple(writer.finish())
        for container in containers:
            writer.add_digest(
                hashlib.sha256(repr(container).encode("utf-8", "surrogateescape")).digest()
            )
        remaining = None if partial_section is None else partial_section.remaining
        return SectionListing(
            n_found,
            count,
            files,
            tuple(containers),
            writer.digest,
            is_settled,
            linked,
            tuple(closed),
            remaining,
        )


class _RawWriter:
    """Streams members into raw files, holds one file in memory, and sums the digests."""

    def __init__(self, store: Store, stem: str, raw_rows: int) -> None:
        self._store, self._stem, self._raw_rows = store, stem, raw_rows
        self._files: list[RawFile] = []
        self.digest = 0
        self._start_file()

    def _start_file(self) -> None:
        self._tables: list[pa.Table] = []
        self._rows, self._as_text = 0, False

    def add(self, items: Sequence[members.ListedMember], digest: members.Digest) -> None:
        digests = b"".join([digest(item, 0) for item in items])
        self.add_digest(digests)
        digest_words = np.frombuffer(digests, ">i8").reshape(len(items), -1).astype(np.int64)
        if self._rows + len(items) > self._raw_rows:
            self._close()
        self._tables.append(
            listed_rows(digest_words[:, 0], items).append_column(
                "check", pa.array(digest_words[:, 1])
            )
        )
        self._rows += len(items)
        self._as_text |= any(map(has_archive_columns, items))

    def add_digest(self, digests: bytes) -> None:
        """Add digests of 32 bytes each, one after another, to the sum of all."""
        columns = np.frombuffer(digests, ">u4").reshape(-1, 8).sum(axis=0, dtype=np.uint64).tolist()
        self.digest = (
            self.digest + sum(column << (32 * (7 - index)) for index, column in enumerate(columns))
        ) % SUMS

    def finish(self) -> list[RawFile]:
        self._close()
        return self._files

    def _close(self) -> None:
        if not self._rows:
            return
        kind = merge_input_types(
            (get_input_type(table) for table in self._tables), as_text=self._as_text
        )
        table = pa.concat_tables([widen_input(table, kind) for table in self._tables])
        file = RawFile(
            rows=self._rows,
            largest_bytes=pc.max(table["size_bytes"]).as_py(),
            has_groups=table["place"].null_count < self._rows,
            as_text=self._as_text,
            input_type=kind,
            path=f"{self._stem}-{len(self._files):05}.parquet",
            data=to_parquet_bytes(table, row_group=_BATCH_ROWS),
        )
        self._files.append(
            file if file.carried_bytes <= _CARRIED_BYTES else file.stored(self._store)
        )
        self._start_file()
