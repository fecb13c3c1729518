"""The current row of each member, whatever the run went through; bounded memory."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.archives import Ids, manifests, read_vanished
from ray_app.errors import ConfigError
from ray_app.runs.directory import RunDirectory
from ray_app.runs.profiles import of_generator


def current_tables(run: RunDirectory, columns: list[str] | None = None, *, vanished: bool = False) -> Iterator[pa.Table]:
    """Result rows of the members that the last listing found, a bounded table at a time.

    With `vanished`, also those of members that were changed or removed since. Raises ConfigError where there is no run.
    """
    yield from tables_in(run, current_files(run), columns, vanished=vanished)


def current_files(run: RunDirectory) -> list[str]:
    """The files with these rows, in the order of their blocks: what tasks read side by side. Raises ConfigError where there is no run."""
    if not run.exists():
        raise ConfigError(f"{run.store.url}: no run here", hint="touchstone score SOURCE --out DIR makes one")
    run.check_settled()
    return [path for manifest in manifests(run.store) for path in run.row_files(manifest)]


def tables_in(run: RunDirectory, files: Sequence[str], columns: list[str] | None = None, *, vanished: bool = False) -> Iterator[pa.Table]:
    """The current rows of some files of the run, a bounded table at a time; `columns` has `image_id` unless all are wanted."""
    numbers = manifests(run.store)
    gone = np.empty(0, np.int64) if vanished or not numbers else read_vanished(run.store, numbers[-1])
    for path in files:
        for table in run.rows_in(path, columns):
            yield _without(table, gone) if len(gone) else table


def numbers(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float64]:
    """A column of numbers (n,) as float64, NaN for null."""
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))


def _without(table: pa.Table, gone: Ids) -> pa.Table:
    """The rows whose ids are not among sorted ones."""
    ids = table["image_id"].to_numpy()
    return table.filter(pa.array(gone[np.minimum(np.searchsorted(gone, ids), len(gone) - 1)] != ids))


def publish_vanished(run: RunDirectory) -> None:
    """Write `vanished.parquet`, the ids whose rows are not current any more, where readers of `scores/` find it without a number."""
    gone = read_vanished(run.store, manifests(run.store)[-1])
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image_id": gone}), buffer)
    run.store.write("vanished.parquet", buffer.getvalue())


def current_rows(
    run: RunDirectory, *, verdict: str | None = None, status: str | None = None, generator: str | None = None, vanished: bool = False
) -> Iterator[dict[str, Any]]:
    """The same as dictionaries, one by one, optionally of one verdict or status, or of one `generator` (see `profiles.of_generator`)."""
    for table in current_tables(run, vanished=vanished):
        for name, wanted in (("verdict", verdict), ("status", status)):
            if wanted is not None:
                table = table.filter(pc.equal(table[name].cast(pa.string()), wanted))
        if generator is not None:
            table = of_generator(table, generator)
        yield from table.to_pylist()


def current_masks(run: RunDirectory, *, vanished: bool = False, view: str | None = None) -> Iterator[dict[str, Any]]:
    """The masks of the members that `current_tables` has rows of, one by one (`MASK_SCHEMA`): of the clean pass, or of one `view`.

    Raises ConfigError as that does.
    """
    ids = [table["image_id"].to_numpy() for table in current_tables(run, ["image_id"], vanished=vanished)]
    known = pa.array(np.concatenate([np.empty(0, np.int64), *ids]))
    for manifest in manifests(run.store):
        for table in run.masks(manifest):
            seen = _of_view(table, view)
            yield from seen.filter(pc.is_in(seen["image_id"], known)).to_pylist()


def _of_view(masks: pa.Table, view: str | None) -> pa.Table:
    """The masks of one view (None = clean), in `MASK_SCHEMA`; runs without perturbations have clean ones alone."""
    if "view" not in masks.column_names:
        return masks if view is None else masks.slice(0, 0)
    is_one = pc.is_null(masks["view"]) if view is None else pc.equal(masks["view"], view)
    return masks.filter(is_one).drop_columns(["view"])
