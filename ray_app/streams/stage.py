"""One stage of a stream: a class that takes a message and gives one, in a process of its own
(`Stage`); and how messages travel (`packed`). `Attempts` counts the processes that died while they
worked on one block of images.

A Ray block is one row: `message`, a pickle; `buffers`, the arrays that it refers to, one after
another; `bounds`, where each of them lies. So tensors are copied once, into the block, and read
where Ray has them, in its object store.
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
from ray_app.errors import ClusterError, TouchstoneError, describe_error, is_want_of_memory
from ray_app.storage import Store

IN_FLIGHT = 2  # messages that a process has: one that it works on, and one that travels meanwhile
_ALIGNMENT = 64  # of a buffer in its block, as NumPy and torch like it
MOST_DEATHS = 3
WORKER_LOGS_HINT = "the same command resumes; worker logs are in the Ray session folder"
OUT_OF_MEMORY_HINT = (
    "fewer processes per machine need less: --set cluster.workers=… resumes; "
    "so do smaller batches, --set batch_slots=…, but they need a new --out, since they belong to the run's identity"
)


@dataclass(frozen=True)
class Ended:
    """A message that no further stage works on: it passes through them to the end of the stream."""


@dataclass(frozen=True)
class StageFailure(Ended):
    """What a stage met, whole; Ray keeps only the text of an exception."""

    error: TouchstoneError


class Stage:
    """Base of the stages. What one meets travels on as `StageFailure`, and is raised where the
    stream is read.
    """

    def __init__(self, *given: Any) -> None:
        self._failure: StageFailure | None = None
        try:
            self.start(*given)
        except Exception as error:
            self._failure = StageFailure(translated(error, self._name()))

    def __call__(self, table: pa.Table) -> pa.Table:
        """One Ray block in, one out."""
        message = unpacked(table)
        return table if isinstance(message, Ended) else packed(self.take(message))

    def take(self, message: Any) -> Any:
        """What `work` gives, or what it met."""
        try:
            return self._failure or self.work(message)
        except Exception as error:
            return StageFailure(translated(error, self._name()))

    def _name(self) -> str:
        # Ray makes subclasses
        return next(
            kind.__name__ for kind in type(self).__mro__ if not kind.__name__.startswith("_")
        )

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
    bounds = np.ravel(
        [(start, start + len(one)) for start, one in zip(ends, raw, strict=False)]
    ).astype(np.int64)
    places = pa.py_buffer(np.array([0, len(data)], np.int64))
    return pa.table({
        "message": pa.array([head], pa.large_binary()),
        "bounds": pa.array([bounds], pa.list_(pa.int64())),
        "buffers": pa.Array.from_buffers(pa.large_binary(), 1, [None, places, pa.py_buffer(data)]),
    })  # fmt: skip


def unpacked(table: pa.Table) -> Any:
    """Return the message of a row. Its arrays are those of the row, and read-only. Raises
    TouchstoneError for several rows.
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


def translated(error: Exception, stage: str) -> TouchstoneError:
    """What a stage met, as an error with a hint."""
    if isinstance(error, TouchstoneError):
        return error
    if is_want_of_memory(error):
        return ClusterError(
            f"{stage} ran out of memory: {describe_error(error)}", hint=OUT_OF_MEMORY_HINT
        )
    return TouchstoneError(
        f"{stage} failed:\n{traceback.format_exc()}",
        hint="this looks like a bug in Touchstone; what is committed is kept",
    )


ATTEMPTS = "attempts"


class Attempts:
    """Count the attempts of one stage at each block in the run directory.

    Ray restarts a worker that died and repeats its block without end. An attempt leaves a file
    while it lasts, so the files that an attempt finds are those of workers that died.

    Args:
        store: The run directory.
        lease: The number of the command's lease; the deaths of earlier commands do not count.
        stage: The name of the stage.
    """

    def __init__(self, store: Store, lease: int, stage: str) -> None:
        self._store, self._folder = store, f"{ATTEMPTS}/{lease:05d}/{stage}"

    @contextmanager
    def of(self, ref: BlockRef, first_uri: str) -> Iterator[None]:
        """Count an attempt at a block while the block inside runs.

        Args:
            ref: The block.
            first_uri: Where its first member is, for errors.

        Raises:
            ClusterError: The block killed `MOST_DEATHS` workers, or memory is not enough.
        """
        what = f"block {ref.block} of manifest {ref.manifest} ({ref.members} files from {first_uri} on)"
        folder = f"{self._folder}/{ref.manifest:05d}-{ref.block:08d}"
        if (deaths := len(self._store.names(folder))) >= MOST_DEATHS:
            raise ClusterError(
                f"{what}: {deaths} workers died in the middle of it, most likely because memory ran out",
                hint=OUT_OF_MEMORY_HINT,
            )
        path = f"{folder}/{deaths + 1}"
        self._store.write(path, b"")
        try:
            yield
        except Exception as error:
            if is_want_of_memory(error):
                raise ClusterError(
                    f"{what}: out of memory ({describe_error(error)})", hint=OUT_OF_MEMORY_HINT
                ) from error
            raise
        finally:
            self._store.delete(path)
