"""A process of ours that answers one request at a time through its pipes (`ChildProcess`), and the
wall limit of what it does (`ChildDeadline`). One thread watches all limits. `is_running`: whether a
process is still the one that it was. `environment_without_secrets`: what a child inherits.
"""

import fcntl
import heapq
import io
import itertools
import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

# The secrets of an endpoint and its clients. No child needs them, and what reads hostile files should
# not hold them.
SECRETS = ("TOUCHSTONE_TOKENS", "TOUCHSTONE_TOKEN")
# between the end of a child's answers and the end of the child; one that lingers is killed
LAST_WORDS_S = 1.0
# a file, or the pixels of most detectors, in one piece: neither side waits for the other's every 64
# KiB
_PIPE_BYTES = 2**20


class ChildProcess:
    """A child that is started when it is first needed, and again after it died. One thread at a
    time.

    Use as a context manager, or `close()` it.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The running child's process id; None before the first use and after its end."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def close(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in filter(None, (child.stdin, child.stdout)):
            with suppress(BrokenPipeError):  # unsent bytes for a child that is gone
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _spawn(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        ready: bytes,
        limit_s: float,
        *,
        folder: Path | None = None,
        errors: int | IO[bytes] = subprocess.DEVNULL,
    ) -> bool:
        """Start a child in the place of any other; whether it wrote `ready` within the limit.
        Raises OSError.
        """
        self.close()
        child = self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=dict(environment),
            cwd=folder,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        for pipe in (child.stdin, child.stdout):
            # Linux alone, and it may allow less: then messages go in more pieces
            with suppress(OSError, AttributeError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        with ChildDeadline(child, limit_s):
            return child.stdout.read(len(ready)) == ready

    @contextmanager
    def _exchange(self, limit_s: float) -> "Iterator[tuple[io.BufferedReader, ChildDeadline]]":
        """Yield the stream of answers and the deadline of a request and its answer.

        The block ends early, without an exception, if the child ends (BrokenPipeError, or
        struct.error of a short read), and with a ValueError, for an answer that does not match the
        request: then the child is closed, as it is if anything else interrupts the exchange.
        """
        child = self._child
        assert child is not None
        assert isinstance(child.stdout, io.BufferedReader)
        with ChildDeadline(child, limit_s) as deadline:
            try:
                yield child.stdout, deadline
            except (BrokenPipeError, struct.error):
                pass
            except ValueError:
                self.close()
            except BaseException:
                # in the middle of an exchange: the next answer would be this one's rest
                self.close()
                raise

    def _send(self, parts: Iterable[bytes | memoryview]) -> None:
        """Write a request, or more of it. Raises BrokenPipeError if the child ended."""
        assert self._child is not None
        assert self._child.stdin is not None
        for part in parts:
            self._child.stdin.write(part)
        self._child.stdin.flush()

    def _epitaph(self, child: subprocess.Popen[bytes] | None) -> str:
        """How a child ended whose answers did, in words; it is closed."""
        if child is None or child is not self._child:
            return "gave no valid answer"
        try:
            code = child.wait(LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            return "fell silent"
        finally:
            self.close()
        if code >= 0:
            return f"ended with exit code {code}"
        known = {number.value: number.name for number in signal.Signals}
        return f"died of {known.get(-code, f'signal {-code}')}"


class ChildDeadline:
    """Kills a child by its own handle unless the block ends in time; only this can end a read from
    a child that hangs.
    """

    def __init__(self, child: subprocess.Popen[bytes], limit_s: float) -> None:
        self.has_passed = False
        self.limit_s = limit_s
        self._child = child
        self._counting: object | None = None  # one for each time that it counts

    def start(self, limit_s: float) -> None:
        """Count from now on."""
        self.limit_s = limit_s
        self._counting = counting = object()
        _WATCHDOG.call_at(time.monotonic() + limit_s, lambda: self._kill(counting))

    def stop(self) -> None:
        """Count no further; whether the time is over is settled then."""
        with _WATCHDOG.settled:
            self._counting = None

    def __enter__(self) -> "ChildDeadline":
        self.start(self.limit_s)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _kill(self, counting: object) -> None:
        if self._counting is counting:
            self.has_passed = True
            self._child.kill()


class _Watchdog:
    """One thread for all deadlines: a thread for each would cost half a millisecond of every image.
    It calls while `settled` is held.
    """

    def __init__(self) -> None:
        self.settled = threading.Condition()
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        """Call at that moment of the monotonic clock."""
        with self.settled:
            heapq.heappush(self._calls, (when, next(self._numbers), call))
            # at first, and in a process that was forked
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="child-watchdog", daemon=True
                )
                self._thread.start()
            elif self._calls[0][0] == when:
                self.settled.notify()

    def _run(self) -> None:
        with self.settled:
            while True:
                while self._calls and self._calls[0][0] <= time.monotonic():
                    heapq.heappop(self._calls)[2]()
                self.settled.wait(self._calls[0][0] - time.monotonic() if self._calls else None)


_WATCHDOG = _Watchdog()


def own_process() -> tuple[int, str]:
    """This process: its number and when it started."""
    return os.getpid(), start_of(os.getpid()) or "?"


def is_running(pid: int, started: str) -> bool:
    """Whether that very process still runs, not another one with its number; a zombie does not run."""
    return start_of(pid) == started


def environment_without_secrets() -> dict[str, str]:
    """Return the environment of this process without `SECRETS`."""
    return {name: value for name, value in os.environ.items() if name not in SECRETS}


def start_of(pid: int) -> str | None:
    """When a process started, in the system's own words; None when there is no such process."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # the name before may hold spaces and parentheses
        state, *fields = stat.rpartition(")")[2].split()
        # field 22 of proc(5): clock ticks from boot to start
        return None if state in "ZX" else fields[18]
    shown = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or None
