"""A pool of processes for untrusted images (`IsolatedDecoders`): decoding under a wall limit and a
memory limit, without our secrets.

A child is no sandbox against code that takes it over; an operator adds that (seccomp, a container).
Its answers are bytes of a process that decoded a hostile file, and are checked before they are
used.
"""

import asyncio
import contextlib
import io
import os
import queue
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod

import numpy as np
from PIL import Image

from ray_app.child_process import ChildDeadline, ChildProcess
from ray_app.detectors import Preprocessing, ResizeMode
from ray_app.detectors.foreign.child import ANSWER, READY, REQUEST, WANTED_SIZE
from ray_app.errors import InputError, Status, TouchstoneError, describe_error
from ray_app.images import (
    FLAG_MEANING,
    Admit,
    DecodedImage,
    Demand,
    ImageFileFacts,
    ImageLimits,
    ImageRefused,
    inspect_bytes,
    sniff_format,
)
from ray_app.images.formats import describe_unsupported
from ray_app.images.limits import admit_all, worst_bytes
from ray_app.images.provenance import Provenance, ProvenancePolicy, get_sidecar, has_manifest
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

    def decode(self, data: bytes, admit: Admit = admit_all) -> DecodedImage:
        """As `decode_image`, with two more refusals: DECODER_CRASHED (which signal) and
        DECODE_TIMEOUT. Raises ImageRefused.
        """
        report, pixels = self._exchange(
            data, _PIXELS, lambda demand: admit(_in_two_processes(demand, len(data)))
        )
        return DecodedImage(Image.frombytes("RGB", _size(report.facts), pixels), report.facts)

    def prepare(
        self, data: bytes, wanted: DecodeRequest, admit: Admit = admit_all
    ) -> PreparedImage:
        """As `IsolatedDecoders.prepare`, blocking; within twice the wall limit. `admit`: as for
        `decode`.

        A file with a C2PA manifest that kills the process or takes too long is tried once more
        without the native code that reads manifests: what stands beside a verdict must not cost
        one.
        """
        try:
            report, pixels = self._exchange(data, wanted, admit)
        except ImageRefused as refusal:
            is_suspect = (
                refusal.status in (Status.DECODER_CRASHED, Status.DECODE_TIMEOUT)
                and wanted.provenance is not None
            )
            if not is_suspect or not has_manifest(data, refusal.facts.format):
                raise
            report, pixels = self._exchange(
                data, wanted.model_copy(update={"native": False}), admit
            )
        return PreparedImage(
            report.facts, tuple(_tensors(pixels, wanted.shapes)), report.provenance, report.seconds
        )

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

    def _exchange(
        self, data: bytes, wanted: DecodeRequest, admit: Admit = admit_all
    ) -> tuple[Report, bytearray]:
        """Ask about one file; the report and the pixels of the answer, of which there are as many
        as were wanted.

        `admit` is asked before a large one is decoded, and its time does not count; the wall limit
        grows with the pixels. Raises ImageRefused: what the child or `admit` refused,
        DECODER_CRASHED (how it died) and DECODE_TIMEOUT.
        """
        self.start(wanted)
        child, sidecar = self._child, get_sidecar(data) if wanted.provenance is not None else b""
        text = _request_text(
            wanted.model_copy(update={"sidecar_bytes": len(sidecar)}) if sidecar else wanted
        )
        size_bytes = WANTED_SIZE.size + len(text) + len(data) + len(sidecar)
        request = (REQUEST.pack(size_bytes), WANTED_SIZE.pack(len(text)), text, data, sidecar)
        try:
            answer, deadline = self._ask(
                request, self._wall_limit_s, partial(self._answer, data, wanted, admit)
            )
        except _NotAdmitted as not_admitted:
            raise ImageRefused.because(not_admitted.reason, inspect_bytes(data)) from None
        if deadline.has_passed:
            self.close()
            reason = f"longer than {deadline.limit_s:g} s"
            raise ImageRefused(
                Status.DECODE_TIMEOUT, reason, inspect_bytes(data), limit=deadline.limit_s
            )
        if answer is None:
            raise ImageRefused(
                Status.DECODER_CRASHED,
                f"the decoder process {self._epitaph(child)}",
                inspect_bytes(data),
            )
        report, pixels = answer
        if report.refused is not None:
            raise ImageRefused(facts=report.facts, **dict(report.refused))
        return report, pixels

    def _admitted(self, admit: Admit, demand: Demand, deadline: ChildDeadline) -> None:
        """Let the child decode what it says is large, once `admit` lets it. Raises ValueError for
        more than it may be.
        """
        assert self._child is not None
        assert self._child.stdin is not None
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
        self._child.stdin.write(READY)
        self._child.stdin.flush()

    def _answer(
        self,
        data: bytes,
        wanted: DecodeRequest,
        admit: Admit,
        answers: io.BufferedReader,
        deadline: ChildDeadline,
    ) -> tuple[Report, bytearray] | None:
        """The answer; None if the child died before it was complete. Raises ValueError if it is no
        answer to this.
        """
        report_size, pixels_size = ANSWER.unpack(answers.read(ANSWER.size))
        if report_size == 0:
            self._admitted(admit, Demand(*DEMAND.unpack(answers.read(DEMAND.size))), deadline)
            report_size, pixels_size = ANSWER.unpack(answers.read(ANSWER.size))
        if report_size > MOST_REPORT_BYTES:
            raise ValueError("too many words")
        text = answers.read(report_size)
        if len(text) < report_size:
            return None
        report = self._believed(text, data)
        expected = 0 if report.refused is not None else _pixel_bytes(wanted, report.facts)
        if pixels_size != expected:
            raise ValueError("other pixels than the report's")
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


class IsolatedDecoders:
    """So many processes, each with one image at a time; images wait for a free one in the order of
    asking.

    Used from any thread and event loop. `close()` it: images at work are finished first. `formats`:
    which of the sniffed formats are let in by `prepare`; None = all. `provenance`: how to read what
    files say of their origin; None = not. `memory_limit_bytes`: of each process beyond its
    libraries; None = what the largest image within the limits may take.
    """

    def __init__(
        self,
        limits: ImageLimits,
        *,
        processes: int,
        wall_limit_s: float = 5.0,
        memory_limit_bytes: int | None = MEMORY_LIMIT_BYTES,
        formats: Collection[str] | None = None,
        provenance: ProvenancePolicy | None = None,
    ) -> None:
        self._limits, self._provenance = limits, provenance
        self._formats = None if formats is None else tuple(formats)
        self._children = [
            DecoderProcess(limits, wall_limit_s, memory_limit_bytes) for _ in range(processes)
        ]
        self._free: queue.SimpleQueue[DecoderProcess] = queue.SimpleQueue()
        for child in self._children:
            self._free.put(child)
        # A thread per child: a task that runs finds a free child, and what waits, waits in the
        # executor.
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="isolated-decoder")
        # a child that dies over a manifest is asked again within its turn
        self._large = threading.RLock()
        self._is_closed = False

    def start(
        self, preprocessings: Sequence[Preprocessing] = (), resize: ResizeMode = "exact"
    ) -> None:
        """Have every child up, with the libraries that these preprocessings need. Raises
        TouchstoneError.
        """
        wanted = _wanted(tuple(preprocessings), resize, self._provenance)
        for started in [self._threads.submit(self._start_one, wanted) for _ in self._children]:
            started.result()

    def decode(self, data: bytes, admit: Admit = admit_all) -> DecodedImage:
        """As `decode_image`, with two more refusals: DECODER_CRASHED (which signal) and
        DECODE_TIMEOUT. Blocks; raises ImageRefused.
        """
        with self._child() as child:
            return child.decode(data, admit)

    def prepare_now(self, data: bytes, wanted: DecodeRequest) -> PreparedImage:
        """As `prepare`, blocking. Of large images one is decoded at a time; the wait for its turn
        does not count.
        """
        self._admit(data)
        with ExitStack() as turn, self._child() as child:

            def admit(demand: Demand) -> None:
                if demand.is_large:
                    turn.enter_context(self._large)

            return child.prepare(data, wanted, admit)

    async def prepare(
        self,
        data: bytes,
        preprocessings: Sequence[Preprocessing],
        resize: ResizeMode,
        *,
        measured: bool = False,
    ) -> PreparedImage:
        """Decode one file and prepare it in each of several ways; the same pixels as `BatchDecoder`
        gives.

        `measured`: the facts have also what is measured on pixels (see
        `ray_app.images.facts.texture_of`).

        Raises ImageRefused: as `decode_image`, for a format that is not let in, and DECODE_TIMEOUT
        or DECODER_CRASHED, after which the next image gets a new child. A caller that is cancelled
        leaves nothing behind: an exchange that has begun is finished.
        """
        self._admit(data)
        answer: Future[PreparedImage] = Future()
        held = [data]
        try:
            self._threads.submit(
                self._serve,
                answer,
                held,
                _wanted(tuple(preprocessings), resize, self._provenance, measured),
            )
        except RuntimeError:
            raise _closed() from None
        try:
            return await asyncio.wrap_future(answer)
        finally:
            held.clear()  # who left before its turn leaves no bytes in the queue

    def close(self) -> None:
        """Finish the images at work, turn away those that wait, and end all children. Takes at most
        the wall limit.
        """
        self._is_closed = True
        self._threads.shutdown()
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
                let_in = (
                    f"; let in here: {', '.join(self._formats)}"
                    if self._formats is not None
                    else ""
                )
                raise InputError(Status.UNSUPPORTED_FORMAT, what + let_in)
        except InputError as refused:
            raise ImageRefused.because(refused, inspect_bytes(data)) from None

    def _serve(
        self, answer: "Future[PreparedImage]", held: list[bytes], wanted: DecodeRequest
    ) -> None:
        if not answer.set_running_or_notify_cancel():
            return
        taken = tuple(held)
        if self._is_closed or not taken:  # closed, or its caller left in this very moment
            answer.set_exception(_closed())
            return
        with self._child() as child:
            try:
                answer.set_result(child.prepare(taken[0], wanted))
            except BaseException as error:
                answer.set_exception(error)
                # The caller has its answer; the next one shall not wait for a new child to import
                # its libraries.
                with suppress(TouchstoneError):
                    child.start()

    @contextlib.contextmanager
    def _child(self) -> Iterator[DecoderProcess]:
        child = self._free.get()
        try:
            yield child
        finally:
            self._free.put(child)

    def _start_one(self, wanted: DecodeRequest) -> None:
        with self._child() as child:
            child.start(wanted)


class _NotAdmitted(Exception):  # noqa: N818 - no fault: it leaves an exchange that goes no further
    """There is no memory for what the child wants to decode."""

    def __init__(self, reason: InputError) -> None:
        super().__init__(reason)
        self.reason = reason


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
def _wanted(
    preprocessings: tuple[Preprocessing, ...],
    resize: ResizeMode,
    provenance: ProvenancePolicy | None,
    measured: bool = False,
) -> DecodeRequest:
    return DecodeRequest(
        preprocessings=preprocessings, resize=resize, provenance=provenance, measured=measured
    )


@lru_cache(maxsize=64)
def _request_text(wanted: DecodeRequest) -> bytes:
    return wanted.model_dump_json().encode()


def _closed() -> TouchstoneError:
    return TouchstoneError(
        "the decoder processes are closed", hint="this endpoint is shutting down; use another one"
    )
