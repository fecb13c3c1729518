"""The current row of each member, whatever the run went through (`current_tables`, `current_rows`,
`current_masks`), in bounded memory.

`check_conservation` compares a run's rows with its manifests: exactly one row for each member.
"""

import io
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app import archives
from ray_app.errors import ClusterError
from ray_app.runs import directory, score_files


def current_tables(
    run: directory.RunDirectory, columns: list[str] | None = None, *, vanished: bool = False
) -> Iterator[pa.Table]:
    """Result rows of the members that the last listing found, a bounded table at a time.

    With `vanished`, also those of members that were changed or removed since. Raises ConfigError
    where there is no run.
    """
    yield from tables_in(run, current_files(run), columns, vanished=vanished)


def current_files(run: directory.RunDirectory) -> list[str]:
    """The files with these rows, in the order of their blocks: what tasks read side by side. Raises
    ConfigError where there is no run.
    """
    if not run.exists():
        raise run.missing()
    run.check_settled()
    return run.row_files(archives.manifests(run.store))


def tables_in(
    run: directory.RunDirectory,
    files: Sequence[str],
    columns: list[str] | None = None,
    *,
    vanished: bool = False,
) -> Iterator[pa.Table]:
    """The current rows of some files of the run, a bounded table at a time; `columns` has
    `image_id` unless all are wanted.
    """
    numbers = archives.manifests(run.store)
    gone = (
        np.empty(0, np.int64)
        if vanished or not numbers
        else archives.read_vanished(run.store, numbers[-1])
    )
    for path in files:
        for table in run.rows_in(path, columns):
            yield table.filter(pa.array(~are_among(table, gone))) if len(gone) else table


def numbers(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float64]:
    """A column of numbers (n,) as float64, NaN for null."""
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))


def are_among(table: pa.Table, ids: archives.Ids) -> npt.NDArray[np.bool_]:
    """For each row (n,) whether its id is one of some sorted ones."""
    here = table["image_id"].to_numpy()
    return (
        ids[np.minimum(np.searchsorted(ids, here), len(ids) - 1)] == here
        if len(ids)
        else np.zeros(len(here), bool)
    )


def members_in(
    run: directory.RunDirectory, file: score_files.Published
) -> Iterator[archives.ManifestMember]:
    """The members whose rows a published file has, in its order; a block in memory."""
    for number in file.manifests():
        blocks = archives.read_blocks(run.store, number)
        some = file.blocks_of(number, len(blocks))
        for ref in blocks[some.start : some.stop]:
            yield from archives.member_rows(archives.read_block(run.store, ref))


def current_members(
    run: directory.RunDirectory, columns: list[str] | None = None
) -> Iterator[tuple[pa.Table, dict[int, archives.ManifestMember]]]:
    """Current rows of a run that has ended, a bounded table at a time, each with the members that
    read their files again, by id.

    `columns` has `image_id` unless all are wanted. Raises ClusterError where a file of rows is not
    as its manifest.
    """
    gone = archives.read_vanished(run.store, archives.manifests(run.store)[-1])
    for file in run.published():
        members = members_in(run, file)
        for table in run.rows_in(file.path, columns):
            listed = {member.image_id: member for member in islice(members, len(table))}
            if len(listed) != len(table):
                raise ClusterError(
                    f"{run.store.url}: {file.path} is not as its manifest",
                    hint="please report this: it is a bug",
                )
            yield table.filter(pa.array(~are_among(table, gone))) if len(gone) else table, listed


def members_of(
    run: directory.RunDirectory, image_ids: Collection[int], *, seconds: float = math.inf
) -> dict[int, archives.ManifestMember]:
    """The members of these ids that the run's manifests hold, or that were found in so many
    seconds. Blocks without any are not read.
    """
    wanted, ends = np.unique(np.array(list(image_ids), np.int64)), time.monotonic() + seconds
    found: dict[int, archives.ManifestMember] = {}
    for number in archives.manifests(run.store):
        blocks = archives.read_blocks(run.store, number)
        for ref, ids in zip(blocks, archives.read_ids(run.store, blocks), strict=True):
            if np.isin(ids, wanted).any():
                members = archives.member_rows(archives.read_block(run.store, ref))
                found |= {one.image_id: one for one in members if one.image_id in image_ids}
            if len(found) == len(wanted) or time.monotonic() > ends:
                return found
    return found


def publish_vanished(run: directory.RunDirectory) -> None:
    """Write `vanished.parquet`, the ids whose rows are not current any more, where readers of
    `scores/` find it without a number.
    """
    gone = archives.read_vanished(run.store, archives.manifests(run.store)[-1])
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image_id": gone}), buffer)
    run.store.write("vanished.parquet", buffer.getvalue())


def current_rows(
    run: directory.RunDirectory, *, status: str | None = None, vanished: bool = False
) -> Iterator[dict[str, Any]]:
    """The same as dictionaries, one by one, optionally of one status."""
    for table in current_tables(run, vanished=vanished):
        yield from (
            table
            if status is None
            else table.filter(pc.equal(table["status"].cast(pa.string()), status))
        ).to_pylist()


def current_masks(
    run: directory.RunDirectory, *, vanished: bool = False
) -> Iterator[dict[str, Any]]:
    """The masks of the members that `current_tables` has rows of, one by one (`MASK_SCHEMA`), of
    images as they are. Raises as that.
    """
    ids = [
        table["image_id"].to_numpy()
        for table in current_tables(run, ["image_id"], vanished=vanished)
    ]
    known = pa.array(np.concatenate([np.empty(0, np.int64), *ids]))
    for manifest in archives.manifests(run.store):
        for table in run.masks(manifest):
            clean = (
                table.filter(pc.is_null(table["view"])).drop_columns(["view"])
                if "view" in table.column_names
                else table
            )
            yield from clean.filter(pc.is_in(clean["image_id"], known)).to_pylist()


# consecutive blocks, and the files that have their rows
_Stretch = tuple[score_files.Published, tuple[str, ...]]
_FEW = 100_000  # members that are compared at once rather than by tasks
_PARTS_AT_ONCE = 1000


def check_conservation(
    run: directory.RunDirectory, *, each: archives.Each = archives.in_turn, after: int = -1
) -> int:
    """Compare every manifest with its rows, id by id and in order; returns how many members those
    have that are current.

    `each` runs what is not little. `after`: manifests up to this one were compared before, and
    their rows are what they were; published files hold either those or later ones. Raises
    ClusterError when a member has no row, or a row no member.
    """
    infos = [
        info
        for number in archives.manifests(run.store)
        if number > after and (info := archives.read_complete(run.store, number)) is not None
    ]
    total = sum(info.members for info in infos)
    stretches = _stretches(run, infos)
    for _ in (archives.in_turn if total <= _FEW else each)(partial(_compare, run), stretches):
        pass
    return total - infos[-1].vanished if infos else 0


def _stretches(
    run: directory.RunDirectory, infos: Sequence[archives.ManifestInfo]
) -> list[_Stretch]:
    """All blocks of some manifests in a row: each published file, and parts between them, some at a
    time.

    Raises ClusterError for a gap and for blocks that have rows twice.
    """
    counts = {info.manifest: info.blocks for info in infos}
    files = [file for file in run.published() if not counts.keys().isdisjoint(file.manifests())]
    found: list[_Stretch] = [(file, (file.path,)) for file in files]
    for number in counts.keys() & set(run.part_folders() if counts else ()):
        covered = {block for file in files for block in file.blocks_of(number, counts[number])}
        found += run.part_spans(
            number, (block for block in run.parts(number) if block not in covered), _PARTS_AT_ONCE
        )
    found.sort(key=lambda one: one[0].start)
    at = _existing((infos[0].manifest, 0), counts) if infos else None
    for blocks, _ in found:
        if blocks.start != at:
            number, block = blocks.start
            if at is not None and blocks.start > at:
                raise _gap(run, at, blocks.start, infos)
            raise _lost(run, number, f"block {block} has rows twice")
        at = _existing((blocks.end[0], blocks.end[1] + 1), counts)
    if at is not None:
        raise _gap(run, at, None, infos)
    return found


def _existing(place: score_files.Place, counts: Mapping[int, int]) -> score_files.Place | None:
    """The place, or where a manifest ends there the beginning of the next one that has blocks; None
    behind the last.
    """
    number, block = place
    while number in counts and block >= counts[number]:
        number, block = number + 1, 0
    return (number, block) if number in counts else None


def _gap(
    run: directory.RunDirectory,
    at: score_files.Place,
    following: score_files.Place | None,
    infos: Sequence[archives.ManifestInfo],
) -> ClusterError:
    number, block = at
    if following is not None and following[0] == number:
        return _lost(run, number, f"blocks {block} to {following[1] - 1} have no row")
    members = next(info.members for info in infos if info.manifest == number)
    missing = members - archives.read_blocks(run.store, number)[:block].members
    return _lost(run, number, f"{missing} of {members} files have no row")


def _compare(run: directory.RunDirectory, stretch: _Stretch) -> None:
    """Compare the ids of a stretch of blocks, which fill one published file or so many parts, with
    those of its rows.
    """
    span, paths = stretch
    (number, first), (until, last) = span.start, span.end
    named = f"blocks {first} to {last}" + ("" if number == until else f" of manifest {until}")
    ids = [np.empty(0, np.int64)]
    for manifest in span.manifests():
        blocks = archives.read_blocks(run.store, manifest)
        some = span.blocks_of(manifest, len(blocks))
        ids += archives.read_ids(run.store, blocks[some.start : some.stop])
    expected, at = np.concatenate(ids), 0
    for path in paths:
        for table in run.rows_in(path, ["image_id"]):
            if not np.array_equal(expected[at : at + len(table)], table["image_id"].to_numpy()):
                raise _lost(
                    run, number, f"from row {at} of {named} on, the rows are not those of the files"
                )
            at += len(table)
    if at < len(expected):
        raise _lost(
            run, number, f"{len(expected) - at} of {len(expected)} files of {named} have no row"
        )


def _lost(run: directory.RunDirectory, manifest: int, what: str) -> ClusterError:
    return ClusterError(
        f"{run.store.url}: manifest {manifest}: {what}", hint="please report this: it is a bug"
    )
