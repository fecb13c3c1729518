"""Decoding a suspect where it can do no harm: in a child process with a wall limit and a memory limit. No torch, no Ray in the child.

`Child` is any process that speaks the protocol of `child`; what it answers is taken for what it is: bytes of a process that decoded
a hostile file.

What a process was decoding when it died, and the end of one that hangs. Knows image ids and processes; knows nothing of images.

An in-process decode that crashes takes the process along, and no `except` runs. A note in a mapped file outlives it: the kernel keeps it.
"""

import contextlib
import io
import itertools
import math
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from PIL import Image

from ray_app.errors import InputError, Status, TouchstoneError, said
from ray_app.images.facts import FLAG_MEANING, DecodedImage, ImageFileFacts, ImageRefused, inspect_bytes
from ray_app.images.limits import ImageLimits
from ray_app.images.memory import Admit, Demand, admit_all, worst_bytes
from ray_app.images.sandbox_child import ANSWER, DEMAND, READY, REQUEST, Report

LIBRARY_BYTES = 2 * 1024**3  # address space beside that of an image: libraries, and what threads only reserve
START_LIMIT_S = 60.0  # importing takes half a second; a loaded machine or a cold disk may need long
LAST_WORDS_S = 1.0  # between the end of a child's answers and the end of the child; one that lingers is killed
MOST_REPORT_BYTES = 64 * 1024  # names, numbers and one line of words: a few hundred bytes

# What a child's Python and its libraries need of our environment, and what decides which kernels they take. Tokens and keys stay here.
_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "ATEN_CPU_CAPABILITY")
_MODEST = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}  # each would reserve address space


class Child(ABC):
    """A process that answers one request at a time within a wall limit: a crash or a hang costs one image its status, and nothing else.

    It starts at the first use and again after it died. One thread at a time. Use as a context manager, or `close()` it.
    """

    def __init__(self, limits: ImageLimits, wall_limit_s: float) -> None:
        self._limits = limits
        self._wall_limit_s = wall_limit_s
        self._child: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> list[str]:
        """What to start; `python -P`, lest a file `PIL.py` in the current folder become the decoder."""

    @property
    def pid(self) -> int | None:
        """The running child's process id; None before the first use and after its end."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def start(self) -> None:
        """Have a child that is ready, if there is none. Raises TouchstoneError if it does not start."""
        if self.pid is not None:
            return
        self.close()
        try:
            child = self._child = subprocess.Popen(
                self._command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
            )
        except OSError as error:
            raise TouchstoneError(f"the decoder process did not start: {said(error)}", hint="is this machine out of processes?") from error
        assert child.stdout is not None
        with _Deadline(child, START_LIMIT_S):
            is_ready = child.stdout.read(len(READY)) == READY
        if not is_ready:
            command = " ".join(self._command()[:4])
            raise TouchstoneError(f"the decoder process did not start: it {self._epitaph(child)}", hint=f"try {command}")

    def close(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            _close(pipe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _exchange(
        self, data: bytes, pixel_bytes: Callable[[ImageFileFacts], int], *, before: bytes = b"", admit: Admit = admit_all
    ) -> tuple[Report, bytearray]:
        """Ask about one file, `before` it what the child must know; the report and the pixels of the answer.

        `pixel_bytes` says how many bytes of pixels belong to such an image: an answer with any other number counts as none.
        `admit` is asked before a large one is decoded, and its time does not count; the wall limit grows with the pixels.
        Raises ImageRefused: what the child or `admit` refused, DECODER_CRASHED (how it died) and DECODE_TIMEOUT.
        """
        self.start()
        child = self._child
        assert child is not None
        try:
            with _Deadline(child, self._wall_limit_s) as deadline:
                answer = self._ask(child, before, data, pixel_bytes, partial(self._admitted, child, deadline, admit))
        except _NotAdmitted as not_admitted:
            raise ImageRefused.because(not_admitted.reason, inspect_bytes(data)) from None
        if deadline.has_passed:
            self.close()
            reason = f"longer than {deadline.limit_s:g} s"
            raise ImageRefused(Status.DECODE_TIMEOUT, reason, inspect_bytes(data), limit=deadline.limit_s)
        if answer is None:
            raise ImageRefused(Status.DECODER_CRASHED, f"the decoder process {self._epitaph(child)}", inspect_bytes(data))
        report, pixels = answer
        if report.refused is not None:
            raise ImageRefused(facts=report.facts, **dict(report.refused))
        return report, pixels

    def _admitted(self, child: subprocess.Popen[bytes], deadline: "_Deadline", admit: Admit, demand: Demand) -> None:
        """Let the child decode what it says is large, once `admit` lets it. Raises ValueError for more than it may be."""
        assert child.stdin is not None
        if demand.pixels > self._limits.max_pixels:
            raise ValueError("beyond the limits")
        deadline.stop()
        if deadline.has_passed:
            return
        try:
            admit(demand)
        except InputError as reason:
            raise _NotAdmitted(reason) from None
        deadline.start(self._wall_limit_s * demand.patience)
        child.stdin.write(READY)
        child.stdin.flush()

    def _ask(
        self, child: subprocess.Popen[bytes], before: bytes, data: bytes, pixel_bytes: Callable[[ImageFileFacts], int], admitted: Admit
    ) -> tuple[Report, bytearray] | None:
        """The answer; None if the child died before it was complete, or if it is no answer to this. Raises what `admitted` raises."""
        requests, answers = child.stdin, child.stdout
        assert requests is not None
        assert isinstance(answers, io.BufferedReader)
        try:
            for part in (REQUEST.pack(len(before) + len(data)), before, data):
                requests.write(part)
            requests.flush()
            report_size, pixels_size = ANSWER.unpack(answers.read(ANSWER.size))
            if report_size == 0:
                admitted(Demand(*DEMAND.unpack(answers.read(DEMAND.size))))
                report_size, pixels_size = ANSWER.unpack(answers.read(ANSWER.size))
            if report_size > MOST_REPORT_BYTES:
                raise ValueError("too many words")
            text = answers.read(report_size)
            if len(text) < report_size:
                return None
            report = self._believed(text, data)
            expected = pixel_bytes(report.facts) if report.refused is None else 0
            if pixels_size != expected:
                raise ValueError("other pixels than the report's")
            pixels = bytearray(expected)
            return (report, pixels) if answers.readinto(pixels) == expected else None
        except (BrokenPipeError, struct.error):
            return None
        except (ValueError, InputError):
            self.close()
            return None
        except BaseException:
            self.close()  # interrupted in the middle of an exchange: the next answer would be this one's rest
            raise

    def _believed(self, text: bytes, data: bytes) -> Report:
        """A report that can be one about this file. Raises ValueError or InputError."""
        report = Report.model_validate_json(text)
        facts, known = report.facts, inspect_bytes(data)
        if (facts.sha256, facts.format) != (known.sha256, known.format) or facts.flags != tuple(sorted(FLAG_MEANING.keys() & facts.flags)):
            raise ValueError("facts of another file")
        if report.refused is None:
            self._limits.check_size(*_size(facts), len(data), "JPEG" if facts.format == "RAW" else facts.format)  # the preview in it
        return report

    def _epitaph(self, child: subprocess.Popen[bytes]) -> str:
        if child is not self._child:
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


class ChildDecoder(Child):
    """`decode_image` in a child process of its own."""

    def __init__(self, limits: ImageLimits, wall_limit_s: float = 5.0, memory_limit_bytes: int | None = None) -> None:
        super().__init__(limits, wall_limit_s)
        self._memory_limit_bytes = memory_limit_bytes or LIBRARY_BYTES + limits.max_bytes + worst_bytes(limits)

    def decode(self, data: bytes, admit: Admit = admit_all) -> DecodedImage:
        """As `decode_image`, with two more refusals: DECODER_CRASHED (which signal) and DECODE_TIMEOUT. Raises ImageRefused."""
        report, pixels = self._exchange(
            data, lambda facts: 3 * math.prod(_size(facts)), admit=lambda demand: admit(_in_two_processes(demand, len(data)))
        )
        return DecodedImage(Image.frombytes("RGB", _size(report.facts), pixels), report.facts)

    def _command(self) -> list[str]:
        limits = self._limits.model_dump_json()
        return [sys.executable, "-P", "-m", "ray_app.images.sandbox_child", str(self._memory_limit_bytes), str(self._wall_limit_s), limits]


class _NotAdmitted(Exception):  # noqa: N818 - no fault: it leaves an exchange that goes no further
    """There is no memory for what the child wants to decode."""

    def __init__(self, reason: InputError) -> None:
        super().__init__(reason)
        self.reason = reason


class _Deadline:
    """Kills a child by its own handle unless the block ends in time; only this can end a read from a child that hangs."""

    def __init__(self, child: subprocess.Popen[bytes], limit_s: float) -> None:
        self.has_passed = False
        self.limit_s = limit_s
        self._child = child

    def start(self, limit_s: float) -> None:
        """Count from now on."""
        self.limit_s = limit_s
        self._timer = threading.Timer(limit_s, self._kill)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """Count no further; whether the time is over is settled then."""
        self._timer.cancel()
        self._timer.join()

    def __enter__(self) -> "_Deadline":
        self.start(self.limit_s)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _kill(self) -> None:
        self.has_passed = True
        self._child.kill()


def _environment() -> dict[str, str]:
    package_root = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
    kept = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT or name.startswith("PYTHON")}
    return kept | _MODEST | {"PYTHONPATH": search_path}


def _in_two_processes(demand: Demand, encoded_bytes: int) -> Demand:
    """Of an image whose pixels, four bytes each, leave the child as three and are four once more here; both have the file."""
    return Demand(demand.pixels, encoded_bytes + max(demand.peak_bytes, demand.pixels * (4 + 3 + 3 + 4)))


def _size(facts: ImageFileFacts) -> tuple[int, int]:
    return facts.width or 0, facts.height or 0


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with contextlib.suppress(BrokenPipeError):  # unsent bytes for a child that is gone
            pipe.close()


_LAYOUT = struct.Struct("<qq")  # image_id; how often it was noted or cleared: odd while a decode is under way
_SUFFIX = ".crumb"
_serial = itertools.count()


class Breadcrumb:
    """A note of the image being decoded by one thread, in a file of its own in `folder` (local to the node).

    The file is named by process id and process start time, so that a process which comes later under the same id is not mistaken for it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        pid = os.getpid()
        self.path = folder / f"{pid}-{_start_time(pid)}-{next(_serial)}{_SUFFIX}"
        with open(self.path, "w+b") as file:
            file.write(_LAYOUT.pack(0, 0))
            file.flush()
            self._map = mmap.mmap(file.fileno(), _LAYOUT.size)
        self._fields = memoryview(self._map).cast("q")
        self.count = 0
        self.patience = 1.0

    def note(self, image_id: int, patience: float = 1.0) -> None:
        """From now on this image is being decoded, for so many times the wall limit at most."""
        self._fields[0] = image_id
        self.patience = patience
        self.count += 1
        self._fields[1] = self.count

    def clear(self) -> None:
        """The decode is over, however it ended."""
        self.count += 1
        self._fields[1] = self.count

    def close(self) -> None:
        """Remove the file: this process ends well, and with nothing under way."""
        self._fields.release()
        self._map.close()
        self.path.unlink(missing_ok=True)

    @staticmethod
    def left_in(folder: Path, *, remove: bool = False) -> set[int]:
        """The ids that dead processes were decoding; `remove` deletes the files of dead processes as well."""
        left: set[int] = set()
        for path in _crumbs_of_the_dead(folder):
            note = path.read_bytes()
            if len(note) == _LAYOUT.size:
                image_id, count = _LAYOUT.unpack(note)
                if count % 2:
                    left.add(image_id)
            if remove:
                path.unlink(missing_ok=True)
        return left


class Watchdog:
    """Ends this process with `EXIT_CODE` if one noted decode lasts longer than the wall limit: a hang then costs the same as a crash.

    A thread that looks ten times per limit, so a hang is ended after 1.0 to 1.1 limits (times the note's `patience`). It gets its turn
    since all decoders run without the interpreter lock. `re` does not: what it looks for in a file must take no more than linear time.
    """

    EXIT_CODE = 86

    def __init__(self, crumb: Breadcrumb, wall_limit_s: float) -> None:
        self._crumb = crumb
        self._wall_limit_s = wall_limit_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="decode-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        seen, looks = 0, 0
        while not self._ended.wait(self._wall_limit_s / 10):
            looks = looks + 1 if self._crumb.count == seen else 0
            seen = self._crumb.count
            if seen % 2 and looks >= 10 * self._crumb.patience:
                os._exit(self.EXIT_CODE)


def _crumbs_of_the_dead(folder: Path) -> Iterator[Path]:
    for path in folder.glob("*" + _SUFFIX):
        pid, start_time, _ = path.stem.split("-")
        if _start_time(int(pid)) != start_time:
            yield path


def _start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None if it is no more (or only waits for its parent to notice).

    Without /proc every living process counts as started at 0.
    """
    if not os.path.exists("/proc/self/stat"):
        return "0" if _exists(pid) else None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
