"""One stage of a stream: a class that takes a message and gives one, in a process of its own (`Stage`); and how messages travel (`packed`).

A Ray block is one row: `message`, a pickle; `buffers`, the arrays that it refers to, one after another; `bounds`, where each of them lies.
So tensors are copied once, into the block, and read where Ray has them, in its object store.
"""

import pickle
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.cluster.shutdown import OUT_OF_MEMORY_HINT
from ray_app.errors import ClusterError, TouchstoneError, describe_error, is_want_of_memory
from ray_app.runs import arrow

_ALIGNMENT = 64  # of a buffer in its block, as NumPy and torch like it


@dataclass(frozen=True)
class Ended:
    """A message that no further stage works on: it passes through them to the end of the stream."""


@dataclass(frozen=True)
class Failed(Ended):
    """What a stage met, whole; Ray keeps only the text of an exception."""

    error: TouchstoneError


class Stage:
    """Base of the stages. What one meets travels on as `Failed`, and is raised where the stream is read."""

    def __init__(self, *given: Any) -> None:
        arrow.leave_pandas_out()
        self._failure: Failed | None = None
        try:
            self.start(*given)
        except Exception as error:
            self._failure = Failed(translated(error, self._name()))

    def __call__(self, table: pa.Table) -> pa.Table:
        """One Ray block in, one out."""
        message = unpacked(table)
        return table if isinstance(message, Ended) else packed(self.take(message))

    def take(self, message: Any) -> Any:
        """What `work` gives, or what it met."""
        try:
            return self._failure or self.work(message)
        except Exception as error:
            return Failed(translated(error, self._name()))

    def _name(self) -> str:
        return next(kind.__name__ for kind in type(self).__mro__ if not kind.__name__.startswith("_"))  # Ray makes subclasses

    def start(self, *given: Any) -> None:
        """Load what the stage needs, once per process."""

    def work(self, message: Any) -> Any:
        """A message → the next one."""
        raise NotImplementedError


def packed(message: Any) -> pa.Table:
    """A message as one row."""
    found: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=found.append)
    raw = [buffer.raw() for buffer in found]
    ends = np.cumsum([0, *(-(-len(one) // _ALIGNMENT) * _ALIGNMENT for one in raw)])
    data = np.empty(ends[-1], np.uint8)
    for start, one in zip(ends, raw, strict=False):
        data[start : start + len(one)] = np.frombuffer(one, np.uint8)
    bounds = np.ravel([(start, start + len(one)) for start, one in zip(ends, raw, strict=False)]).astype(np.int64)
    return pa.table({
        "message": pa.array([head], pa.large_binary()),
        "bounds": pa.array([bounds], pa.list_(pa.int64())),
        "buffers": pa.Array.from_buffers(
            pa.large_binary(), 1, [None, pa.py_buffer(np.array([0, len(data)], np.int64)), pa.py_buffer(data)]
        ),
    })  # fmt: skip


def unpacked(table: pa.Table) -> Any:
    """The message of a row. Its arrays lie where the row does, and may not be written to."""
    data = table["buffers"][0].as_buffer()
    bounds = table["bounds"][0].values.to_numpy().reshape(-1, 2).tolist()
    return pickle.loads(table["message"][0].as_buffer(), buffers=[data[start:end] for start, end in bounds])  # noqa: S301  (made by a stage)


def translated(error: Exception, stage: str) -> TouchstoneError:
    """What a stage met, as an error with a hint."""
    if isinstance(error, TouchstoneError):
        return error
    if is_want_of_memory(error):
        return ClusterError(f"{stage} ran out of memory: {describe_error(error)}", hint=OUT_OF_MEMORY_HINT)
    return TouchstoneError(
        f"{stage} failed:\n{traceback.format_exc()}", hint="this looks like a bug in Touchstone; what is committed is kept"
    )
