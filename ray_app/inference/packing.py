"""A block's batches as one Arrow row and back, for when decoding and scoring happen in different processes.

Only prepared uint8 tensors, encoded files and facts travel, never raw pixels; tensors come out as views of the received buffer.
"""

import pickle
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from ray_app.detectors import Preprocessing
from ray_app.inference.batches import Batch, Outcome, Pixels, Ragged, Size, View

Facts = tuple[tuple[Outcome, ...], bool, tuple[tuple[Size | None, ...], ...]]  # outcomes, whether there are pixels, the sizes in each view


def pack(batches: Iterable[Batch], preprocessings: Sequence[Preprocessing]) -> pa.Table:
    """One row: the outcomes of every batch, the encoded files that were handed over, and per view and preprocessing of fixed shape one
    tensor of all batches that have pixels, as bytes and shape.
    """
    batches = list(batches)
    facts: list[Facts] = [(batch.outcomes, bool(batch.pixels), tuple(view.sizes for view in batch.views)) for batch in batches]
    columns = {"outcomes": pa.array([pickle.dumps(facts)], pa.large_binary())}
    columns["encoded"] = pa.array([[data for batch in batches for data in batch.encoded]], pa.large_list(pa.large_binary()))
    with_pixels = [(batch.pixels, *(view.pixels for view in batch.views)) for batch in batches if batch.pixels]
    for view in range(len(with_pixels[0]) if with_pixels else 1):
        for index, preprocessing in enumerate(preprocessings):
            if preprocessing.shape is None or (with_pixels and index >= len(with_pixels[0][view])):
                continue  # it travels as a file, or is seen by the describer, which looks at no view
            tensor = np.stack([np.asarray(seen[view][index]) for seen in with_pixels]) if with_pixels else np.empty((0, 0), np.uint8)
            columns["pixels" + _name(view, index)] = _binary(tensor)
            columns["shape" + _name(view, index)] = pa.array([list(tensor.shape)], pa.list_(pa.int32()))
    return pa.table(columns)


def unpack(table: pa.Table, preprocessings: Sequence[Preprocessing]) -> Iterator[Batch]:
    """The batches of a packed row, in order; images that keep their size are still encoded (see `BatchDecoder.complete`)."""
    # Both ends are workers of one run at one version; nothing from outside is ever unpickled here.
    packed: list[Facts] = pickle.loads(table["outcomes"][0].as_py())  # noqa: S301
    most = max((len(sizes) for _, _, sizes in packed), default=0)
    tensors = [
        [
            _tensor(table, _name(view, index)) if "pixels" + _name(view, index) in table.column_names else None
            for index in range(len(preprocessings))
        ]
        for view in range(most + 1)
    ]
    encoded = table["encoded"][0].as_py()
    place = start = 0
    for outcomes, has_pixels, sizes in packed:
        files = tuple(encoded[start : start + len(outcomes)])
        clean, *seen = [_of_one(view, place, len(outcomes)) for view in tensors] if has_pixels else [()]
        yield Batch(outcomes, clean, files, tuple(View(pixels, size) for pixels, size in zip(seen, sizes, strict=True)))
        place, start = place + has_pixels, start + len(outcomes)


def _of_one(tensors: Sequence[Pixels | None], place: int, count: int) -> tuple[Pixels | Ragged, ...]:
    """One batch's pixels; those that keep their size are yet to be prepared."""
    unprepared: Ragged = (None,) * count
    return tuple(unprepared if tensor is None else tensor[place] for tensor in tensors)


def _name(view: int, index: int) -> str:
    """Of a column: view 0 is the clean one."""
    return f"_{index}" if view == 0 else f"_{view}_{index}"


def _binary(tensor: Pixels) -> pa.Array:
    offsets = pa.py_buffer(np.array([0, tensor.nbytes], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(tensor)])


def _tensor(table: pa.Table, name: str) -> Pixels:
    return np.frombuffer(table["pixels" + name][0].as_buffer(), np.uint8).reshape(table["shape" + name][0].as_py())
