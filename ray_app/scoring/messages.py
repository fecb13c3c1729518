"""What driver and workers say to each other: tables of one row, since that is what Ray Data carries.

A block enters as its reference and comes back as a report, as the error that a worker met, or as itself, not begun.
"""

import json
import pickle
from typing import Any

import pyarrow as pa

from ray_app.archives import BlockRef
from ray_app.errors import TouchstoneError

REF, REPORT, ERROR, HANDED_BACK = "ref", "report", "error", "handed_back"

Report = dict[str, Any]


def block_table(ref: BlockRef) -> pa.Table:
    """The row by which a block enters the pipeline."""
    return pa.table({REF: pickled(ref)})


def ref_of(table: pa.Table) -> BlockRef:
    """The block that a row of `block_table` names."""
    ref: BlockRef = unpickled(table[REF])
    return ref


def report_table(report: Report) -> pa.Table:
    """The row that says what was done with a block; `report` is plain JSON with its `manifest` and `block`."""
    return pa.table({REPORT: [json.dumps(report)]})


def error_table(error: TouchstoneError) -> pa.Table:
    """The row that stands for a block which could not be worked on, since Ray keeps only the text of an exception."""
    return pa.table({ERROR: pickled(error)})


def handed_back(table: pa.Table) -> pa.Table:
    """A row of `block_table` as one whose block was not begun."""
    return table.rename_columns([HANDED_BACK])


def is_settled(table: pa.Table) -> bool:
    """Whether no later stage has anything to do with it."""
    return ERROR in table.column_names or HANDED_BACK in table.column_names


def report_of(table: pa.Table) -> Report | None:
    """The report on a committed block; None for one that was handed back. Raises the TouchstoneError that a worker met instead."""
    if ERROR in table.column_names:
        raise unpickled(table[ERROR])
    if HANDED_BACK in table.column_names:
        return None
    report: Report = json.loads(table[REPORT][0].as_py())
    return report


def pickled(value: object) -> pa.Array:
    """One value as a column."""
    return pa.array([pickle.dumps(value)], pa.large_binary())


def unpickled(column: pa.ChunkedArray) -> Any:
    """The value of such a column."""
    return pickle.loads(column[0].as_py())  # noqa: S301  (made by this run's driver or workers)
