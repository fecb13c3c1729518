"""A block's batches as one Arrow table and back, for when decoding and scoring happen in different processes.

Only prepared uint8 tensors and facts travel, never raw pixels; tensors come out as views of the received buffers, without a copy.
"""

import pickle
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from ray_app.inference.decoding import Batch, Outcome, Pixels


def pack(batches: Iterable[Batch], preprocessings: int) -> pa.Table:
    """One row per batch: pickled outcomes, and per preprocessing the tensor's bytes and shape (null where nothing decoded)."""
    rows = [_row(batch, preprocessings) for batch in batches]
    schema = pa.schema([("outcomes", pa.large_binary())] + [field for index in range(preprocessings) for field in _tensor_fields(index)])
    tables = [pa.Table.from_arrays(row, schema=schema) for row in rows]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def unpack(table: pa.Table, preprocessings: int) -> Iterator[Batch]:
    """The batches of a packed table, in order."""
    for row in range(len(table)):
        # Both ends are workers of one run at one version; nothing from outside is ever unpickled here.
        outcomes: tuple[Outcome, ...] = pickle.loads(table["outcomes"][row].as_py())  # noqa: S301
        tensors = [_tensor(table, index, row) for index in range(preprocessings)]
        yield Batch(outcomes, tuple(tensor for tensor in tensors if tensor is not None))


def _row(batch: Batch, preprocessings: int) -> list[pa.Array]:
    row = [pa.array([pickle.dumps(batch.outcomes)], pa.large_binary())]
    for index in range(preprocessings):
        tensor = batch.pixels[index] if batch.pixels else None
        row += [_binary(tensor), pa.array([None if tensor is None else list(tensor.shape)], pa.list_(pa.int32()))]
    return row


def _tensor_fields(index: int) -> list[tuple[str, pa.DataType]]:
    return [(f"pixels_{index}", pa.large_binary()), (f"shape_{index}", pa.list_(pa.int32()))]


def _binary(tensor: Pixels | None) -> pa.Array:
    if tensor is None:
        return pa.array([None], pa.large_binary())
    offsets = pa.py_buffer(np.array([0, tensor.nbytes], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(np.ascontiguousarray(tensor))])


def _tensor(table: pa.Table, index: int, row: int) -> Pixels | None:
    shape = table[f"shape_{index}"][row].as_py()
    if shape is None:
        return None
    return np.frombuffer(table[f"pixels_{index}"][row].as_buffer(), np.uint8).reshape(shape)
