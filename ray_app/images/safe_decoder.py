"""Decoding a suspect where it can do no harm: in a child process with a wall limit and a memory limit. No torch, no Ray in the child."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO

from PIL import Image

from ray_app.errors import Status, TouchstoneError
from ray_app.images.child import ANSWER, READY, REQUEST
from ray_app.images.facts import DecodedImage, ImageFacts, ImageRefused, inspect_bytes
from ray_app.images.limits import ImageLimits

# The largest image within the default limits takes 1.1 GB (WebP with alpha, measured); the rest is address space that threads only reserve.
MEMORY_LIMIT_BYTES = 4 * 1024**3
START_LIMIT_S = 60.0  # importing takes half a second; a loaded machine or a cold disk may need long


class ChildDecoder:
    """`decode_image` in a child process: a crash or a hang costs one image its status, and nothing else.

    The child starts at the first use and again after it died. One thread at a time. Use as a context manager, or `close()` it.
    """

    def __init__(self, limits: ImageLimits, wall_limit_s: float = 5.0, memory_limit_bytes: int = MEMORY_LIMIT_BYTES) -> None:
        self._limits = limits
        self._wall_limit_s = wall_limit_s
        self._memory_limit_bytes = memory_limit_bytes
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The running child's process id; None before the first use and after its end."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def decode(self, data: bytes) -> DecodedImage:
        """As `decode_image`, with two more refusals: DECODER_CRASHED (which signal) and DECODE_TIMEOUT. Raises ImageRefused."""
        if self.pid is None:
            self._start()
        child = self._child
        assert child is not None
        with _Deadline(child, self._wall_limit_s) as deadline:
            answer = self._ask(child, data)
        if deadline.has_passed:
            self.close()
            raise ImageRefused(Status.DECODE_TIMEOUT, f"longer than {self._wall_limit_s:g} s", inspect_bytes(data))
        if answer is None:
            raise ImageRefused(Status.DECODER_CRASHED, f"the decoder process {self._epitaph(child)}", inspect_bytes(data))
        return _unpack(*answer)

    def close(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            _close(pipe)

    def __enter__(self) -> "ChildDecoder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _command(self) -> list[str]:
        # -P: a file `PIL.py` in the current folder must not become the decoder.
        limits = self._limits.model_dump_json()
        return [sys.executable, "-P", "-m", "ray_app.images.child", str(self._memory_limit_bytes), str(self._wall_limit_s), limits]

    def _start(self) -> None:
        self.close()
        package_root = str(Path(__file__).resolve().parents[2])
        search_path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
        modest = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}  # each would reserve address space
        child = self._child = subprocess.Popen(
            self._command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | modest | {"PYTHONPATH": search_path},
        )
        assert child.stdout is not None
        with _Deadline(child, START_LIMIT_S):
            is_ready = child.stdout.read(len(READY)) == READY
        if not is_ready:
            epitaph = self._epitaph(child)
            raise TouchstoneError(f"the decoder process did not start: it {epitaph}", hint=f"try {sys.executable} -m ray_app.images.child")

    def _ask(self, child: subprocess.Popen[bytes], data: bytes) -> tuple[bytes, bytes] | None:
        """The answer's JSON and pixels; None if the child died before it was complete."""
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(REQUEST.pack(len(data)))
            child.stdin.write(data)
            child.stdin.flush()
            header = child.stdout.read(ANSWER.size)
            if len(header) < ANSWER.size:
                return None
            sizes = ANSWER.unpack(header)
            report, pixels = child.stdout.read(sizes[0]), child.stdout.read(sizes[1])
        except BrokenPipeError:
            return None
        except BaseException:
            self.close()  # interrupted in the middle of an exchange: the next answer would be this one's rest
            raise
        return (report, pixels) if (len(report), len(pixels)) == sizes else None

    def _epitaph(self, child: subprocess.Popen[bytes]) -> str:
        code = child.wait()
        self.close()
        if code >= 0:
            return f"ended with exit code {code}"
        known = {number.value: number.name for number in signal.Signals}
        return f"died of {known.get(-code, f'signal {-code}')}"


class _Deadline:
    """Kills a child by its own handle unless the block ends in time; only this can end a read from a child that hangs."""

    def __init__(self, child: subprocess.Popen[bytes], limit_s: float) -> None:
        self.has_passed = False
        self._child = child
        self._timer = threading.Timer(limit_s, self._kill)
        self._timer.daemon = True

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()

    def _kill(self) -> None:
        self.has_passed = True
        self._child.kill()


def _unpack(report: bytes, pixels: bytes) -> DecodedImage:
    answer = json.loads(report)
    fields = answer["facts"]
    facts = ImageFacts(**fields | {"flags": tuple(fields["flags"])})
    if "status" in answer:
        raise ImageRefused(Status(answer["status"]), answer["detail"], facts)
    assert facts.width is not None
    assert facts.height is not None
    return DecodedImage(Image.frombytes("RGB", (facts.width, facts.height), pixels), facts)


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with contextlib.suppress(BrokenPipeError):  # unsent bytes for a child that is gone
            pipe.close()
