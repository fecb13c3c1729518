"""Check a run against itself: every listed member has exactly one row (`check_conservation`), and
the summary agrees with the rows (`verify_run`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ray_app import archives
from ray_app.errors import ClusterError
from ray_app.runs import document, summary
from ray_app.runs.current import CurrentRows, block_lists_in
from ray_app.runs.directory import RunDirectory
from ray_app.runs.score_files import Published

_FEW = 100_000  # members that are compared at once rather than by tasks
_PARTS_AT_ONCE = 1000
_HINT = "please report this: it is a bug"


@dataclass(frozen=True)
class VerifiedRun:
    """What `verify_run` counted.

    Attributes:
        manifests: Number of finished manifests.
        members: Number of rows in them.
        current: Number of current rows.
    """

    manifests: int
    members: int
    current: int


@dataclass(frozen=True)
class _Span:
    """Consecutive blocks of one manifest and the files that have their rows.

    `blocks` are those of other manifests, too, if a version before 0.25 merged the file.
    """

    blocks: Published
    paths: tuple[str, ...]


def verify_run(run: RunDirectory, *, each: archives.Each = archives.in_turn) -> VerifiedRun:
    """Recount a finished run from its rows, and compare with its manifests and its summary.

    Args:
        run: The run directory.
        each: Runs what is not little.

    Raises:
        ConfigError: No manifest is finished.
        ClusterError: A member has no row, a row no member, or the summary counts otherwise.
    """
    described = run.describe_finished()
    rows = CurrentRows.read(run)
    finished = [number for number in archives.manifests(run.store) if number <= rows.last]
    members = check_conservation(run, finished, each=each)
    counted = summary.summarise(rows.tables(summary.COLUMNS), described["detectors"])
    info = archives.read_complete(run.store, rows.last)
    assert info is not None, "a finished manifest is complete"
    if counted.members != info.current:
        raise _mismatch(
            run,
            f"{counted.members:,} current rows, and the last listing found {info.current:,} files",
        )
    stored = document.RunCounts.model_validate(run.read_json(f"summaries/{rows.last:05d}.json"))
    differing = sorted(_differing_counts(stored, counted))
    if differing:
        raise _mismatch(run, f"the summary counts otherwise than the rows: {', '.join(differing)}")
    return VerifiedRun(len(finished), members, counted.members)


def check_conservation(
    run: RunDirectory,
    manifests: Sequence[int] | None = None,
    *,
    each: archives.Each = archives.in_turn,
) -> int:
    """Compare manifests with their rows, id by id and in order.

    Args:
        run: The run directory.
        manifests: The numbers of the manifests. None: all complete ones.
        each: Runs what is not little.

    Returns:
        The number of members of these manifests.

    Raises:
        ClusterError: A manifest is incomplete, a member has no row, or a row no member.
    """
    spans: list[_Span] = []
    total = 0
    numbers = archives.manifests(run.store) if manifests is None else manifests
    published = run.published(numbers)
    for number in numbers:
        info = archives.read_complete(run.store, number)
        if info is None:
            raise _lost(run, number, "it has no _complete")
        spans += _spans(run, info, published)
        total += info.members
    for _ in (archives.in_turn if total <= _FEW else each)(partial(_compare, run), spans):
        pass
    return total


def _spans(
    run: RunDirectory, info: archives.ManifestInfo, published: Sequence[Published]
) -> list[_Span]:
    """Return all blocks of a manifest in their order.

    Args:
        run: The run directory.
        info: The manifest.
        published: The published files that may have rows of it.

    Raises:
        ClusterError: Blocks have no rows, or have rows twice.
    """
    number = info.manifest
    files = [file for file in published if number in file.manifests()]
    covered = {block for file in files for block in file.blocks_of(number, info.blocks)}
    spans = [_Span(file, (file.path,)) for file in files if file.blocks_of(number, info.blocks)]
    if number in run.part_folders():
        own = [block for block in run.parts(number) if block not in covered]
        for blocks, paths in run.part_spans(number, own, _PARTS_AT_ONCE):
            spans.append(_Span(blocks, paths))
    spans.sort(key=lambda span: span.blocks.start)
    following = 0
    for span in spans:
        covers = span.blocks.blocks_of(number, info.blocks)
        if covers.start > following:
            raise _lost(run, number, f"blocks {following} to {covers.start - 1} have no row")
        if covers.start < following:
            raise _lost(run, number, f"block {covers.start} has rows twice")
        following = covers.stop
    if following < info.blocks:
        missing = info.members - archives.read_blocks(run.store, number)[:following].members
        raise _lost(run, number, f"{missing} of {info.members} files have no row")
    # A merged file is compared once, with the manifest that it begins in.
    return [span for span in spans if span.blocks.manifest == number]


def _compare(run: RunDirectory, span: _Span) -> None:
    """Compare the ids of consecutive blocks with those of their rows."""
    (number, first), (_, last) = span.blocks.start, span.blocks.end
    named = f"blocks {first} to {last}"
    expected = np.concatenate([np.empty(0, np.int64), *_ids_in(run, span.blocks)])
    at = 0
    for path in span.paths:
        for table in run.rows_in(path, ["image_id"]):
            if not np.array_equal(expected[at : at + len(table)], table["image_id"].to_numpy()):
                what = f"from row {at} of {named} on, the rows are not those of the files"
                raise _lost(run, number, what)
            at += len(table)
    if at < len(expected):
        left = len(expected) - at
        raise _lost(run, number, f"{left} of {len(expected)} files of {named} have no row")


def _ids_in(run: RunDirectory, file: Published) -> Iterator[archives.Ids]:
    for blocks in block_lists_in(run, file):
        yield from archives.read_ids(run.store, blocks)


def _differing_counts(stored: document.RunCounts, counted: document.RunCounts) -> list[str]:
    """Return the names of counts that differ, of those that the version which wrote them knew.

    Examples are any few rows of a status. Findings are counted up to a number of distinct ones.
    """
    ignored = {"examples"}
    if len(stored.findings) >= summary.MOST_FINDINGS:
        ignored.add("findings")
    return [
        name
        for name in stored.model_fields_set
        if name not in ignored
        and _comparable(name, getattr(stored, name)) != _comparable(name, getattr(counted, name))
    ]


def _comparable(name: str, value: Any) -> Any:
    """Return a count without what depends on the order of equal rows."""
    if name == "top":
        return [round(row.score, 9) for row in value]
    if name == "profile" and value is not None:
        told = [round(row.score, 9) for row in value.told]
        return value.model_copy(update={"told": ()}), told
    if isinstance(value, Mapping) and all(isinstance(count, int) for count in value.values()):
        return {key: count for key, count in value.items() if count}
    return value


def _mismatch(run: RunDirectory, what: str) -> ClusterError:
    return ClusterError(f"{run.store.url}: {what}", hint=_HINT)


def _lost(run: RunDirectory, manifest: int, what: str) -> ClusterError:
    return _mismatch(run, f"manifest {manifest}: {what}")
