"""Is there exactly one row for each member? Compares a run's rows with its manifests, stretch by stretch. Reads ids alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ray_app.archives import Each, Ids, ManifestInfo, in_turn, manifests, read_blocks, read_complete, read_ids
from ray_app.errors import ClusterError
from ray_app.runs.directory import RunDirectory
from ray_app.runs.merging import consecutive

_FEW = 100_000  # members that are compared at once rather than by tasks
_PARTS_AT_ONCE = 1000


def check_conservation(run: RunDirectory, *, each: Each = in_turn) -> int:
    """Compare every manifest with its rows, id by id and in order; returns the number of current members. `each` runs what is not little.

    Raises ClusterError when a member has no row, or a row no member.
    """
    infos = [info for number in manifests(run.store) if (info := read_complete(run.store, number)) is not None]
    total = sum(info.members for info in infos)
    stretches = [stretch for info in infos for stretch in _stretches(run, info)]
    for _ in (in_turn if total <= _FEW else each)(_Comparer(run), stretches):
        pass
    return total - infos[-1].vanished


@dataclass(frozen=True)
class _Stretch:
    """Consecutive blocks of a manifest and the files that have their rows."""

    manifest: int
    first: int
    last: int
    files: tuple[str, ...]


def _stretches(run: RunDirectory, info: ManifestInfo) -> list[_Stretch]:
    """All blocks of a manifest: each published file, and parts between them, some at a time. Raises ClusterError for a gap."""
    number = info.manifest
    found = [_Stretch(number, file.first, file.last, (file.path,)) for file in run.published() if file.manifest == number]
    covered = {block for one in found for block in range(one.first, one.last + 1)}
    for parts in consecutive(number, dict.fromkeys(run.parts(number), 0), covered):
        for start in range(0, len(parts.sizes), _PARTS_AT_ONCE):
            blocks = range(parts.first + start, parts.first + min(start + _PARTS_AT_ONCE, len(parts.sizes)))
            found.append(_Stretch(number, blocks[0], blocks[-1], tuple(run.part_path(number, block) for block in blocks)))
    found.sort(key=lambda one: one.first)
    at = 0
    for one in found:
        if one.first != at:
            raise _lost(
                run, number, f"blocks {at} to {one.first - 1} have no row" if one.first > at else f"block {one.first} has rows twice"
            )
        at = one.last + 1
    if at != info.blocks:
        missing = info.members - read_blocks(run.store, number)[:at].members
        raise _lost(run, number, f"{missing} of {info.members} members have no row")
    return found


@dataclass(frozen=True)
class _Comparer:
    """Compares the ids of a stretch of blocks with those of its rows. Picklable, as tasks need it."""

    run: RunDirectory

    def __call__(self, stretch: _Stretch) -> None:
        blocks = read_blocks(self.run.store, stretch.manifest)[stretch.first : stretch.last + 1]
        expected = _Ids(read_ids(self.run.store, blocks))
        at = 0
        for path in stretch.files:
            for table in self.run.rows_in(path, ["image_id"]):
                ids = table["image_id"].to_numpy()
                if not np.array_equal(expected.take(len(ids)), ids):
                    where = f"from row {at} of blocks {stretch.first} to {stretch.last} on"
                    raise _lost(self.run, stretch.manifest, f"{where}, the rows are not those of the members")
                at += len(ids)
        if at < blocks.members:
            what = f"{blocks.members - at} of {blocks.members} members of blocks {stretch.first} to {stretch.last} have no row"
            raise _lost(self.run, stretch.manifest, what)


class _Ids:
    """A stream of ids, taken in other portions."""

    def __init__(self, ids: Iterator[Ids]) -> None:
        self._ids, self._waiting = ids, np.empty(0, np.int64)

    def take(self, count: int) -> Ids:
        """The next `count`, or as many as there are."""
        parts = [self._waiting]
        while sum(len(part) for part in parts) < count and (more := next(self._ids, None)) is not None:
            parts.append(more)
        joined = np.concatenate(parts)
        self._waiting = joined[count:]
        return joined[:count]


def _lost(run: RunDirectory, manifest: int, what: str) -> ClusterError:
    return ClusterError(f"{run.store.url}: manifest {manifest}: {what}", hint="please report this: it is a bug")
