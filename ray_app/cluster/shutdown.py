"""Graceful shutdown of a session: intake ends, work under way may commit, then the session is over.

`Stopper` gathers reasons (signals, hours, cost, nodes that are taken away), `StopNote` carries them to the workers, and `Watch` runs it
beside the main thread and notices a standstill. `Attempts` counts the workers that died while they worked on one block.
"""

import _thread
import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType

from ray_app.archives import BlockRef
from ray_app.errors import ClusterError, TouchstoneError, describe_error, is_want_of_memory
from ray_app.storage import Store, lease

SIGNAL_GRACE_S = 25.0  # clouds give 30 to 120 s between the notice and the end, Kubernetes 30 s
LIMIT_GRACE_S = 60.0
NOTE_EVERY_S = 1.0  # a worker with blocks of milliseconds reads the note no more often


class Stopper:
    """The driver's side: gathers reasons, notifies the workers, and measures the time that work under way still has.

    `say` prints one line. `grace_s` replaces the grace times of all reasons.
    """

    def __init__(
        self,
        store: Store,
        session: int,
        *,
        say: Callable[[str], None],
        grace_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reason: str | None = None
        self.at_once = False
        self._store, self._path, self._say, self._grace_s, self._clock = store, note_path(session), say, grace_s, clock
        self._until = float("inf")
        self._nodes: frozenset[str] = frozenset()
        self._announced: tuple[str | None, frozenset[str]] = (None, frozenset())
        self._signals = 0

    def ask(self, reason: str, grace_s: float) -> None:
        """Begin no further block; give those under way so many seconds. The first reason is kept, and the shortest time."""
        self._until = min(self._until, self._clock() + (grace_s if self._grace_s is None else self._grace_s))
        self.reason = self.reason or reason

    def avoid(self, nodes: Iterable[str]) -> None:
        """Begin no further block on these nodes."""
        self._nodes |= frozenset(nodes)

    @property
    def overdue(self) -> bool:
        """Whether what is still under way has had its time."""
        return self._clock() >= self._until

    def tell(self) -> None:
        """Say and write what is new, if anything; called every second, never from a signal handler. Raises StorageError."""
        new = (self.reason, self._nodes)
        if new == self._announced:
            return
        if self.reason != self._announced[0]:
            left = max(0.0, self._until - self._clock())
            self._say(f"stopping: {self.reason}; what is under way has {left:.0f} s to be committed, a second signal stops at once")
        if self._nodes != self._announced[1]:
            self._say(f"{len(self._nodes)} node{'s' * (len(self._nodes) > 1)} will be taken away: no new work there")
        self._announced = new
        note = {"everywhere": self.reason is not None, "nodes": sorted(self._nodes)}
        self._store.write(self._path, json.dumps(note).encode())

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the first SIGTERM or SIGINT requests a stop and the next raises KeyboardInterrupt; the note is removed at the end."""
        kept = {}
        if threading.current_thread() is threading.main_thread():
            kept = {signum: signal.signal(signum, self._on_signal) for signum in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for signum, handler in kept.items():
                signal.signal(signum, handler)
            if self._announced != (None, frozenset()):
                with contextlib.suppress(TouchstoneError):  # a note of a session that is over is read by nobody
                    self._store.delete(self._path)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self.at_once or self._signals > 1:
            raise KeyboardInterrupt(self.reason or signal.Signals(signum).name)
        self.ask(signal.Signals(signum).name, SIGNAL_GRACE_S)


class StopNote:
    """What a worker reads in the run before each block; a block that it is not to begin is handed back, unworked."""

    def __init__(self, store: Store, session: int, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._path, self._node, self._clock = store, note_path(session), node, clock
        self._read_at: float | None = None
        self._closed = False

    def closes_intake(self) -> bool:
        """Whether this worker is to begin no further block. Raises StorageError."""
        now = self._clock()
        if self._read_at is None or now - self._read_at >= NOTE_EVERY_S:
            try:
                note = json.loads(self._store.read(self._path))
            except FileNotFoundError:
                note = {"everywhere": False, "nodes": []}
            self._read_at, self._closed = now, note["everywhere"] or self._node in note["nodes"]
        return self._closed


class Watch:
    """`with Watch(…) as watch:` in the main thread, which alone can be interrupted.

    Calls `tick` each second; what it raises, the stopper's time being over, or no block ending in `stall_timeout_s` interrupts the
    block, from which that very exception is then raised (KeyboardInterrupt for the stopper).
    """

    def __init__(self, stall_timeout_s: float, stopper: Stopper, tick: Callable[[], None]) -> None:
        self._stall_timeout_s, self._stopper, self._tick = stall_timeout_s, stopper, tick
        self._progressed_at = time.monotonic()
        self._over = threading.Event()
        self._reason: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def progressed(self) -> None:
        """A block has ended."""
        self._progressed_at = time.monotonic()

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if self._reason is not None and isinstance(error, KeyboardInterrupt):
            raise self._reason from None

    def _run(self) -> None:
        while not self._over.wait(1.0):
            try:
                self._tick()
                self._stopper.tell()
                self._check()
            except BaseException as reason:  # whatever it is, the main thread is to raise it
                self._reason = reason
                self._stopper.at_once = True
                _thread.interrupt_main()
                return

    def _check(self) -> None:
        if self._stopper.overdue:
            raise KeyboardInterrupt(self._stopper.reason)
        if time.monotonic() - self._progressed_at > self._stall_timeout_s:
            raise ClusterError(
                f"no block ended in {self._stall_timeout_s:.0f} s; stopped, what is committed is kept",
                hint="are there nodes for the plan shown above? --set cluster.stall_timeout_s=… waits longer",
            )


def note_path(session: int) -> str:
    """Where the note of a session lies in its run."""
    return f"stop.{session:05d}.json"


MOST_DEATHS = 3
OUT_OF_MEMORY_HINT = (
    "fewer processes per machine need less: --set cluster.workers=… resumes; "
    "so do smaller batches, --set batch_slots=…, but they need a new --out, since they belong to the run's identity"
)


class Attempts:
    """The attempts of one stage on this machine, noted in a folder of its own disk; made by the process that makes them.

    Ray restarts a worker and repeats its block without end. An attempt leaves a file beside the decoder's crash markers while it lasts;
    the files of processes that are gone are the deaths.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self._folder, self._stage = folder / "attempts", stage
        pid, started = lease.own_process()
        self._own_note = f"{pid}-{started}"

    @contextmanager
    def of(self, ref: BlockRef, first_uri: str) -> Iterator[None]:
        """Inside, a block (whose first member lies at `first_uri`) is being tried. Raises ClusterError, before anything is tried, when it
        has killed `MOST_DEATHS` processes, and when memory is not enough.
        """
        what = f"block {ref.block} of manifest {ref.manifest} ({ref.members} files from {first_uri} on)"
        place = self._folder / f"{self._stage}-{ref.manifest}-{ref.block}"
        place.mkdir(parents=True, exist_ok=True)
        if (deaths := sum(map(_is_of_dead_process, place.iterdir()))) >= MOST_DEATHS:
            raise ClusterError(
                f"{what}: {deaths} workers died in the middle of it, most likely for want of memory", hint=OUT_OF_MEMORY_HINT
            )
        note = place / self._own_note
        note.touch()
        try:
            yield
        except Exception as error:
            if is_want_of_memory(error):
                raise ClusterError(f"{what}: out of memory ({describe_error(error)})", hint=OUT_OF_MEMORY_HINT) from error
            raise
        finally:
            note.unlink(missing_ok=True)
            with suppress(OSError):  # it stays while it holds notes of the dead
                place.rmdir()


def _is_of_dead_process(note: Path) -> bool:
    pid, _, started = note.name.partition("-")
    return not lease.is_running(int(pid), started)
