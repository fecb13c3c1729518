"""Define one stage of a stream, and the format of the messages between stages.

A `Stage` is a class that runs in a separate process, takes a message, and returns the next message.
`serialize` turns a message into a Ray block. `Attempts` counts the processes that died while they
worked on one block of images.

A Ray block has one row. `message` is a pickle, `buffers` are the arrays to which it refers, one
after another, and `bounds` are their positions. So tensors are copied only once, into the block,
and are read from Ray's object store in place.
"""

import pickle
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.archives import BlockRef
from ray_app.errors import ClusterError, TouchstoneError, describe_error, is_out_of_memory
from ray_app.storage import Store

# Messages of a process: one that it works on, and one that travels meanwhile.
IN_FLIGHT = 2
_ALIGNMENT = 64  # Bytes. NumPy and torch work best with buffers that are aligned like this.
MAX_DEATHS = 3
WORKER_LOGS_HINT = "run the same command again to resume; worker logs are in the Ray session folder"
OUT_OF_MEMORY_HINT = (
    "run the same command again with fewer processes, --set cluster.workers=…, to resume; "
    "smaller batches (--set batch_slots=…) also need less memory, but require a new --out"
)


@dataclass(frozen=True)
class TerminalMessage:
    """Base class of messages that no further stage processes.

    Later stages pass such a message on unchanged, to the reader of the stream.
    """


@dataclass(frozen=True)
class StageFailure(TerminalMessage):
    """The message that a stage failed, which the reader of the stream raises as an exception.

    It carries the whole exception, because Ray would keep only the exception's text.

    Attributes:
        error: The exception. Exceptions of other types are converted by `to_touchstone_error`.
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
        """Return the result of `work` for a message, or its exception as a `StageFailure`."""
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
        """Load the data that the stage needs, once per process. Subclasses override this method."""

    def work(self, message: Any) -> Any:
        """Process a message, and return the message for the next stage."""
        raise NotImplementedError


def serialize(message: Any) -> pa.Table:
    """Return a message as a Ray block, a table with one row."""
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
    data = table["buffers"][0].as_buffer()
    bounds = table["bounds"][0].values.to_numpy().reshape(-1, 2).tolist()
    buffers = [data[start:end] for start, end in bounds]
    return pickle.loads(table["message"][0].as_buffer(), buffers=buffers)  # noqa: S301 - from a stage


def to_touchstone_error(error: Exception, stage: str) -> TouchstoneError:
    """Return an exception of a stage as a TouchstoneError with a hint.

    A TouchstoneError is returned unchanged. Otherwise, the message begins with the stage's name.
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


ATTEMPTS = "attempts"


class Attempts:
    """Count how many workers died while one stage worked on a block of images.

    Ray restarts a worker that died, and repeats its block without a limit. This class ends that
    after `MAX_DEATHS` deaths. During each attempt at a block, a file exists in the run directory.
    So the files that a new attempt finds are those of workers that died.

    Args:
        store: The run directory.
        lease: The number of this command's claim on the run directory (`Lease.number`). So the
            deaths of earlier commands do not count.
        stage: The name of the stage.
    """

    def __init__(self, store: Store, lease: int, stage: str) -> None:
        self._store, self._folder = store, f"{ATTEMPTS}/{lease:05d}/{stage}"

    @contextmanager
    def count(self, ref: BlockRef, first_uri: str) -> Iterator[None]:
        """Count an attempt at a block of images while the `with` block runs.

        Args:
            ref: The block of images.
            first_uri: The URI of its first member, for error messages.

        Raises:
            ClusterError: `MAX_DEATHS` workers died while they worked on the block, or memory ran
                out.
        """
        block = f"block {ref.block} of manifest {ref.manifest} ({ref.members} files from {first_uri} on)"
        folder = f"{self._folder}/{ref.manifest:05d}-{ref.block:08d}"
        if (deaths := len(self._store.names(folder))) >= MAX_DEATHS:
            raise ClusterError(
                f"{block}: {deaths} workers died while they processed this block, most likely because memory ran out",
                hint=OUT_OF_MEMORY_HINT,
            )
        path = f"{folder}/{deaths + 1}"
        self._store.write(path, b"")
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                raise ClusterError(
                    f"{block}: out of memory ({describe_error(error)})", hint=OUT_OF_MEMORY_HINT
                ) from error
            raise
        finally:
            self._store.delete(path)
