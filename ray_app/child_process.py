"""Run a child process that answers one request at a time, with a time limit.

Such a child decodes untrusted image files, which may crash or hang the decoder. A detector that is
a Python callable of the user also runs in one.
`ChildProcess` communicates with the child through pipes. `ChildDeadline` kills the child if it
exceeds its time limit; one thread watches all deadlines. `environment_without_secrets` returns the
environment variables for a child. `is_running` returns whether a recorded process still runs.
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

# The secrets of an endpoint and of its clients. No child needs them, and a process that reads
# untrusted files should not have them.
SECRETS = ("TOUCHSTONE_TOKENS", "TOUCHSTONE_TOKEN")
# How long a child may take to exit after its last answer. A child that lingers is killed.
EXIT_WAIT_S = 1.0
# A file, or the pixels for most detectors, fits in the pipe as a whole. Otherwise the two sides
# would wait for each other every 64 KiB.
_PIPE_BYTES = 2**20


class ChildProcess:
    """Base of the classes that run a child process and exchange messages with it through pipes.

    A subclass starts the child on first use, and again after it died. Only one thread at a time may
    use an object. Use the object as a context manager, or call `close()` to end the child.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the running child, or None if no child is running."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def close(self) -> None:
        """Kill the child if there is one."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in filter(None, (child.stdin, child.stdout)):
            with suppress(BrokenPipeError):  # There may be unsent bytes for a child that exited.
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
        """Start a child after closing any earlier one. Raises OSError.

        Args:
            command: The command line.
            environment: All environment variables of the child.
            ready: The bytes that the child writes when it is ready.
            limit_s: The maximum seconds until then. After that the child is killed.
            folder: The working folder. None means that of this process.
            errors: The destination of standard error.

        Returns:
            Whether the child wrote `ready` within the limit.
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
            # Only Linux can do this, and it may allow less. Then messages go in more chunks.
            with suppress(OSError, AttributeError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        with ChildDeadline(child, limit_s):
            return child.stdout.read(len(ready)) == ready

    @contextmanager
    def _exchange(self, limit_s: float) -> "Iterator[tuple[io.BufferedReader, ChildDeadline]]":
        """Yield the stream of answers, and the deadline of a request and its answer.

        Three exceptions end the block early, and are not passed on. BrokenPipeError, and
        struct.error of a short read, mean that the child exited. ValueError means that an answer does
        not match the request: the child is closed. The child is also closed after any other
        exception, which is passed on.
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
                # The exchange is incomplete: the next answer would begin with the rest of this one.
                self.close()
                raise

    def _send(self, parts: Iterable[bytes | memoryview]) -> None:
        """Write a request, or more of it. Raises BrokenPipeError if the child exited."""
        assert self._child is not None
        assert self._child.stdin is not None
        for part in parts:
            self._child.stdin.write(part)
        self._child.stdin.flush()

    def _describe_exit(self, child: subprocess.Popen[bytes] | None) -> str:
        """Close a child that stopped answering, and return a phrase that says how it ended."""
        if child is None or child is not self._child:
            return "gave no valid answer"
        try:
            code = child.wait(EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            return "stopped responding"
        finally:
            self.close()
        if code >= 0:
            return f"ended with exit code {code}"
        names = {number.value: number.name for number in signal.Signals}
        return f"died of {names.get(-code, f'signal {-code}')}"


class ChildDeadline:
    """Kill a child process unless the `with` block ends within a time limit.

    Only a kill can end a read from a child that hangs. The `Popen` object of the child is killed, so
    that no other process with the same id is hit. The time starts when the block is entered. Within
    the block, `start` starts it again.

    Args:
        child: The child process.
        limit_s: The time limit in seconds.

    Attributes:
        has_passed: Whether the time limit has passed, so that the child was killed.
        limit_s: The time limit in seconds. `start` replaces it.
    """

    def __init__(self, child: subprocess.Popen[bytes], limit_s: float) -> None:
        self.has_passed = False
        self.limit_s = limit_s
        self._child = child
        # A new object for each start, so that a call of an earlier start does not kill the child.
        self._counting: object | None = None

    def start(self, limit_s: float) -> None:
        """Start a time limit of this many seconds now, in place of any earlier one."""
        self.limit_s = limit_s
        self._counting = counting = object()
        _WATCHDOG.call_at(time.monotonic() + limit_s, lambda: self._kill(counting))

    def stop(self) -> None:
        """Stop the time limit. Afterwards `has_passed` no longer changes."""
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
    """One thread for all deadlines, which makes its calls while it holds `settled`.

    A thread for each deadline would cost half a millisecond per image.
    """

    def __init__(self) -> None:
        self.settled = threading.Condition()
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        """Schedule a call for a moment of the monotonic clock."""
        with self.settled:
            heapq.heappush(self._calls, (when, next(self._order), call))
            # There is no thread at first, nor in a process that was forked.
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


def identify_process() -> tuple[int, str]:
    """Return the id and the start time of this process, which together identify it.

    If this process stores them in a file, another process can check later with `is_running` whether
    this process still runs.
    """
    return os.getpid(), read_start_time(os.getpid()) or "?"


def is_running(pid: int, started: str) -> bool:
    """Return whether the process with this id and this start time still runs.

    The start time distinguishes the process from a later process with the same id. A zombie does
    not count as running.

    Args:
        pid: The process id.
        started: The start time, as `identify_process` or `read_start_time` returned it.

    Returns:
        Whether that very process runs.
    """
    return read_start_time(pid) == started


def environment_without_secrets() -> dict[str, str]:
    """Return the environment variables of this process without secrets, for a child process.

    The secrets are the access tokens of `touchstone serve`, the scoring server, and of its clients.
    `SECRETS` has the default names of their variables.
    """
    return {name: value for name, value in os.environ.items() if name not in SECRETS}


def read_start_time(pid: int) -> str | None:
    """Return the start time of a process in the system's own format.

    Args:
        pid: The process id.

    Returns:
        A text that can only be compared, such as clock ticks since boot. None if no process with
        this id is running.
    """
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name in front may contain spaces and parentheses.
        state, *fields = stat.rpartition(")")[2].split()
        # Field 22 of proc(5) is the number of clock ticks from boot to start.
        return None if state in "ZX" else fields[18]
    result = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None
