"""`SectionLister`: one section of an archive → raw files (`RawFile`), its members in order.

Raw files lie in `manifest/<n>/listing/` until the manifest is cut; the bytes of small ones travel
with their description instead.
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
    has_columns_of_archive,
    input_type,
    joined_inputs,
    listed_rows,
    parquet_bytes,
    with_input,
)
from ray_app.archives.selection import Selection
from ray_app.storage import Fetcher, NotedFolders, Store, noting_linked_folders

Progress = Callable[[int], object]

RAW_ROWS = 131_072  # members of one raw file: what a task holds at once
SUMS = 1 << 256  # digests of sections are sums modulo this
_BATCH = 8192
_CARRIED_BYTES = 256 * 1024  # a smaller file needs no file
_CLOSED = (members.UnreadableFolder, members.VersionlessFile, Unopened)


@dataclass(frozen=True)
class RawFile:
    """Consecutive members of one section, each with `check`, a further word of its digest, which
    differs where two members have one id.

    `as_text`: columns whose types clash become texts (`joined_inputs`). `data`: the content of a
    small file, which is not at `path`.
    """

    rows: int
    largest_bytes: int
    has_groups: bool
    as_text: bool
    input_type: pa.StructType | None
    path: str
    data: bytes | None

    def stored(self, store: Store) -> "RawFile":
        """The same as a file, so that it need not be carried."""
        if self.data is None:
            return self
        store.write(self.path, self.data)
        return replace(self, data=None)

    @property
    def carried_bytes(self) -> int:
        """Bytes of memory that this description takes."""
        return len(self.data or b"")

    def tables(self, store: Store, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Its rows, a bounded table at a time."""
        file = pq.ParquetFile(
            pa.BufferReader(store.read(self.path) if self.data is None else self.data)
        )
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)


@dataclass(frozen=True)
class ClosedPlace:
    """A place whose members could not be listed: a container of this version, a file, or a folder,
    whose version is None.

    The version "" is unknown: the container or file may be of any version.
    """

    uri: str
    version: str | None


@dataclass(frozen=True)
class SectionListing:
    """What one section has: `found` members, with or without those that patterns leave out, and
    containers to be opened.

    `digest` tells it from every other: a sum over what was found, so that its parts add up to the
    same however they were cut (modulo 2**256; all of SHA-256). `settled`: it names nothing outside
    its containers and none that was out of reach. `linked`: folders that are no part of it, since
    they are only linked to. `closed`: places whose members the store refused to list. `rest`: of a
    range of keys, what was not listed yet.
    """

    found: int
    kept: int
    files: tuple[RawFile, ...]
    containers: tuple[Container, ...]
    digest: int
    settled: bool
    linked: NotedFolders
    closed: tuple[ClosedPlace, ...] = ()
    rest: object_prefix.PrefixRange | None = None


@dataclass(frozen=True)
class SectionLister:
    """Lists sections of one archive into `folder`; called with (number, sections), which it lists
    side by side.

    Picklable, as tasks need it. `limit`: the first so many members that pass. `most`: of a range of
    keys about so many objects, whatever they are.
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
    batch: int = _BATCH

    def __call__(self, item: tuple[int, Sequence[sources.SourceSection]]) -> list[SectionListing]:
        """Raises ConfigError and StorageError from the source."""
        number, sections = item
        one_of_many = replace(
            self,
            raw_rows=max(1, self.raw_rows // len(sections)),
            batch=max(1, self.batch // len(sections)),
        )
        stems = [
            f"{self.folder}/{number:06}" + f"-{place:02}" * (len(sections) > 1)
            for place in range(len(sections))
        ]
        if len(sections) == 1:
            return [self._listed(stems[0], sections[0])]
        with ThreadPoolExecutor(len(sections), thread_name_prefix="list") as pool:
            return list(pool.map(one_of_many._listed, stems, sections))

    def _listed(self, stem: str, section: sources.SourceSection) -> SectionListing:
        begun = None
        if isinstance(section, object_prefix.PrefixRange) and self.most is not None:
            begun = object_prefix.BegunRange(section, self.most)
        writer = _RawWriter(self.store, stem, self.raw_rows)
        containers: list[Container] = []
        closed: list[ClosedPlace] = []
        found, settled = 0, True

        def kept() -> Iterator[members.ListedMember]:
            nonlocal found, settled
            for (_, entry), passes in self.selection.chosen((begun or section).found(self.fetcher)):
                if isinstance(entry, Container) and passes:
                    containers.append(entry)
                    continue
                found += 1
                if passes:
                    assert isinstance(entry, members.ListedMember)
                    is_for_good = entry.refused is not None and not entry.refused.status.startswith(
                        "source_"
                    )
                    settled &= entry.place is not None or is_for_good
                    if isinstance(entry, _CLOSED) and not is_for_good:
                        is_folder = isinstance(entry, members.UnreadableFolder)
                        closed.append(ClosedPlace(entry.uri, None if is_folder else entry.version))
                    yield entry

        count = 0
        wanted = islice(kept(), self.limit)
        with noting_linked_folders() as linked:
            while batch := list(islice(wanted, min(self.batch, self.raw_rows))):
                writer.add(batch, self.digest)
                count += len(batch)
                if self.progress is not None:
                    self.progress(count)
        files = tuple(writer.finish())
        for container in containers:
            writer.add_digest(
                hashlib.sha256(repr(container).encode("utf-8", "surrogateescape")).digest()
            )
        rest = None if begun is None else begun.rest
        return SectionListing(
            found,
            count,
            files,
            tuple(containers),
            writer.digest,
            settled,
            linked,
            tuple(closed),
            rest,
        )


class _RawWriter:
    """Streams members into raw files; memory holds one of them. `digest` is the sum over all of
    them.
    """

    def __init__(self, store: Store, stem: str, raw_rows: int) -> None:
        self._store, self._stem, self._raw_rows = store, stem, raw_rows
        self._files: list[RawFile] = []
        self.digest = 0
        self._begin()

    def _begin(self) -> None:
        self._tables: list[pa.Table] = []
        self._rows, self._as_text = 0, False

    def add(self, items: Sequence[members.ListedMember], digest: members.Digest) -> None:
        digests = b"".join([digest(item, 0) for item in items])
        self.add_digest(digests)
        words = np.frombuffer(digests, ">i8").reshape(len(items), -1).astype(np.int64)
        if self._rows + len(items) > self._raw_rows:
            self._close()
        self._tables.append(
            listed_rows(words[:, 0], items).append_column("check", pa.array(words[:, 1]))
        )
        self._rows += len(items)
        self._as_text |= any(map(has_columns_of_archive, items))

    def add_digest(self, digests: bytes) -> None:
        """Add digests of 32 bytes each, one behind another, to the sum of all."""
        columns = np.frombuffer(digests, ">u4").reshape(-1, 8).sum(axis=0, dtype=np.uint64).tolist()
        self.digest = (
            self.digest + sum(column << (32 * (7 - place)) for place, column in enumerate(columns))
        ) % SUMS

    def finish(self) -> list[RawFile]:
        self._close()
        return self._files

    def _close(self) -> None:
        if not self._rows:
            return
        kind = joined_inputs((input_type(table) for table in self._tables), as_text=self._as_text)
        table = pa.concat_tables([with_input(table, kind) for table in self._tables])
        file = RawFile(
            rows=self._rows,
            largest_bytes=pc.max(table["size_bytes"]).as_py(),
            has_groups=table["place"].null_count < self._rows,
            as_text=self._as_text,
            input_type=kind,
            path=f"{self._stem}-{len(self._files):05}.parquet",
            data=parquet_bytes(table, row_group=_BATCH),
        )
        self._files.append(
            file if file.carried_bytes <= _CARRIED_BYTES else file.stored(self._store)
        )
        self._begin()
