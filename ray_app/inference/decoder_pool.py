"""A pool of processes for untrusted images (`IsolatedDecoders`): decoding under a wall limit and a
memory limit, without our secrets.

A child is no sandbox against code that takes it over; an operator adds that (seccomp, a container).
Its answers are bytes of a process that decoded a hostile file, and are checked before they are
used.
"""

import io
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
from PIL import Image

from ray_app.child_messages import ANSWER, READY, pack_request
from ray_app.child_process import ChildDeadline, ChildProcess
from ray_app.detectors import Preprocessing, ResizeMode
from ray_app.errors import InputError, Status, TouchstoneError, describe_error
from ray_app.images import (
    FLAG_MEANING,
    DecodedImage,
    Demand,
    ImageFileFacts,
    ImageLimits,
    ImageRefused,
    inspect_bytes,
    sniff_format,
)
from ray_app.images.formats import describe_unsupported
from ray_app.images.limits import worst_bytes
from ray_app.images.provenance import Provenance, get_sidecar, has_manifest
from ray_app.import_path import PACKAGE, SEARCH_PATH, safe_variables
from ray_app.inference import batch, decoder_child
from ray_app.inference.decoder_child import DEMAND, DecodeRequest, Report

# Beyond what the libraries take. The largest image within the default limits (49 MP WebP with
# alpha) took 0.95 GB, prepared in every way.
MEMORY_LIMIT_BYTES = 2 * 1024**3
# of the first try and the second: importing takes half a second, on a loaded machine or a cold disk
# longer
START_LIMITS_S = (10.0, 60.0)
MOST_REPORT_BYTES = 64 * 1024  # names, numbers and one line of words: a few hundred bytes

# What a child's Python and its libraries need of our environment, and what decides which kernels
# they take. Tokens and keys stay here.
_ENVIRONMENT = (
    "PATH",
    "HOME",
    "TMPDIR",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "ATEN_CPU_CAPABILITY",
)
# each would reserve address space
_MODEST = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
_PIXELS = DecodeRequest()
_SMALL = Demand(0, 0)  # of an image that any process has memory for

Answer = tuple[Report, bytearray]


@dataclass(frozen=True)
class PreparedImage:
    """One image that a child process has decoded, ready for detectors.

    `pixels`: per preprocessing asked for, (height, width, 3) uint8, writable; None where it keeps
    sizes. `provenance`: what the file says of its origin (see `images.provenance`), None if nothing
    or not asked. `seconds`: decoding and preparing, in the child. `data`: the file, where it may be
    decoded once more.
    """

    facts: ImageFileFacts
    pixels: tuple[batch.Pixels | None, ...]
    provenance: Provenance | None
    seconds: float
    data: bytes | None = None


class DecoderProcess(ChildProcess):
    """A process that answers one request at a time within a wall limit: a crash or a hang costs one
    image its status, and nothing else.

    It starts at the first use and again after it died; it imports torch only once something asks
    for it, and is then started anew. `memory_limit_bytes`: beyond what its libraries take. One
    thread at a time. Use as a context manager, or `close()` it.
    """

    def __init__(
        self, limits: ImageLimits, wall_limit_s: float = 5.0, memory_limit_bytes: int | None = None
    ) -> None:
        super().__init__()
        self._limits = limits
        self._wall_limit_s = wall_limit_s
        self._memory_limit_bytes = (
            memory_limit_bytes or MEMORY_LIMIT_BYTES + limits.max_bytes + worst_bytes(limits)
        )
        self._has_torch = False

    def decode(self, data: bytes) -> DecodedImage:
        """As `decode_image`, with two more refusals: DECODER_CRASHED (which signal) and
        DECODE_TIMEOUT. Raises ImageRefused.
        """
        with closing(self.peek(data)) as peeked:
            return peeked.decode()

    def prepare(
        self,
        data: bytes,
        wanted: DecodeRequest,
        turn: AbstractContextManager[object] | None = None,
    ) -> PreparedImage:
        """As `IsolatedDecoders.prepare`, within twice the wall limit.

        A file with a C2PA manifest that kills the process or takes too long is tried once more
        without the native code that reads manifests: what stands beside a verdict must not cost
        one.

        Args:
            data: The file.
            wanted: What to make of it.
            turn: Entered while a large image is decoded. The wall limit does not count the wait
                for it.
        """
        try:
            report, pixels = self._answer_in_turn(data, wanted, turn)
        except ImageRefused as refusal:
            is_suspect = (
                refusal.status in (Status.DECODER_CRASHED, Status.DECODE_TIMEOUT)
                and wanted.provenance is not None
            )
            if not is_suspect or not has_manifest(data, refusal.facts.format):
                raise
            without_native = wanted.model_copy(update={"native": False})
            report, pixels = self._answer_in_turn(data, without_native, turn)
        return PreparedImage(
            report.facts, tuple(_tensors(pixels, wanted.shapes)), report.provenance, report.seconds
        )

    def peek(self, data: bytes, wanted: DecodeRequest = _PIXELS) -> "PeekedFile":
        """Send a file to the child, which decodes it at once unless it is large.

        No other file may be sent before the result is finished or closed.

        Raises:
            ImageRefused: What the child refused, DECODER_CRASHED (how it died), DECODE_TIMEOUT.
        """
        self.start(wanted)
        sidecar = get_sidecar(data) if wanted.provenance is not None else b""
        text = _request_text(
            wanted.model_copy(update={"sidecar_bytes": len(sidecar)}) if sidecar else wanted
        )
        child, answer = self._child, None
        with self._exchange(self._wall_limit_s) as (answers, deadline):
            self._send(pack_request(text, (data, sidecar)))
            answer = self._read_first(data, wanted, answers)
        if isinstance(answer, Demand):
            if not deadline.has_passed:
                demand = _in_two_processes(answer, len(data))
                return PeekedFile(self, data, wanted, demand, None)
            answer = None
        return PeekedFile(self, data, wanted, _SMALL, self._accepted(answer, data, child, deadline))

    def finish(self, data: bytes, wanted: DecodeRequest, patience: float) -> Answer:
        """Let the child decode the large image that it has peeked at; `patience` × the wall limit.

        Raises:
            ImageRefused: As `peek`.
        """
        child, answer = self._child, None
        with self._exchange(self._wall_limit_s * patience) as (answers, deadline):
            self._send((READY,))
            sizes = ANSWER.unpack(answers.read(ANSWER.size))
            answer = self._read_answer(data, wanted, answers, *sizes)
        return self._accepted(answer, data, child, deadline)

    def _command(self) -> list[str]:
        """Return the command of a decoder process. With `-P` a file `PIL.py` next to the program is
        not imported.
        """
        limits, library = self._limits.model_dump_json(), "torch" if self._has_torch else ""
        return [
            sys.executable,
            "-P",
            decoder_child.__file__,
            str(self._memory_limit_bytes),
            str(self._wall_limit_s),
            limits,
            library,
        ]

    def start(self, wanted: DecodeRequest | None = None) -> None:
        """Have a child that is ready, with the libraries that are wanted; one that hangs is
        replaced once, while images wait.

        Raises TouchstoneError if it does not start.
        """
        if wanted is not None and wanted.needs_torch and not self._has_torch:
            self._has_torch = True
            self.close()
        if self.pid is not None:
            return
        try:
            is_ready = any(
                self._spawn(self._command(), _environment(), READY, limit_s, folder=PACKAGE)
                for limit_s in START_LIMITS_S
            )
        except OSError as error:
            raise TouchstoneError(
                f"the decoder process did not start: {describe_error(error)}",
                hint="check the limits on processes and memory of this machine",
            ) from error
        if not is_ready:
            command = " ".join(self._command()[:4])
            raise TouchstoneError(
                f"the decoder process did not start: it {self._epitaph(self._child)}",
                hint=f"try {command}",
            )

    def _answer_in_turn(
        self, data: bytes, wanted: DecodeRequest, turn: AbstractContextManager[object] | None
    ) -> Answer:
        with closing(self.peek(data, wanted)) as peeked:
            if turn is None or not peeked.demand.is_large:
                return peeked.finish()
            with turn:
                return peeked.finish()

    def _accepted(
        self,
        answer: Answer | None,
        data: bytes,
        child: "subprocess.Popen[bytes] | None",
        deadline: ChildDeadline,
    ) -> Answer:
        """Return an answer with pixels. Raises ImageRefused if there is none."""
        if deadline.has_passed:
            self.close()
            reason = f"longer than {deadline.limit_s:g} s"
            raise ImageRefused(
                Status.DECODE_TIMEOUT, reason, inspect_bytes(data), limit=deadline.limit_s
            )
        if answer is None:
            reason = f"the decoder process {self._epitaph(child)}"
            raise ImageRefused(Status.DECODER_CRASHED, reason, inspect_bytes(data))
        report, _ = answer
        if report.refused is not None:
            raise ImageRefused(facts=report.facts, **dict(report.refused))
        return answer

    def _read_first(
        self, data: bytes, wanted: DecodeRequest, answers: io.BufferedReader
    ) -> Demand | Answer | None:
        """Read the demand of a large image, or the answer. Raises ValueError if it is neither."""
        sizes = ANSWER.unpack(answers.read(ANSWER.size))
        if sizes[0] > 0:
            return self._read_answer(data, wanted, answers, *sizes)
        demand = Demand(*DEMAND.unpack(answers.read(DEMAND.size)))
        if demand.pixels > self._limits.max_pixels:
            raise ValueError(f"{demand.pixels} pixels are over max_pixels")
        return demand

    def _read_answer(
        self,
        data: bytes,
        wanted: DecodeRequest,
        answers: io.BufferedReader,
        report_size: int,
        pixels_size: int,
    ) -> Answer | None:
        """Read an answer of these sizes; None if the child died before it was complete. Raises
        ValueError if it does not answer the request.
        """
        if report_size > MOST_REPORT_BYTES:
            raise ValueError(f"a report of {report_size} bytes, limit is {MOST_REPORT_BYTES}")
        text = answers.read(report_size)
        if len(text) < report_size:
            return None
        report = self._believed(text, data)
        expected = 0 if report.refused is not None else _pixel_bytes(wanted, report.facts)
        if pixels_size != expected:
            raise ValueError(f"{pixels_size} bytes of pixels, expected {expected}")
        pixels = bytearray(expected)
        return (report, pixels) if answers.readinto(pixels) == expected else None

    def _believed(self, text: bytes, data: bytes) -> Report:
        """A report that can be one about this file. Raises ValueError."""
        report = Report.model_validate_json(text)
        facts, known = report.facts, inspect_bytes(data)
        if (facts.sha256, facts.format) != (known.sha256, known.format) or facts.flags != tuple(
            sorted(FLAG_MEANING.keys() & facts.flags)
        ):
            raise ValueError("facts of another file")
        if report.refused is None:
            try:
                # the preview in it
                self._limits.check_size(
                    *_size(facts), len(data), "JPEG" if facts.format == "RAW" else facts.format
                )
            except InputError as beyond:
                raise ValueError(str(beyond)) from None
        return report


class PeekedFile:
    """A file that a child process has read the header of. `close()` it, unless it is finished.

    Attributes:
        demand: What decoding takes in both processes, if the image is large. The child decodes such
            an image only in `decode` or `finish`.
    """

    def __init__(
        self,
        child: DecoderProcess,
        data: bytes,
        wanted: DecodeRequest,
        demand: Demand,
        answer: Answer | None,
    ) -> None:
        self.demand = demand
        self._child, self._data, self._wanted, self._answer = child, data, wanted, answer
        self._is_pending = answer is None
        self._free: queue.SimpleQueue[DecoderProcess] | None = None

    @property
    def facts(self) -> ImageFileFacts:
        """What the file shows without a decoder."""
        return inspect_bytes(self._data)

    def decode(self) -> DecodedImage:
        """Return the pixels. Raises ImageRefused."""
        report, pixels = self.finish()
        return DecodedImage(Image.frombytes("RGB", _size(report.facts), pixels), report.facts)

    def finish(self) -> Answer:
        """Return the answer of the child, once. Raises ImageRefused."""
        answer, self._answer = self._answer, None
        if answer is not None:
            return answer
        self._is_pending = False
        try:
            return self._child.finish(self._data, self._wanted, self.demand.patience)
        finally:
            self._give_back()

    def close(self) -> None:
        """End the child if it waits to decode the image."""
        if self._is_pending:
            self._is_pending = False
            self._child.close()
            self._give_back()

    def give_back_to(self, free: "queue.SimpleQueue[DecoderProcess]") -> None:
        """Put the child into a queue, as soon as it has decoded the image."""
        self._free = free
        if not self._is_pending:
            self._give_back()

    def _give_back(self) -> None:
        if self._free is not None:
            self._free.put(self._child)


class IsolatedDecoders:
    """Decode images in child processes, each with one image at a time.

    Used from any thread. An image waits until a child is free. `close` it once nothing is decoded.

    Args:
        limits: Limits on an image.
        processes: Number of children. They start at their first use.
        wall_limit_s: Seconds that one image may take.
        memory_limit_bytes: Memory of each child beyond its libraries. None for what the largest
            image within the limits may take.
        formats: Sniffed formats that `prepare` accepts. None for all.
    """

    def __init__(
        self,
        limits: ImageLimits,
        *,
        processes: int,
        wall_limit_s: float = 5.0,
        memory_limit_bytes: int | None = MEMORY_LIMIT_BYTES,
        formats: Collection[str] | None = None,
    ) -> None:
        self._limits = limits
        self._formats = None if formats is None else tuple(formats)
        self._children = [
            DecoderProcess(limits, wall_limit_s, memory_limit_bytes) for _ in range(processes)
        ]
        self._free: queue.SimpleQueue[DecoderProcess] = queue.SimpleQueue()
        for child in self._children:
            self._free.put(child)
        self._large = threading.Lock()

    def start(
        self, preprocessings: Sequence[Preprocessing] = (), resize: ResizeMode = "exact"
    ) -> None:
        """Start every child, with the libraries that these preprocessings need. Raises
        TouchstoneError.
        """
        wanted = DecodeRequest(preprocessings=tuple(preprocessings), resize=resize)
        with ThreadPoolExecutor(len(self._children)) as threads:
            for started in [threads.submit(child.start, wanted) for child in self._children]:
                started.result()

    def decode(self, data: bytes) -> DecodedImage:
        """As `DecoderProcess.decode`. Blocks; raises ImageRefused."""
        with closing(self.peek(data)) as peeked:
            return peeked.decode()

    def peek(self, data: bytes) -> PeekedFile:
        """As `DecoderProcess.peek`. Blocks; raises ImageRefused. Only a large image occupies a
        child after that, until it is finished or closed.
        """
        child = self._free.get()
        try:
            peeked = child.peek(data)
        except BaseException:
            self._free.put(child)
            raise
        peeked.give_back_to(self._free)
        return peeked

    def prepare(self, data: bytes, wanted: DecodeRequest) -> PreparedImage:
        """Decode one file and prepare it in each of several ways, with the same pixels as
        `BatchDecoder`. Blocks.

        One large image is decoded at a time; the wall limit does not count the wait for its turn.

        Raises:
            ImageRefused: As `decode_image`, for a format that is not accepted, and DECODE_TIMEOUT
                or DECODER_CRASHED, after which the next image gets a new child.
        """
        self._admit(data)
        child = self._free.get()
        try:
            return child.prepare(data, wanted, self._large)
        finally:
            self._free.put(child)

    def close(self) -> None:
        """End all children."""
        for child in self._children:
            child.close()

    def _admit(self, data: bytes) -> None:
        """Refuse what needs no decoder to be refused."""
        try:
            if not data:
                raise InputError(Status.EMPTY_FILE, "0 bytes")
            self._limits.check_bytes(len(data))
            format_name = sniff_format(data)
            if format_name is None or (
                self._formats is not None and format_name not in self._formats
            ):
                what = (
                    describe_unsupported(data) if format_name is None else f"a {format_name} file"
                )
                accepted = (
                    f"; let in here: {', '.join(self._formats)}"
                    if self._formats is not None
                    else ""
                )
                raise InputError(Status.UNSUPPORTED_FORMAT, what + accepted)
        except InputError as refused:
            raise ImageRefused.because(refused, inspect_bytes(data)) from None


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name.startswith("PYTHON")
    }
    kept.pop(SEARCH_PATH, None)
    return kept | _MODEST | safe_variables()


def _in_two_processes(demand: Demand, encoded_bytes: int) -> Demand:
    """Of an image whose pixels, four bytes each, leave the child as three and are four once more
    here; both have the file.
    """
    return Demand(
        demand.pixels, encoded_bytes + max(demand.peak_bytes, demand.pixels * (4 + 3 + 3 + 4))
    )


def _size(facts: ImageFileFacts) -> tuple[int, int]:
    return facts.width or 0, facts.height or 0


def _pixel_bytes(wanted: DecodeRequest, facts: ImageFileFacts) -> int:
    return (
        3 * prod(_size(facts))
        if wanted.preprocessings is None
        else sum(prod(shape) for shape in wanted.shapes if shape)
    )


def _tensors(
    pixels: bytearray, shapes: Sequence[tuple[int, int, int] | None]
) -> Iterator[batch.Pixels | None]:
    at = 0
    for shape in shapes:
        if shape is None:
            yield None
        else:
            yield np.frombuffer(pixels, np.uint8, prod(shape), at).reshape(shape)
            at += prod(shape)


@lru_cache(maxsize=64)
def _request_text(wanted: DecodeRequest) -> bytes:
    return wanted.model_dump_json().encode()
