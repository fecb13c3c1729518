"""Check that the files of a run are consistent.

`check_conservation` checks that each file to score has exactly one row. `verify_run` also checks
that the counts in the last summary (`summaries/<n>.json`) agree with the rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ray_app import archives
from ray_app.errors import VerificationError
from ray_app.runs import document, summary
from ray_app.runs.current import CurrentRows, block_lists_in
from ray_app.runs.directory import RunDirectory
from ray_app.runs.score_files import ScoreFile

_FEW = 100_000  # Up to this many members are compared here instead of in tasks.
_PARTS_PER_SPAN = 1000
_HINT = "report this as a bug in Touchstone"


@dataclass(frozen=True)
class VerifiedRun:
    """The counts that `verify_run` found in a run without errors.

    Attributes:
        manifests: The number of finished manifests. A manifest is a list of files to score, which a
            listing of the archive or a retry wrote.
        current: The number of current rows: the last row of each file that the last listing found.
    """

    manifests: int
    members: int
    current: int


@dataclass(frozen=True)
class _Span:
    """Consecutive blocks of a manifest, and the files with their rows.

    If a version before 0.25 merged the file, `blocks` includes those of other manifests.
    """

    blocks: ScoreFile
    paths: tuple[str, ...]


def verify_run(
    run: RunDirectory, *, each: archives.MapFunction = archives.map_serial
) -> VerifiedRun:
    """Recount a finished run from its rows, and compare it with its manifests and its summary.

    `each` maps the comparison over ranges of files, for example as Ray tasks. Raises ConfigError if
    the run is not finished, and VerificationError if a listed file has no row, a row belongs to no
    listed file, or the summary has other counts.
    """
    run_info = run.describe_finished()
    rows = CurrentRows.read(run)
    finished = [
        number for number in archives.list_complete_manifests(run.store) if number <= rows.last
    ]
    members = check_conservation(run, finished, each=each)
    counts = summary.summarise(rows.tables(summary.COLUMNS), run_info["detectors"])
    info = archives.read_complete(run.store, rows.last)
    assert info is not None, "a finished manifest is complete"
    if counts.members != info.current:
        raise _mismatch(
            run,
            f"there are {counts.members:,} current rows, but the last listing found {info.current:,} files",
        )
    stored = document.RunCounts.model_validate(run.read_json(f"summaries/{rows.last:05d}.json"))
    differing = sorted(_differing_counts(stored, counts))
    if differing:
        raise _mismatch(run, f"the summary has other counts than the rows: {', '.join(differing)}")
    return VerifiedRun(len(finished), members, counts.members)


def check_conservation(
    run: RunDirectory,
    manifests: Sequence[int] | None = None,
    *,
    each: archives.MapFunction = archives.map_serial,
) -> int:
    """Check that every file of a manifest has exactly one row, so that no file was lost.

    Each manifest, a list of files to score, is compared with its rows in `scores/` and `parts/`.
    Both must have the same ids in the same order. By default, all complete manifests are compared,
    to which a listing or a retry adds no more files. The result is the number of files in the
    manifests. `each` is as in `verify_run`. Raises VerificationError if rows and files differ, or a
    manifest is not complete.
    """
    spans: list[_Span] = []
    total = 0
    numbers = archives.list_complete_manifests(run.store) if manifests is None else manifests
    published = run.published(numbers)
    for number in numbers:
        info = archives.read_complete(run.store, number)
        if info is None:
            raise _lost(run, number, "its file _complete is missing")
        spans += _spans(run, info, published)
        total += info.members
    for _ in (archives.map_serial if total <= _FEW else each)(partial(_compare, run), spans):
        pass
    return total


def _spans(
    run: RunDirectory, info: archives.ManifestInfo, published: Sequence[ScoreFile]
) -> list[_Span]:
    """Return all blocks of a manifest in their order.

    Raises VerificationError if blocks have no rows in the published files, or have rows twice.
    """
    number = info.manifest
    files = [file for file in published if number in file.manifests()]
    covered = {block for file in files for block in file.blocks_of(number, info.blocks)}
    spans = [_Span(file, (file.path,)) for file in files if file.blocks_of(number, info.blocks)]
    if number in run.part_folders():
        own_parts = [block for block in run.parts(number) if block not in covered]
        for blocks, paths in run.part_spans(number, own_parts, _PARTS_PER_SPAN):
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
    # A merged file is compared once, with the manifest of its first block.
    return [span for span in spans if span.blocks.manifest == number]


def _compare(run: RunDirectory, span: _Span) -> None:
    """Compare the ids of consecutive blocks with those of their rows."""
    (number, first), (_, last) = span.blocks.start, span.blocks.end
    blocks_text = f"blocks {first} to {last}"
    expected = np.concatenate([np.empty(0, np.int64), *_ids_in(run, span.blocks)])
    offset = 0
    for path in span.paths:
        for table in run.rows_in(path, ["image_id"]):
            if not np.array_equal(
                expected[offset : offset + len(table)], table["image_id"].to_numpy()
            ):
                problem = (
                    f"from row {offset} of {blocks_text} on, the rows are not those of the files"
                )
                raise _lost(run, number, problem)
            offset += len(table)
    if offset < len(expected):
        missing = len(expected) - offset
        raise _lost(run, number, f"{missing} of {len(expected)} files of {blocks_text} have no row")


def _ids_in(run: RunDirectory, file: ScoreFile) -> Iterator[archives.Ids]:
    for blocks in block_lists_in(run, file):
        yield from archives.read_ids(run.store, blocks)


def _differing_counts(stored: document.RunCounts, recounted: document.RunCounts) -> list[str]:
    """Return the names of counts that differ, if the version that stored them had them.

    Examples may be any rows of a status. Findings are counted up to a number of distinct findings.
    """
    ignored = {"examples"}
    if len(stored.findings) >= summary.MAX_FINDINGS:
        ignored.add("findings")
    return [
        name
        for name in stored.model_fields_set
        if name not in ignored
        and _comparable(name, getattr(stored, name)) != _comparable(name, getattr(recounted, name))
    ]


def _comparable(name: str, value: Any) -> Any:
    """Return a count without the parts that depend on the order of equal rows."""
    if name == "top":
        return [round(row.score, 9) for row in value]
    if name == "profile" and value is not None:
        scores = [round(row.score, 9) for row in value.told]
        return value.model_copy(update={"told": ()}), scores
    if isinstance(value, Mapping) and all(isinstance(count, int) for count in value.values()):
        return {key: count for key, count in value.items() if count}
    return value


def _mismatch(run: RunDirectory, problem: str) -> VerificationError:
    return VerificationError(f"{run.store.url}: {problem}", hint=_HINT)


def _lost(run: RunDirectory, manifest: int, problem: str) -> VerificationError:
    return _mismatch(run, f"manifest {manifest}: {problem}")
