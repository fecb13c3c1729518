"""Copy a finished run to a new directory with few files (`compact_run`).

The new run lists all its files in a single manifest, even if the source run has many. `copy_rows`
can also compute new verdicts, as `touchstone runs decide` does. The source run is never changed. It
may be a run of Touchstone 0.20 or later.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app import __version__, archives
from ray_app.archives.build import find_input_type, write_selected
from ray_app.archives.cut_blocks import TableStream
from ray_app.archives.known_ids import copy_ids
from ray_app.ensembles import EnsembleCard
from ray_app.images import ImageLimits
from ray_app.inference import ScoringSpec, make_spec
from ray_app.runs import CurrentRows, RunDirectory, directory, document, fingerprint, schema
from ray_app.runs.current import blocks_in
from ray_app.runs.parts import PUBLISHED_BYTES, Merger
from ray_app.runs.row_shape import RowShape
from ray_app.runs.score_files import ScoreFile
from ray_app.runs.summary import COLUMNS, summarise
from ray_app.scoring import guarantee, report
from ray_app.storage import Lease

# Blocks only limit how much a reader loads at once: their images are not scored again.
_PLAN = archives.BlockPlan(batch_slots=4, max_block_members=2048)
_COPIED = ("weights", "sessions")


def compact_run(url: str, out: str, *, unguarded: bool = False) -> dict[str, Any]:
    """Copy the current rows of a finished run into a new run that has few files.

    A file has one current row, which is its newest row. Rows of unfinished listings do not count.
    Rows of files that the last listing no longer found are left out. `touchstone score` with the
    same source and `--out OUT` continues the new run; it scores no file again. `unguarded` accepts
    a store without conditional writes. The result is the new `summary.json`. Raises ConfigError if
    the run is not finished, or `out` is in use.
    """
    run, target = RunDirectory.open(url), RunDirectory.open(out)
    run_info = run.describe_finished()
    run.check_known()
    rows = CurrentRows.read(run)
    spec = None
    if run_info.get("unlike"):
        # Versions before 0.25 wrote the abstentions into the rows.
        card = EnsembleCard.model_validate(run_info["ensemble"])
        spec = make_spec(card, limits=ImageLimits(**run_info["identity"].get("limits", {})))
    with claim_copy(target, run_info, url, unguarded=unguarded) as new_info:
        copy_rows(rows, target, spec)
        before = run.read_json(f"summaries/{rows.last:05d}.json")
        unlike = (before.get("guarantee") or {}).get("unlike")
        copied = replace(CurrentRows.at_end(target), unlike=unlike)
        counts = summarise(copied.tables(COLUMNS), run_info["detectors"])
        return finish_copy(target, new_info, before | counts.to_dict())


@contextmanager
def claim_copy(
    target: RunDirectory, run_info: Mapping[str, Any], url: str, *, unguarded: bool
) -> Iterator[dict[str, Any]]:
    """Claim a directory for the copy of a run for the `with` block, and yield its `run.json`.

    Files that an interrupted copy of the same run left in the directory are removed. The versions
    of the row schema and of the directory's layout are added to `run_info`. Raises ConfigError if
    the directory contains another run, or another command's files.
    """
    fields = {key: value for key, value in run_info.items() if key not in ("unlike", "deciding")}
    new_info = fields | {
        "schema": schema.SCHEMA_VERSION,
        "layout": directory.LAYOUT,
        "identity": directory.add_defaults(run_info["identity"]),
    }
    claim = new_info | {directory.COPY_OF: RunDirectory.open(url).store.url}
    target.check_copy(claim)  # Raises before the lease is written.
    with Lease(target.store, unguarded=unguarded):
        target.check_copy(claim)
        target.write_json("run.json", claim)
        for folder in directory.FOLDERS:
            target.store.clear(folder)
        yield new_info


def copy_rows(
    rows: CurrentRows,
    target: RunDirectory,
    spec: ScoringSpec | None = None,
) -> None:
    """Write current rows, with their manifest, masks, and embeddings, into a new run directory.

    The current row of a file is its newest row. `spec` computes new verdicts. None keeps the
    verdicts of the rows.
    """
    for folder in _COPIED:
        _copy_files(rows.run, target, folder)
    copier = _Copier(rows, target, spec)
    copier.copy_members()
    blocks = archives.read_blocks(target.store, 0)
    copier.copy_rows(blocks)
    store = rows.run.store
    features = [f"features/{name}" for name in store.folders("features")]
    for folder in (["masks"] if store.folders("masks") else []) + features:
        copier.copy_beside(folder, blocks)


def finish_copy(
    target: RunDirectory, run_info: Mapping[str, Any], content: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the summary, `run.json`, and the report of a copied run, and return the summary.

    `content` has the keys of `summary.json` that do not identify the run, such as counts.
    """
    identity = run_info["identity"]
    summary = document.RunSummary.model_validate(
        {
            **content,
            "run": target.store.url,
            "listing": 0,
            "version": __version__,
            "row_schema": schema.SCHEMA_VERSION,
            "identity": identity,
            "fingerprint": fingerprint(identity),
        }
    ).to_dict()
    target.write_json("summaries/00000.json", summary)
    target.write_json("summary.json", summary)
    # From now on, `touchstone score` may continue the run.
    target.write_json("run.json", dict(run_info))
    # Thumbnails would be fetched from the archive.
    report.write_report(target, thumbnails=False)
    return summary


def _copy_files(run: RunDirectory, target: RunDirectory, folder: str) -> None:
    with tempfile.TemporaryDirectory() as local:
        path = Path(local) / "file"
        for name in run.store.names(folder):
            run.store.copy_to(f"{folder}/{name}", path)
            target.store.write_file(f"{folder}/{name}", path)


@dataclass(frozen=True)
class _Copier:
    """Copy the current members of a run, in their order, into manifest 0 of another run."""

    rows: CurrentRows
    target: RunDirectory
    spec: ScoringSpec | None

    def copy_members(self) -> None:
        """Write manifest 0 from the manifest rows of the current members."""
        store = self.rows.run.store
        last = archives.read_complete(store, self.rows.last)
        assert last is not None, "a finished manifest is complete"
        base = replace(
            last, manifest=0, earlier=0, portions=0, retried=[], retries=[], listing_s=0.0
        )
        write_selected(self.target.store, self._members(), _PLAN, find_input_type(store), base=base)
        ids = [table["image_id"].to_numpy() for table in self.rows.tables(["image_id"])]
        current_ids = np.sort(np.concatenate([np.empty(0, np.int64), *ids]))
        copy_ids(store, range(self.rows.last + 1), self.target.store, current_ids)

    def _members(self) -> Iterator[pa.Table]:
        for ref, is_current in self._blocks():
            table = archives.read_block(self.rows.run.store, ref)
            if is_current.any():
                yield table.filter(pa.array(is_current))

    def _blocks(self) -> Iterator[tuple[archives.BlockRef, npt.NDArray[np.bool_]]]:
        """Yield the blocks of the run, each with a mask of its current members."""
        run = self.rows.run
        for file in self.rows.published():
            tables = run.rows_in(file.path, ["image_id"])
            is_current = np.concatenate(
                [np.empty(0, bool), *(self.rows.select(table, file.manifest) for table in tables)]
            )
            start = 0
            for ref in blocks_in(run, file):
                yield ref, is_current[start : start + ref.members]
                start += ref.members

    def copy_rows(self, blocks: archives.BlockList) -> None:
        """Write the rows of these blocks of the new manifest as published files."""
        run, store = self.rows.run, self.target.store
        shape = RowShape.of_files(run, self.rows.files())
        # The rows as they were written, without the mark of an unlike archive.
        unmarked = replace(self.rows, unlike=None)
        decided = (self._decide(shape.apply(table)) for table in unmarked.tables())
        arriving, merger, first = TableStream(decided), Merger(), 0
        for ref in blocks:
            table = arriving.take(ref.members)
            if not merger.accepts(table) and ref.block > first:
                store.write(ScoreFile(0, first, ref.block - 1).path, merger.finish())
                merger, first = Merger(), ref.block
            merger.add(table)
            if merger.size_bytes >= PUBLISHED_BYTES or ref.block == len(blocks) - 1:
                store.write(ScoreFile(0, first, ref.block).path, merger.finish())
                merger, first = Merger(), ref.block + 1

    def _decide(self, table: pa.Table) -> pa.Table:
        return table if self.spec is None else guarantee.decide_rows(table, self.spec)

    def copy_beside(self, folder: str, blocks: archives.BlockList) -> None:
        """Write the masks or embeddings of these blocks of the new manifest."""
        arriving = self._beside(folder)
        waiting: list[pa.Table] = []
        needed = read = 0
        for ref, ids in zip(blocks, archives.read_ids(self.target.store, blocks), strict=True):
            needed += ref.members
            while read < needed:
                members, table = next(arriving)
                read += members
                waiting += [table] if table is not None else []
            if not waiting:
                continue
            together = pa.concat_tables(waiting, promote_options="default")
            is_here = pc.is_in(together["image_id"], pa.array(ids))
            current, waiting = together.filter(is_here), [together.filter(pc.invert(is_here))]
            if len(current):
                self.target.write_sidecar(folder, 0, ref.block, current)

    def _beside(self, folder: str) -> Iterator[tuple[int, pa.Table | None]]:
        """Yield for each block of the run the number of its current members, and its table."""
        for ref, is_current in self._blocks():
            table = self.rows.run.read_sidecar(folder, ref.manifest, ref.block)
            if table is not None:
                table = table.filter(pa.array(self.rows.select(table, ref.manifest)))
            yield int(is_current.sum()), table
