"""A block's batches as one Arrow row and back, for when decoding and scoring happen in different processes.

Only prepared uint8 tensors and facts travel, never raw pixels; tensors come out as views of the received buffer, without a copy.
"""

import pickle
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from ray_app.inference.decoding import Batch, Outcome, Pixels


def pack(batches: Iterable[Batch], preprocessings: int) -> pa.Table:
    """One row: the outcomes of every batch, and per preprocessing one tensor of all batches that have pixels, as bytes and shape."""
    batches = list(batches)
    columns = {"outcomes": pa.array([pickle.dumps([(batch.outcomes, bool(batch.pixels)) for batch in batches])], pa.large_binary())}
    with_pixels = [batch.pixels for batch in batches if batch.pixels]
    for index in range(preprocessings):
        tensor = np.stack([pixels[index] for pixels in with_pixels]) if with_pixels else np.empty((0, 0), np.uint8)
        columns[f"pixels_{index}"] = _binary(tensor)
        columns[f"shape_{index}"] = pa.array([list(tensor.shape)], pa.list_(pa.int32()))
    return pa.table(columns)


def unpack(table: pa.Table, preprocessings: int) -> Iterator[Batch]:
    """The batches of a packed row, in order."""
    # Both ends are workers of one run at one version; nothing from outside is ever unpickled here.
    packed: list[tuple[tuple[Outcome, ...], bool]] = pickle.loads(table["outcomes"][0].as_py())  # noqa: S301
    tensors = [_tensor(table, index) for index in range(preprocessings)]
    place = 0
    for outcomes, has_pixels in packed:
        yield Batch(outcomes, tuple(tensor[place] for tensor in tensors) if has_pixels else ())
        place += has_pixels


def _binary(tensor: Pixels) -> pa.Array:
    offsets = pa.py_buffer(np.array([0, tensor.nbytes], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(tensor)])


def _tensor(table: pa.Table, index: int) -> Pixels:
    return np.frombuffer(table[f"pixels_{index}"][0].as_buffer(), np.uint8).reshape(table[f"shape_{index}"][0].as_py())
