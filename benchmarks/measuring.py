"""One contender's process, measured from outside: when it began and ended, what memory its process
tree held. Linux only.

Knows processes and clocks. Knows nothing about images, detectors or what a contender does.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.processor import ProcessorTimes, Sample

MARK = "TOUCHSTONE_BENCHMARK"
SAMPLE_EVERY_S = 0.5
# of a core: a contender of twenty processes takes 70 ms to sample, and must not be slowed for being
# sampled
SAMPLE_SHARE = 0.02
GRACE_S = 15.0  # Ray's daemons go by themselves some seconds after their driver
# share of the images between which the rate is steady: the start and the last, uneven batches are
# left out
WINDOW = (0.15, 0.9)


@dataclass(frozen=True)
class Ran:
    """A finished process: epoch seconds; of its process tree the largest sum of proportional set
    sizes, and processor time by kind.
    """

    stdout: str
    started_at: float
    ended_at: float
    peak_memory_bytes: int
    processor: Sequence[Sample] = field(default=(), repr=False)


class ContenderError(Exception):
    """A contender ended with an error or did not end; carries the end of what it said."""


def steady_rate(
    finished: Sequence[tuple[float, int]], total: int, window: tuple[float, float] = WINDOW
) -> float:
    """Images per second: least-squares slope of (seconds, images finished by then) where the count
    lies inside the window.

    Raises ContenderError where fewer than three points lie inside: then there is no steady state to
    speak of.
    """
    low, high = window
    inside = [(t, count) for t, count in finished if low * total <= count <= high * total]
    if len(inside) < 3:
        raise ContenderError(
            f"{len(inside)} of {len(finished)} points between {low:.0%} and {high:.0%} of {total} images; at least 3 are needed"
        )
    seconds, counts = np.array(inside, dtype=float).T
    return float(np.polyfit(seconds - seconds[0], counts, 1)[0])


def cumulative(batches: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """(seconds, images in a batch that ended then), in any order → (seconds, images finished by
    then), in time order.
    """
    ordered = sorted(batches)
    return [
        (t, int(count))
        for (t, _), count in zip(ordered, np.cumsum([size for _, size in ordered]), strict=True)
    ]


def run_measured(
    command: Sequence[str], environment: Mapping[str, str], *, timeout_s: float, log: Path
) -> Ran:
    """Run a command to its end and see that nothing of it stays behind; stderr goes to `log`.
    Raises ContenderError.
    """
    mark = uuid.uuid4().hex
    started_at = time.time()
    # a file, not a pipe: a daemon that outlives its parent would keep a pipe open
    printed = log.with_suffix(".out")
    with log.open("wb") as errors, printed.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**environment, MARK: mark},
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
    tree = ProcessTree(process.pid, mark)
    sampler = Sampler(tree)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise ContenderError(
            f"{' '.join(command)}: not finished after {timeout_s:.0f} s\n{_tail(log)}"
        ) from None
    finally:
        ended_at = time.time()
        sampler.stop()
        tree.end(GRACE_S if process.returncode == 0 else 0.0)
        process.wait()
    if process.returncode:
        raise ContenderError(f"{' '.join(command)}: exit code {process.returncode}\n{_tail(log)}")
    return Ran(
        printed.read_text(), started_at, ended_at, sampler.peak_bytes, sampler.processor.samples
    )


class ProcessTree:
    """The processes that descend from one command, found by parent or by an environment mark, so
    that orphans stay known.
    """

    def __init__(self, root: int, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._members = {root: _started(root)}
        self._others: set[int] = set()

    def living(self) -> list[int]:
        """Process ids of the tree that run now; a number that another process took over meanwhile
        is not one of them.
        """
        parents = {pid: stat[1] for pid in _process_ids() if (stat := _stat(pid)) is not None}
        self._others &= parents.keys()
        for pid in sorted(parents.keys() - self._members.keys() - self._others):
            if parents[pid] in self._members or self._is_marked(pid):
                self._members[pid] = _started(pid)
            else:
                self._others.add(pid)
        return [
            pid
            for pid, started in self._members.items()
            if pid in parents and _started(pid) == started
        ]

    def memory_bytes(self) -> int:
        """Proportional set sizes, summed: a page that several processes share is counted once."""
        return sum(_pss_bytes(pid) for pid in self.living())

    def end(self, grace_s: float) -> None:
        """Wait until the last process has gone; after `grace_s` kill those that are left, by their
        ids.
        """
        deadline = time.monotonic() + grace_s
        tick = threading.Event()
        while (left := self.living()) and time.monotonic() < deadline + GRACE_S:
            if time.monotonic() >= deadline:
                for pid in left:
                    _kill(pid)
            tick.wait(0.1)

    def _is_marked(self, pid: int) -> bool:
        return self._mark in _read(f"/proc/{pid}/environ")


class Sampler:
    """Notes the peak memory and the processor time of a tree in a thread, until stopped."""

    def __init__(self, tree: ProcessTree, every_s: float = SAMPLE_EVERY_S) -> None:
        self.peak_bytes = 0
        self._every_s = every_s
        self.processor = ProcessorTimes()
        self._tree = tree
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _sample(self) -> None:
        pause = self._every_s
        while not self._stopped.wait(pause):
            begun = time.thread_time()
            living = self._tree.living()
            self.processor.note(time.time(), living)
            self.peak_bytes = max(self.peak_bytes, sum(map(_pss_bytes, living)))
            pause = max(self._every_s, (time.thread_time() - begun) / SAMPLE_SHARE)


def _process_ids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, parent and start time; None for a process that is gone or only waits to be collected."""
    text = _read(f"/proc/{pid}/stat")
    fields = text.rpartition(b")")[2].split()  # the name before it may hold anything
    if not fields or fields[0] == b"Z":
        return None
    return fields[0].decode(), int(fields[1]), int(fields[19])


def _started(pid: int) -> int:
    stat = _stat(pid)
    return stat[2] if stat else -1


def _pss_bytes(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # it ended while we looked
        return b""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
