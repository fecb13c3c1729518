"""A block's batches as one Arrow row and back, for when decoding and scoring happen in different processes.

Only prepared uint8 tensors, encoded files and facts travel, never raw pixels; tensors come out as views of the received buffer.
"""

import pickle
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from ray_app.detectors import Preprocessing
from ray_app.inference.batches import Batch, Outcome, Pixels, Ragged


def pack(batches: Iterable[Batch], preprocessings: Sequence[Preprocessing]) -> pa.Table:
    """One row: the outcomes of every batch, the encoded files that were handed over, and per preprocessing of fixed shape one tensor
    of all batches that have pixels, as bytes and shape.
    """
    batches = list(batches)
    columns = {"outcomes": pa.array([pickle.dumps([(batch.outcomes, bool(batch.pixels)) for batch in batches])], pa.large_binary())}
    columns["encoded"] = pa.array([[data for batch in batches for data in batch.encoded]], pa.large_list(pa.large_binary()))
    with_pixels = [batch.pixels for batch in batches if batch.pixels]
    for index, preprocessing in enumerate(preprocessings):
        if preprocessing.shape is None:
            continue
        tensor = np.stack([np.asarray(pixels[index]) for pixels in with_pixels]) if with_pixels else np.empty((0, 0), np.uint8)
        columns[f"pixels_{index}"] = _binary(tensor)
        columns[f"shape_{index}"] = pa.array([list(tensor.shape)], pa.list_(pa.int32()))
    return pa.table(columns)


def unpack(table: pa.Table, preprocessings: Sequence[Preprocessing]) -> Iterator[Batch]:
    """The batches of a packed row, in order; images that keep their size are still encoded (see `BatchDecoder.complete`)."""
    # Both ends are workers of one run at one version; nothing from outside is ever unpickled here.
    packed: list[tuple[tuple[Outcome, ...], bool]] = pickle.loads(table["outcomes"][0].as_py())  # noqa: S301
    tensors = [None if preprocessing.shape is None else _tensor(table, index) for index, preprocessing in enumerate(preprocessings)]
    encoded = table["encoded"][0].as_py()
    place = start = 0
    for outcomes, has_pixels in packed:
        files = tuple(encoded[start : start + len(outcomes)])
        unprepared: Ragged = (None,) * len(outcomes)
        pixels = tuple(unprepared if tensor is None else tensor[place] for tensor in tensors) if has_pixels else ()
        yield Batch(outcomes, pixels, files)
        place, start = place + has_pixels, start + len(outcomes)


def _binary(tensor: Pixels) -> pa.Array:
    offsets = pa.py_buffer(np.array([0, tensor.nbytes], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(tensor)])


def _tensor(table: pa.Table, index: int) -> Pixels:
    return np.frombuffer(table[f"pixels_{index}"][0].as_buffer(), np.uint8).reshape(table[f"shape_{index}"][0].as_py())
