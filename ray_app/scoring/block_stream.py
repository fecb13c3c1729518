"""`ArrivingBlocks`: the blocks of a run whose first listing goes on, for an engine that scores the first ones meanwhile."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from ray_app.archives import BlockList, BlockRef, Each, ManifestInfo, read_blocks
from ray_app.cluster.progress import Progress
from ray_app.errors import TouchstoneError
from ray_app.scoring.run_metrics import RunMeter
from ray_app.storage import Store

T = TypeVar("T")
R = TypeVar("R")

_ENDING_S = 60.0  # for a request, or a join of ids, that is under way when a run ends


class _StoppedError(Exception):
    """Nobody wants the rest of the listing."""


class ListingTasks:
    """The tasks of a listing: on the whole cluster as long as nothing else is done there, then beside what is (`aside`)."""

    def __init__(self, alone: Each, beside: Each) -> None:
        self._each, self._beside = alone, beside
        self.stopped = threading.Event()

    def aside(self) -> None:
        """From now on beside other work."""
        self._each = self._beside

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """The results in order, as long as they are wanted."""
        for result in self._each(function, items):
            if self.stopped.is_set():
                raise _StoppedError
            yield result


class ArrivingBlocks:
    """Iterates over `pending` blocks, and then those of each further manifest once it counts; None = there is none yet.

    As a context it lists: `portions` in a thread, which ends with the context. What ends the listing early is said at once (`progress`),
    and raised by `finish`, so that all that was listed is scored before.
    """

    def __init__(
        self,
        store: Store,
        pending: BlockList,
        portions: Iterator[ManifestInfo] | None,
        tasks: ListingTasks,
        progress: Progress,
        meter: RunMeter,
    ) -> None:
        self._store, self._pending, self._portions, self._tasks = store, pending, portions, tasks
        self._progress, self._meter = progress, meter
        self._arrived: queue.SimpleQueue[BlockList | None] = queue.SimpleQueue()  # None: that was all
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._list, name="listing", daemon=True)

    def __enter__(self) -> Self:
        if self._portions is not None:
            self._tasks.aside()
            self._grow(0, 0, goes_on=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tasks.stopped.set()
        if self._portions is not None:
            self._thread.join(_ENDING_S)

    def __iter__(self) -> Iterator[BlockRef | None]:
        yield from self._pending
        while self._portions is not None:
            try:
                blocks = self._arrived.get_nowait()
            except queue.Empty:
                yield None
                continue
            if blocks is None:
                self._grow(0, 0, goes_on=False)
                return
            self._grow(blocks.members, len(blocks), goes_on=True)
            yield from blocks

    def _grow(self, members: int, blocks: int, *, goes_on: bool) -> None:
        self._progress.grow(members, goes_on=goes_on)
        self._meter.grow(blocks, goes_on=goes_on)

    def finish(self) -> None:
        """Raises what ended the listing early."""
        if self._error is not None:
            raise self._error

    def _list(self) -> None:
        assert self._portions is not None
        try:
            for info in self._portions:
                if self._tasks.stopped.is_set():
                    return
                self._arrived.put(read_blocks(self._store, info.manifest))
        except _StoppedError:
            pass
        except BaseException as error:
            self._error = error
            if isinstance(error, TouchstoneError):
                self._progress.say(f"the listing ended early; the files listed so far are scored first: {error}")
        finally:
            self._portions.close()  # type: ignore[attr-defined]
            self._arrived.put(None)
