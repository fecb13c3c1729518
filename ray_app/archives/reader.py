"""Read the members of a block, and their encoded bytes.

`read_block` reads a block of a manifest, `rows_to_members` converts its rows into members, and
`MemberReader` reads the bytes of members from files of their own or from containers.

Small members are read ahead. A large member is read only when it is requested. A process holds one
large member at a time, and all processes of a node share a limit on memory.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import filterfalse, groupby, tee
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives.containers import CONTAINERS, Reader
from ray_app.archives.manifest import BlockRef, path_in
from ray_app.archives.members import ListedMember, ManifestMember, MemberLocation, RefusedMember
from ray_app.errors import InputError, Status
from ray_app.storage import Fetcher, Store, node_budget

_READ_AHEAD_BYTES = 64 * 2**20
# Reserved for a file whose server does not state its size. A larger file is requested again, alone.
_UNSIZED_BYTES = 16 * 2**20


class MemberReader:
    """Reads the encoded bytes of members (files of an archive) ahead of their use.

    Create one reader per process, because it keeps containers open from one block to the next.

    Args:
        fetcher: Reads the files.
        max_bytes: The maximum size of a member.
        depth_bytes: The number of bytes to read ahead. A larger member is read alone.
        budget: The memory that all members larger than `depth_bytes` may take on this node, None
            for no limit. A large member holds its part of the budget until the next member is
            requested, or until `let_go` is called.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        *,
        max_bytes: int,
        depth_bytes: int = _READ_AHEAD_BYTES,
        budget: node_budget.NodeBudget | None = None,
    ) -> None:
        self._fetcher, self._max_bytes, self._depth_bytes, self._budget = (
            fetcher,
            max_bytes,
            depth_bytes,
            budget,
        )
        self._readers: dict[str, Reader] = {}
        self._release_budget: Callable[[], None] | None = None  # For the last large member.

    def read(
        self, members: Sequence[ManifestMember]
    ) -> Iterator[tuple[ManifestMember, bytes | InputError]]:
        """Yield every member in order, with its encoded bytes or its error.

        A member that was refused when it was listed is not read. Its error is the reason for the
        refusal.
        """
        with closing(self._iter_data(filterfalse(attrgetter("refused"), members))) as arriving:
            for member in members:
                yield member, next(arriving) if member.refused is None else member.refused.error()

    def let_go(self) -> None:
        """Release the memory budget that the last large member holds.

        Call this when the member is decoded and its bytes are no longer held.
        """
        if self._release_budget is not None:
            self._release_budget()

    def _iter_data(self, members: Iterable[ManifestMember]) -> Generator[bytes | InputError]:
        for (size, container), run in groupby(members, key=self._group_key):
            if size == "large":
                for member in run:
                    yield from self._read_large(member, member.size_bytes)
            elif size == "unsized":
                yield from self._read_unsized(run)
            elif container is None:
                yield from self._fetcher.prefetch(
                    run, depth_bytes=self._depth_bytes, max_bytes=self._max_bytes
                )
            else:
                yield from self._get_reader(container[0]).read(list(run))

    def _group_key(self, member: ManifestMember) -> tuple[str, tuple[str, str, str] | None]:
        """Return the key of members that are read together.

        The key is the size class and the container (format, URI, version).
        """
        location = member.place
        container = None if location is None else (location.kind, member.uri, member.version)
        if member.size_bytes < 0 and location is None:
            return "unsized", container
        return (
            "large" if self._depth_bytes < member.size_bytes <= self._max_bytes else "small",
            container,
        )

    def _read_unsized(self, members: Iterable[ManifestMember]) -> Iterator[bytes | InputError]:
        """Read files of unknown size: all are requested as if they were small."""
        expected = min(self._max_bytes, _UNSIZED_BYTES)
        in_order, requested = tee(members)
        arriving = self._fetcher.prefetch(
            requested, depth_bytes=self._depth_bytes, max_bytes=expected
        )
        for member, data in zip(in_order, arriving, strict=True):
            if (
                isinstance(data, InputError)
                and data.status is Status.IMAGE_TOO_LARGE
                and expected < self._max_bytes
            ):
                yield from self._read_large(member, self._max_bytes)
            else:
                yield data
            del data

    def _read_large(self, member: ManifestMember, size_bytes: int) -> Iterator[bytes | InputError]:
        """Read one member when the budget allows it.

        An unpacked member counts twice, because it is briefly in memory twice.
        """
        with ExitStack() as stack:
            if self._budget is not None:
                needed = min(
                    size_bytes * (1 if member.place is None else 2), self._budget.total_bytes
                )
                self._release_budget = stack.enter_context(self._budget.reserve(needed))
            if member.place is None:
                yield from self._fetcher.prefetch(
                    [member], depth_bytes=self._depth_bytes, max_bytes=self._max_bytes
                )
            else:
                yield from self._get_reader(member.place.kind).read([member])

    def _get_reader(self, kind: str) -> Reader:
        if kind not in self._readers:
            self._readers[kind] = CONTAINERS[kind].reader(self._fetcher, self._max_bytes)
        return self._readers[kind]


def read_block(store: Store, ref: BlockRef) -> pa.Table:
    """Read the rows of one block of a manifest, in their order. The store gets one request.

    Args:
        store: The run directory.
        ref: The location of the block.

    Returns:
        A table with the columns of the manifest, and one row per member (file) of the block.
    """
    return pq.ParquetFile(
        pa.BufferReader(store.read(path_in(ref.manifest, ref.file)))
    ).read_row_group(ref.row_group)


def rows_to_members(block: pa.Table) -> list[ManifestMember]:
    """Convert the rows of a block into manifest members.

    Args:
        block: The rows, as `read_block` returns them.
    """
    return list(map(partial(_member, ManifestMember), block.to_pylist()))


def listed_row(row: dict[str, Any]) -> ListedMember:
    """Convert one row of a manifest or raw file back into the member as its source listed it."""
    member: ListedMember = _member(
        ListedMember,
        {name: value for name, value in row.items() if name not in ("image_id", "block", "slot")},
    )
    return member


def _member(kind: Callable[..., Any], row: dict[str, Any]) -> Any:
    place, refused = row.pop("place", None), row.pop("refused", None)
    return kind(
        **row | {"input": row.get("input") or {}},
        place=None if place is None else MemberLocation(**place),
        refused=None
        if refused is None
        else RefusedMember(Status(refused["status"]), refused["detail"]),
    )
