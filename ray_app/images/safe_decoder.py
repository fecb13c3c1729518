"""Decoding a suspect where it can do no harm: in a child process with a wall limit and a memory limit. No torch, no Ray in the child.

`Child` is any process that speaks the protocol of `child`; what it answers is taken for what it is: bytes of a process that decoded
a hostile file.
"""

import contextlib
import io
import math
import os
import signal
import struct
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from PIL import Image

from ray_app.errors import InputError, Status, TouchstoneError, said
from ray_app.images.child import ANSWER, DEMAND, READY, REQUEST, Report
from ray_app.images.facts import FLAG_MEANING, DecodedImage, ImageFacts, ImageRefused, inspect_bytes
from ray_app.images.limits import ImageLimits
from ray_app.images.memory import Admit, Demand, admit_all, worst_bytes

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
        self, data: bytes, pixel_bytes: Callable[[ImageFacts], int], *, before: bytes = b"", admit: Admit = admit_all
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
        self, child: subprocess.Popen[bytes], before: bytes, data: bytes, pixel_bytes: Callable[[ImageFacts], int], admitted: Admit
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
        return [sys.executable, "-P", "-m", "ray_app.images.child", str(self._memory_limit_bytes), str(self._wall_limit_s), limits]


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


def _size(facts: ImageFacts) -> tuple[int, int]:
    return facts.width or 0, facts.height or 0


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with contextlib.suppress(BrokenPipeError):  # unsent bytes for a child that is gone
            pipe.close()
