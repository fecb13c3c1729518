"""The blocks of a manifest → their members (`read_block`, `member_rows`) → their encoded bytes,
wherever each lies: in a file of its own or in a container (`MemberReader`).

Small ones are read ahead. A large one is read when it is wanted and not before, one to a process,
within what its node allows to all.
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

_AHEAD_BYTES = 64 * 2**20
# reserved for a file whose size its server does not say; a larger one is requested again, alone
_UNSIZED_BYTES = 16 * 2**20


class MemberReader:
    """Reads members ahead of their use. One per process: what a format keeps open serves the next
    block of the same container.

    `budget`: what files larger than `depth_bytes` may take together on this node; None: no limit. A
    large file has its turn until the next member is requested, or until `let_go`.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        *,
        max_bytes: int,
        depth_bytes: int = _AHEAD_BYTES,
        budget: node_budget.NodeBudget | None = None,
    ) -> None:
        self._fetcher, self._max_bytes, self._depth_bytes, self._budget = (
            fetcher,
            max_bytes,
            depth_bytes,
            budget,
        )
        self._readers: dict[str, Reader] = {}
        self._give_back: Callable[[], None] | None = None  # the turn of the last large member

    def read(
        self, members: Sequence[ManifestMember]
    ) -> Iterator[tuple[ManifestMember, bytes | InputError]]:
        """Every member in order with its bytes, or the reason why there are none; one that was
        refused when it was listed is not read.
        """
        with closing(self._arriving(filterfalse(attrgetter("refused"), members))) as arriving:
            for member in members:
                yield member, next(arriving) if member.refused is None else member.refused.error()

    def let_go(self) -> None:
        """Give back the turn of the last member that was read: it is decoded, and its file is not
        held any more.
        """
        if self._give_back is not None:
            self._give_back()

    def _arriving(self, members: Iterable[ManifestMember]) -> Generator[bytes | InputError]:
        for (size, container), run in groupby(members, key=self._source_of):
            if size == "large":
                for member in run:
                    yield from self._alone(member, member.size_bytes)
            elif size == "unsized":
                yield from self._unsized(run)
            elif container is None:
                yield from self._fetcher.prefetch(
                    run, depth_bytes=self._depth_bytes, max_bytes=self._max_bytes
                )
            else:
                yield from self._reader(container[0]).read(list(run))

    def _source_of(self, member: ManifestMember) -> tuple[str, tuple[str, str, str] | None]:
        """What members have in common that are read together: how large they are, and their
        container (format, URI, version).
        """
        place = member.place
        container = None if place is None else (place.kind, member.uri, member.version)
        if member.size_bytes < 0 and place is None:
            return "unsized", container
        return (
            "large" if self._depth_bytes < member.size_bytes <= self._max_bytes else "small",
            container,
        )

    def _unsized(self, members: Iterable[ManifestMember]) -> Iterator[bytes | InputError]:
        """Files whose size is not known before they come: all are requested as if they were small."""
        expected = min(self._max_bytes, _UNSIZED_BYTES)
        listed, requested = tee(members)
        arriving = self._fetcher.prefetch(
            requested, depth_bytes=self._depth_bytes, max_bytes=expected
        )
        for member, data in zip(listed, arriving, strict=True):
            if (
                isinstance(data, InputError)
                and data.status is Status.IMAGE_TOO_LARGE
                and expected < self._max_bytes
            ):
                yield from self._alone(member, self._max_bytes)
            else:
                yield data
            del data

    def _alone(self, member: ManifestMember, size_bytes: int) -> Iterator[bytes | InputError]:
        """One member, in its turn; what is unpacked is held twice for a moment."""
        with ExitStack() as stack:
            if self._budget is not None:
                needed = min(
                    size_bytes * (1 if member.place is None else 2), self._budget.total_bytes
                )
                self._give_back = stack.enter_context(self._budget.turn(needed))
            if member.place is None:
                yield from self._fetcher.prefetch(
                    [member], depth_bytes=self._depth_bytes, max_bytes=self._max_bytes
                )
            else:
                yield from self._reader(member.place.kind).read([member])

    def _reader(self, kind: str) -> Reader:
        if kind not in self._readers:
            self._readers[kind] = CONTAINERS[kind].reader(self._fetcher, self._max_bytes)
        return self._readers[kind]


def read_block(store: Store, ref: BlockRef) -> pa.Table:
    """The rows of one block, slot 0 first, in one request."""
    return pq.ParquetFile(
        pa.BufferReader(store.read(path_in(ref.manifest, ref.file)))
    ).read_row_group(ref.row_group)


def member_rows(block: pa.Table) -> list[ManifestMember]:
    """A block's rows as members."""
    return list(map(partial(_member, ManifestMember), block.to_pylist()))


def listed_row(row: dict[str, Any]) -> ListedMember:
    """One row, cut or not, as its source listed it."""
    listed: ListedMember = _member(
        ListedMember,
        {name: value for name, value in row.items() if name not in ("image_id", "block", "slot")},
    )
    return listed


def _member(kind: Callable[..., Any], row: dict[str, Any]) -> Any:
    place, refused = row.pop("place", None), row.pop("refused", None)
    return kind(
        **row | {"input": row.get("input") or {}},
        place=None if place is None else MemberLocation(**place),
        refused=None
        if refused is None
        else RefusedMember(Status(refused["status"]), refused["detail"]),
    )
