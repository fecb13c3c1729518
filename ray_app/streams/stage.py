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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.archives import BlockRef
from ray_app.child_process import is_running, own_process
from ray_app.errors import ClusterError, TouchstoneError, describe_error, is_want_of_memory

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


class Attempts:
    """The attempts of one stage on this machine, noted in a folder of its own disk; made by the
    process that makes them.

    Ray restarts a worker and repeats its block without end. An attempt leaves a file beside the
    decoder's crash markers while it lasts; the files of processes that are gone are the deaths.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self._folder, self._stage = folder / "attempts", stage
        pid, started = own_process()
        self._own_note = f"{pid}-{started}"

    @contextmanager
    def of(self, ref: BlockRef, first_uri: str) -> Iterator[None]:
        """Inside, a block is being tried, whose first member lies at `first_uri`. Raises
        ClusterError, before anything is tried, when it has killed `MOST_DEATHS` processes, and when
        memory is not enough.
        """
        what = f"block {ref.block} of manifest {ref.manifest} ({ref.members} files from {first_uri} on)"
        place = self._folder / f"{self._stage}-{ref.manifest}-{ref.block}"
        place.mkdir(parents=True, exist_ok=True)
        if (deaths := sum(map(_is_of_dead_process, place.iterdir()))) >= MOST_DEATHS:
            raise ClusterError(
                f"{what}: {deaths} workers died in the middle of it, most likely because memory ran out",
                hint=OUT_OF_MEMORY_HINT,
            )
        note = place / self._own_note
        note.touch()
        try:
            yield
        except Exception as error:
            if is_want_of_memory(error):
                raise ClusterError(
                    f"{what}: out of memory ({describe_error(error)})", hint=OUT_OF_MEMORY_HINT
                ) from error
            raise
        finally:
            note.unlink(missing_ok=True)
            with suppress(OSError):  # it stays while it holds notes of the dead
                place.rmdir()


def _is_of_dead_process(note: Path) -> bool:
    pid, _, started = note.name.partition("-")
    return not is_running(int(pid), started)
