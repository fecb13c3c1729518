"""Read the current rows of a run, one for each file of the archive, in bounded memory.

The current row of a file is its newest row. Files that the last listing no longer found have none.

A run can list its archive several times, and score files again. A manifest has the new and changed
files that one listing found, or the files that one retry scores again. So a file has a newer row if
a later manifest contains its `image_id`. Only finished manifests count: a manifest is finished when
its `summaries/<n>.json`, or a later one, exists.

`current_tables` and `current_rows` return the current rows. `CurrentRows` also reads them by file,
so that Ray tasks can share the work. `ChangedRows` has the rows that became current, or stopped
being current, since an earlier command on the run.

If the whole archive is unlike the images of the ensemble's calibration, readers return `abstain` in
place of `real` and `fake` (`mark_unlike`). The stored files keep the verdicts of the ensemble.
"""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app import archives
from ray_app.errors import ClusterError, ConfigError, Reason
from ray_app.runs import directory, score_files
from ray_app.runs.schema import DETAIL, FINDING, GROUNDS, UNLIKE

_MARKED = ["verdict", "verdict_reason", DETAIL, FINDING, GROUNDS]
# `with_findings` needs these to describe an abstention.
_FOR_FINDINGS = [*_MARKED, "score", "provenance"]


@dataclass(frozen=True)
class CurrentRows:
    """The current rows of a run, one for each file that the last listing found.

    A manifest has the new and changed files that one listing found, or the files that one retry
    scores again. If a file was scored again, only its last row is current. The object is
    picklable, so that each Ray task can read some of the run's Parquet files. Create it with `read`
    for a finished run, or with `at_end` to also read the rows of an unfinished run.

    Attributes:
        run: The run directory.
        last: The number of the last manifest whose rows are read; -1 if there is none.
        vanished: Sorted ids of files that the listing `last` no longer found.
        retried: For each retry, the number of its manifest and the sorted ids of its files. Earlier
            rows with these ids are not current.
        unlike: The reason why readers return `abstain` for every verdict: the archive is unlike the
            images of the ensemble's calibration. None if they return the stored verdicts.
        thresholds: The thresholds of the run's ensemble, as in `run.json`, for the text of an
            abstention.
    """

    run: directory.RunDirectory
    last: int
    vanished: archives.Ids
    retried: Mapping[int, archives.Ids] = field(default_factory=dict)
    unlike: str | None = None
    thresholds: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, run: directory.RunDirectory) -> "CurrentRows":
        """Return the current rows of all finished listings and retries of a run.

        Raises:
            ConfigError: If there is no run, or no listing is finished.
        """
        rows = cls._up_to(run, run.last_finished())
        if rows.last < 0:
            raise ConfigError(
                f"{run.store.url}: no listing of this run is finished yet",
                hint="repeat the touchstone score command that started this run; touchstone results --unfinished shows the rows so far",
            )
        return rows

    @classmethod
    def at_end(cls, run: directory.RunDirectory) -> "CurrentRows":
        """Return the current rows of a run that may be unfinished.

        Rows of a listing or a retry that is still being scored are included. A file that waits to
        be scored has no current row, even if it was scored before. Use `read` to ignore a
        listing or a retry until it is finished.

        Raises:
            ConfigError: If there is no run.
        """
        numbers, listed = archives.list_manifests(run.store)
        return cls._up_to(run, max(numbers, default=-1), listed)

    @classmethod
    def _up_to(
        cls, run: directory.RunDirectory, last: int, listed: archives.ManifestInfo | None = None
    ) -> "CurrentRows":
        if not run.exists():
            raise run.missing_run_error()
        run_info = run.describe()
        run.check_readable(run_info)
        info = archives.read_complete(run.store, last) if last >= 0 else None
        if listed is not None:
            info, vanished = listed, archives.read_vanished_so_far(run.store, listed)
        elif info is not None:
            vanished = archives.read_vanished(run.store, last)
        else:
            return cls(run, -1, np.empty(0, np.int64))
        retried = {}
        for number in info.retries:
            blocks = archives.read_blocks(run.store, number)
            retried[number] = np.sort(np.concatenate(list(archives.read_ids(run.store, blocks))))
        ensemble = run_info.get("ensemble") or {}
        return cls(
            run,
            info.manifest,
            vanished,
            retried,
            _unlike(run, run_info),
            ensemble.get("thresholds", {}),
        )

    def files(self) -> list[str]:
        """Return the paths of the run's Parquet files that contain current rows.

        The paths are in the order in which the archive was listed.
        """
        return self.run.row_files(range(self.last + 1)) if self.last >= 0 else []

    def tables(
        self,
        columns: Sequence[str] | None = None,
        *,
        files: Sequence[str] | None = None,
        vanished: bool = False,
    ) -> Iterator[pa.Table]:
        """Yield the current (newest) row of each file of the archive, as tables of bounded size.

        The rows are in the order in which the archive was listed.

        Args:
            columns: Columns to read, with `image_id` among them. None reads all.
            files: The Parquet files to read, some of `CurrentRows.files()`. None reads all.
            vanished: Also yield rows of images that the last listing no longer found.
        """
        for _, table in self.tables_by_file(columns, files=files, vanished=vanished):
            yield table

    def tables_by_file(
        self,
        columns: Sequence[str] | None = None,
        *,
        files: Sequence[str] | None = None,
        vanished: bool = False,
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yield (path, table): current rows, and the Parquet file from which they were read.

        The tables have a bounded size. The rows of one Parquet file may be in several tables.

        Args:
            columns: Columns to read, with `image_id` among them. None reads all.
            files: The Parquet files to read, some of `CurrentRows.files()`. None reads all.
            vanished: Also yield rows of images that the last listing no longer found.

        Yields:
            The path, relative to the run directory, and a table.
        """
        paths = self.files() if files is None else files
        for path, table in self.read_files(paths, columns):
            is_current = self.select(table, score_files.manifest_of(path), vanished=vanished)
            yield path, table if is_current.all() else table.filter(pa.array(is_current))

    def read_files(
        self, paths: Sequence[str], columns: Sequence[str] | None
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yield all rows of some of the run's Parquet files, including rows that are not current.

        If the archive is unlike the calibration images, verdicts are `abstain` (see `mark_unlike`).

        Args:
            paths: The paths of the Parquet files, relative to the run directory.
            columns: Columns to read. None reads all.

        Yields:
            The path of a file, and a table of bounded size with some of its rows.
        """
        requested = None if columns is None else list(columns)
        if self.unlike is None or (requested is not None and not set(requested) & set(_MARKED)):
            yield from self.run.rows_of(paths, requested)
            return
        read = None if requested is None else list(dict.fromkeys([*requested, *_FOR_FINDINGS]))
        for path, table in self.run.rows_of(paths, read):
            marked = mark_unlike(table, self.unlike, self.thresholds)
            present = marked.column_names
            names = (
                present if requested is None else [name for name in requested if name in present]
            )
            yield path, marked.select(names)

    def select(
        self, table: pa.Table, manifest: int, *, vanished: bool = False
    ) -> npt.NDArray[np.bool_]:
        """Return for each row (n,) of a table whether it is current.

        A row is not current if a later retry scored its image again, or if the last listing no
        longer found the image.

        Args:
            table: Rows of one Parquet file of the run, with `image_id`.
            manifest: The number of the listing or retry to which these rows belong.
            vanished: Whether rows of images that the last listing no longer found count as current.

        Returns:
            A mask of the rows (n,).
        """
        is_current = np.ones(len(table), bool)
        for number, ids in self.retried.items():
            if number > manifest:
                is_current &= ~are_among(table, ids)
        if not vanished:
            is_current &= ~are_among(table, self.vanished)
        return is_current

    def rows(
        self, *, status: str | None = None, vanished: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield the current row of each file as a dictionary.

        The current row is that of the last finished listing or retry that contains the file.

        Args:
            status: Only rows with this status. None for all.
            vanished: Whether to include files that the last listing no longer found.

        Yields:
            The columns of a row and their values.
        """
        for table in self.tables(vanished=vanished):
            if status is not None:
                table = table.filter(pc.equal(table["status"].cast(pa.string()), status))
            yield from table.to_pylist()

    def masks(self, *, vanished: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the masks of altered pixels that detectors predicted for the current images.

        Masks of perturbed images are left out.

        Args:
            vanished: Also yield masks of images that the last listing no longer found.

        Yields:
            The columns of `schema.MASK_SCHEMA` and their values, such as `image_id` and `png`.
        """
        folders = sorted(int(name) for name in self.run.store.folders("masks"))
        for manifest in (number for number in folders if number <= self.last):
            for table in self.run.masks(manifest):
                if "view" in table.column_names:
                    table = table.filter(pc.is_null(table["view"])).drop_columns(["view"])
                is_current = self.select(table, manifest, vanished=vanished)
                yield from table.filter(pa.array(is_current)).to_pylist()

    def members(
        self, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[pa.Table, dict[int, archives.ManifestMember]]]:
        """Yield tables of current rows, with the locations from which to read the images again.

        Args:
            columns: Columns to read, with `image_id` among them. None reads all.

        Yields:
            A table of bounded size, and the member of each row by `image_id`. A member is the entry
            of a listing with the location of one image file.

        Raises:
            ClusterError: If a Parquet file has more rows than image files were listed for it.
        """
        for file in self.published():
            listed = members_in(self.run, file)
            for _, table in self.read_files([file.path], columns):
                by_id = {member.image_id: member for member in islice(listed, len(table))}
                if len(by_id) != len(table):
                    raise ClusterError(
                        f"{self.run.store.url}: the rows of {file.path} do not match the members of their manifest",
                        hint="report this as a bug in Touchstone",
                    )
                yield table.filter(pa.array(self.select(table, file.manifest))), by_id

    def published(self) -> list[score_files.ScoreFile]:
        """Return the Parquet files in `scores/` that contain current rows.

        The files are in the order in which the archive was listed. Rows that are not merged into
        such a file yet, but still in `parts/`, are left out.
        """
        return [file for file in self.run.published() if file.manifest <= self.last]


def _unlike(run: directory.RunDirectory, run_info: Mapping[str, Any]) -> str | None:
    """Return the reason why all verdicts abstain, or None. Older versions wrote it into the rows."""
    finished = run.last_finished()
    if run_info.get("layout", 1) < directory.LAYOUT or finished < 0:
        return None
    guarantee = run.read_json(f"summaries/{finished:05d}.json").get("guarantee") or {}
    unlike: str | None = guarantee.get("unlike")
    return unlike


def mark_unlike(rows: pa.Table, unlike: str, thresholds: Mapping[str, Any]) -> pa.Table:
    """Return rows with the verdict `abstain` in place of `real` and `fake`, and with its reason.

    Readers call this function if the whole archive is unlike the images on which the ensemble was
    calibrated, so that its error rates do not hold.

    Args:
        rows: Result rows with the columns for verdicts and findings, which `CurrentRows` adds.
        unlike: Why the archive is unlike the calibration images, as in `GuaranteeSummary.unlike`.
        thresholds: The thresholds of the ensemble, as in `run.json`.

    Returns:
        The rows with new verdicts, reasons, and findings.
    """
    # Imported here because most readers mark no row, and start faster without these modules.
    from ray_app.ensembles import Thresholds
    from ray_app.runs.rows import as_array, with_findings

    verdicts, reasons = rows["verdict"].cast(pa.string()), rows["verdict_reason"]
    is_decided = pc.fill_null(pc.is_in(verdicts, pa.array(["real", "fake"])), False)
    changed = {
        "verdict": pc.if_else(is_decided, "abstain", verdicts),
        "verdict_reason": pc.if_else(is_decided, Reason.UNLIKE_ARCHIVE.value, reasons),
        DETAIL: pc.if_else(is_decided, unlike.removeprefix(f"{UNLIKE}: "), rows[DETAIL]),
    }
    for name, values in changed.items():
        index = rows.schema.get_field_index(name)
        column = as_array(values.combine_chunks().to_pylist(), rows.schema.field(index), len(rows))
        rows = rows.set_column(index, rows.schema.field(index), column)
    return with_findings(rows, Thresholds(**thresholds))


@dataclass(frozen=True)
class ChangedRows:
    """The rows that became current, or stopped being current, between two times of a run.

    The current row of a file is its newest row. If rows were counted at the earlier time, the
    counts can be updated by the changed rows, without counting all rows again.

    Attributes:
        before: The current rows at the earlier time.
        now: The current rows at the later time.
    """

    before: CurrentRows
    now: CurrentRows

    def added(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield rows that are in `now` but not in `before`, as tables of bounded size."""
        yield from self._of_older_files(columns, is_added=True)
        newer = self.now.run.row_files(range(self.before.last + 1, self.now.last + 1))
        yield from self.now.tables(columns, files=newer)

    def removed(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield rows that are in `before` but not in `now`, as tables of bounded size.

        They have the verdicts that `before` returns.
        """
        yield from self._of_older_files(columns, is_added=False)

    def _of_older_files(self, columns: Sequence[str], *, is_added: bool) -> Iterator[pa.Table]:
        if not self._touches_older_rows():
            return
        rows = self.now if is_added else self.before
        for path, table in rows.read_files(self._changed_files, columns):
            changed = self._changed(table, path, is_added=is_added)
            if changed.any():
                yield table.filter(pa.array(changed))

    @cached_property
    def _changed_files(self) -> list[str]:
        """The earlier files in which a row became current or stopped being current."""
        paths = [
            path
            for path, table in self.now.run.rows_of(self.before.files(), ["image_id"])
            if self._changed(table, path, is_added=True).any()
            or self._changed(table, path, is_added=False).any()
        ]
        return list(dict.fromkeys(paths))

    def _touches_older_rows(self) -> bool:
        is_same = np.array_equal(self.before.vanished, self.now.vanished)
        return not is_same or self.before.retried.keys() != self.now.retried.keys()

    def _changed(self, table: pa.Table, path: str, *, is_added: bool) -> npt.NDArray[np.bool_]:
        manifest = score_files.manifest_of(path)
        before, now = self.before.select(table, manifest), self.now.select(table, manifest)
        changed: npt.NDArray[np.bool_] = (now & ~before) if is_added else (before & ~now)
        return changed


def current_tables(
    run: directory.RunDirectory,
    columns: Sequence[str] | None = None,
    *,
    vanished: bool = False,
    unfinished: bool = False,
) -> Iterator[pa.Table]:
    """Yield the current rows of a run, as tables of bounded size.

    The current row of a file is its newest row.

    Args:
        run: The run directory.
        columns: Columns to read, with `image_id` among them. None reads all.
        vanished: Also yield rows of files that the last listing no longer found.
        unfinished: Also yield rows of listings that are still being scored.

    Raises:
        ConfigError: If there is no run, or if no listing is finished and `unfinished` is False.
    """
    rows = CurrentRows.at_end(run) if unfinished else CurrentRows.read(run)
    yield from rows.tables(columns, vanished=vanished)


def current_rows(
    run: directory.RunDirectory,
    *,
    status: str | None = None,
    vanished: bool = False,
    unfinished: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the current rows of a run as dictionaries.

    The current row of a file is its newest row.

    Args:
        run: The run directory.
        status: Only yield rows with this status. None yields all.
        vanished: Also yield rows of files that the last listing no longer found.
        unfinished: Also yield rows of listings that are still being scored.

    Raises:
        ConfigError: If there is no run, or if no listing is finished and `unfinished` is False.
    """
    rows = CurrentRows.at_end(run) if unfinished else CurrentRows.read(run)
    yield from rows.rows(status=status, vanished=vanished)


def numbers(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float64]:
    """Return a column of numbers as a float64 array (n,), with NaN for null."""
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))


def are_among(table: pa.Table, ids: archives.Ids) -> npt.NDArray[np.bool_]:
    """Return for each row (n,) of a table whether `ids` contains its `image_id`.

    Args:
        table: A table with the column `image_id`.
        ids: Image ids in ascending order.

    Returns:
        A mask of the rows (n,).
    """
    row_ids = table["image_id"].to_numpy()
    if not len(ids):
        return np.zeros(len(row_ids), bool)
    is_among: npt.NDArray[np.bool_] = (
        ids[np.minimum(np.searchsorted(ids, row_ids), len(ids) - 1)] == row_ids
    )
    return is_among


def members_in(
    run: directory.RunDirectory, file: score_files.ScoreFile
) -> Iterator[archives.ManifestMember]:
    """Yield the locations of the images whose rows a Parquet file in `scores/` contains.

    Args:
        run: The run directory.
        file: The Parquet file.

    Yields:
        A member for each row, in the order of the rows. A member is the entry of a listing with the
        location of one image file. One block of members is in memory at a time.
    """
    for ref in blocks_in(run, file):
        yield from archives.rows_to_members(archives.read_block(run.store, ref))


def blocks_in(
    run: directory.RunDirectory, file: score_files.ScoreFile
) -> Iterator[archives.BlockRef]:
    """Yield the blocks whose rows a Parquet file in `scores/` contains, in the order of the rows.

    A block is a fixed range of image files that is scored and stored together.
    """
    for blocks in block_lists_in(run, file):
        yield from blocks


def block_lists_in(
    run: directory.RunDirectory, file: score_files.ScoreFile
) -> Iterator[archives.BlockList]:
    """Yield the blocks whose rows a Parquet file in `scores/` contains, as one list per manifest.

    A block is a fixed range of image files that is scored and stored together. `blocks_in` yields
    these blocks one by one.
    """
    for number in file.manifests():
        blocks = archives.read_blocks(run.store, number)
        covered = file.blocks_of(number, len(blocks))
        yield blocks[covered.start : covered.stop]


def find_members(
    run: directory.RunDirectory, image_ids: Collection[int], *, seconds: float = math.inf
) -> dict[int, archives.ManifestMember]:
    """Find the locations of images by their ids, to read the image files again.

    Args:
        run: The run directory. Its lists of the files to score are searched.
        image_ids: The ids to look up.
        seconds: Stop the search after this time and return the members found so far.

    Returns:
        The members by id. A member is the entry of one image file in such a list, with its
        location. Ids that were not found are left out.
    """
    ids_to_find, deadline = (
        np.unique(np.array(list(image_ids), np.int64)),
        time.monotonic() + seconds,
    )
    members_by_id: dict[int, archives.ManifestMember] = {}
    for blocks in archives.read_block_lists(run.store):
        for ref, ids in zip(blocks, archives.read_ids(run.store, blocks), strict=True):
            if np.isin(ids, ids_to_find).any():
                members = archives.rows_to_members(archives.read_block(run.store, ref))
                members_by_id |= {
                    member.image_id: member for member in members if member.image_id in image_ids
                }
            if len(members_by_id) == len(ids_to_find) or time.monotonic() > deadline:
                return members_by_id
    return members_by_id
