"""Define one stage of a stream, and the format of the messages between stages.

A `Stage` is a class that runs in a separate process, takes a message, and returns the next message.
`serialize` turns a message into a Ray block.

A Ray block is a table with one row and three columns. The column `message` is a pickle. The column
`buffers` has all arrays to which the pickle refers, one after another. The column `bounds` has the
positions of these arrays. Tensors are therefore copied only once, into the block, and are read from
Ray's object store in place.
"""

import pickle
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.errors import ClusterError, TouchstoneError, describe_error, is_out_of_memory

# Messages of a process: one that it works on, and one that travels meanwhile.
IN_FLIGHT = 2
_ALIGNMENT = 64  # Bytes. NumPy and torch work best with buffers that are aligned like this.
WORKER_LOGS_HINT = "run the same command again to resume; worker logs are in the Ray session folder"
OUT_OF_MEMORY_HINT = (
    "run the same command again with fewer processes, --set cluster.workers=…, to resume; "
    "smaller batches (--set batch_slots=…) also need less memory, but require a new --out"
)


@dataclass(frozen=True)
class TerminalMessage:
    """Base class of a result that skips all later stages, such as `StageFailure`.

    Later stages pass it on unchanged, so the reader of the stream gets it.
    """


@dataclass(frozen=True)
class StageFailure(TerminalMessage):
    """The message that a stage failed. `messages` in `streams.pool` raises its exception.

    The message contains the exception itself, because Ray would keep only the exception's text.

    Attributes:
        error: The exception of the stage, as `to_touchstone_error` converted it.
    """

    error: TouchstoneError


class Stage:
    """Base class of a stage: one step of the work that a stream does on each item.

    Subclasses override `start`, which is called once per process, and `work`, which is called for
    each message. If one of them raises an exception, the exception travels on as a `StageFailure`,
    and is raised where the stream is read.

    Args:
        *arguments: The arguments of `start`.
    """

    def __init__(self, *arguments: Any) -> None:
        self._failure: StageFailure | None = None
        try:
            self.start(*arguments)
        except Exception as error:
            self._failure = StageFailure(to_touchstone_error(error, self._name()))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Process the message in a Ray block, and return the next message as a Ray block."""
        message = deserialize(table)
        return table if isinstance(message, TerminalMessage) else serialize(self.take(message))

    def take(self, message: Any) -> Any:
        """Process a message with `work`, and return its result. No exception is raised.

        If `start` or `work` raised an exception, the result is a `StageFailure` with this
        exception.
        """
        try:
            return self._failure or self.work(message)
        except Exception as error:
            return StageFailure(to_touchstone_error(error, self._name()))

    def _name(self) -> str:
        # Ray makes subclasses, whose names begin with an underscore.
        return next(
            kind.__name__ for kind in type(self).__mro__ if not kind.__name__.startswith("_")
        )

    def start(self, *arguments: Any) -> None:
        """Load the data that the stage needs, such as weights, once per process.

        Subclasses override this method. The default loads nothing.
        """

    def work(self, message: Any) -> Any:
        """Process a message, and return the message for the next stage. Subclasses override it."""
        raise NotImplementedError


def serialize(message: Any) -> pa.Table:
    """Return a message, which may be any object that pickle supports, as a Ray block.

    A Ray block is a table with one row. `deserialize` is the inverse.
    """
    pickled: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=pickled.append)
    raw = [buffer.raw() for buffer in pickled]
    starts = np.cumsum([0, *(-(-len(view) // _ALIGNMENT) * _ALIGNMENT for view in raw)])
    data = np.empty(starts[-1], np.uint8)
    for start, view in zip(starts, raw, strict=False):
        data[start : start + len(view)] = np.frombuffer(view, np.uint8)
    bounds = np.ravel(
        [(start, start + len(view)) for start, view in zip(starts, raw, strict=False)]
    ).astype(np.int64)
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    return pa.table({
        "message": pa.array([head], pa.large_binary()),
        "bounds": pa.array([bounds], pa.list_(pa.int64())),
        "buffers": pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)]),
    })  # fmt: skip


def deserialize(table: pa.Table) -> Any:
    """Return the message in a Ray block, which `serialize` made.

    Args:
        table: The Ray block.

    Returns:
        The message. Its arrays are read-only, and share the memory of the block.

    Raises:
        TouchstoneError: The block does not have exactly one row.
    """
    if table.num_rows != 1:
        raise TouchstoneError(
            f"a batch of the pipeline has {table.num_rows} rows, expected 1",
            hint="report this as a bug in Touchstone",
        )
    # A scalar of Arrow would be a copy of the bytes.
    [array] = filter(len, table["buffers"].chunks)
    _, offsets, content = array.buffers()
    start, end = np.frombuffer(offsets, np.int64)[array.offset : array.offset + 2].tolist()
    data = content[start:end]
    bounds = table["bounds"][0].values.to_numpy().reshape(-1, 2).tolist()
    buffers = [data[start:end] for start, end in bounds]
    return pickle.loads(table["message"][0].as_buffer(), buffers=buffers)  # noqa: S301 - from a stage


def to_touchstone_error(error: Exception, stage: str) -> TouchstoneError:
    """Convert any exception of a stage to a TouchstoneError, which has a hint for the user.

    A TouchstoneError is returned unchanged. The message of any other error begins with `stage`, the
    name of the stage.
    """
    if isinstance(error, TouchstoneError):
        return error
    if is_out_of_memory(error):
        return ClusterError(
            f"{stage} ran out of memory: {describe_error(error)}", hint=OUT_OF_MEMORY_HINT
        )
    return TouchstoneError(
        f"{stage} failed:\n{traceback.format_exc()}",
        hint="report this as a bug in Touchstone; committed results are kept",
    )
