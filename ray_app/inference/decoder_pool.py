"""Images of strangers, decoded and prepared in child processes, while an event loop goes on. Knows no detector, HTTP or Ray.

A child has a wall limit, a memory limit, one thread and none of our secrets. It is no sandbox against code that takes it over; an
operator adds that (seccomp, a container). What it answers is checked before it is believed.
"""

import asyncio
import queue
import sys
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from types import TracebackType

import numpy as np

from ray_app.detectors import Preprocessing, ResizeMode
from ray_app.errors import InputError, Status, TouchstoneError
from ray_app.images import ImageFileFacts, ImageLimits, ImageRefused, inspect_bytes
from ray_app.images.formats import describe_unsupported, sniff_format
from ray_app.images.provenance import Provenance, ProvenancePolicy, has_manifest
from ray_app.images.sandbox import Child
from ray_app.inference import decoder_child
from ray_app.inference.batch import Pixels
from ray_app.inference.decoder_child import WANTED_SIZE, DecodeRequest

# Beyond what the libraries take. The largest image within the default limits (49 MP WebP with alpha) took 0.95 GB, prepared in every way.
MEMORY_LIMIT_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class PreparedImage:
    """One image, ready for detectors.

    `pixels`: per preprocessing asked for, (height, width, 3) uint8, writable; None where it keeps sizes. `provenance`: what the file
    says of its origin (see `images.provenance`), None if nothing or not asked. `seconds`: decoding and preparing, in the child.
    """

    facts: ImageFileFacts
    pixels: tuple[Pixels | None, ...]
    provenance: Provenance | None
    seconds: float


class IsolatedDecoders:
    """So many children, each with one image at a time; images wait for a free one in the order of asking.

    Used from any thread and event loop. Use as a context manager, or `close()` it: images at work are finished first.
    `formats`: which of the sniffed formats are let in; None = all. `provenance`: how to read what files say of their origin; None = not.
    """

    def __init__(
        self,
        limits: ImageLimits,
        *,
        processes: int,
        wall_limit_s: float = 5.0,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
        formats: Collection[str] | None = None,
        provenance: ProvenancePolicy | None = None,
    ) -> None:
        self._limits, self._provenance = limits, provenance
        self._formats = None if formats is None else tuple(formats)
        self._children = [PreparingChild(limits, wall_limit_s, memory_limit_bytes) for _ in range(processes)]
        self._free: queue.SimpleQueue[PreparingChild] = queue.SimpleQueue()
        for child in self._children:
            self._free.put(child)
        # A thread per child: a task that runs finds a free child, and what waits, waits in the executor.
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="isolated-decoder")
        self._is_closed = False

    def start(self, preprocessings: Sequence[Preprocessing] = (), resize: ResizeMode = "exact") -> None:
        """Have every child up, with the libraries that these preprocessings need. Raises TouchstoneError."""
        wanted = _wanted(tuple(preprocessings), resize, self._provenance)
        for started in [self._threads.submit(self._start_one, wanted) for _ in self._children]:
            started.result()

    @property
    def pids(self) -> list[int]:
        """The process ids of the children that run."""
        return [pid for child in self._children if (pid := child.pid) is not None]

    async def prepare(self, data: bytes, preprocessings: Sequence[Preprocessing], resize: ResizeMode) -> PreparedImage:
        """Decode one file and prepare it in each of several ways; the same pixels as `BatchDecoder` gives.

        Raises ImageRefused: as `decode_image`, for a format that is not let in, and DECODE_TIMEOUT or DECODER_CRASHED, after which
        the next image gets a new child. A caller that is cancelled leaves nothing behind: an exchange that has begun is finished.
        """
        self._admit(data)
        answer: Future[PreparedImage] = Future()
        held = [data]
        try:
            self._threads.submit(self._serve, answer, held, _wanted(tuple(preprocessings), resize, self._provenance))
        except RuntimeError:
            raise _closed() from None
        try:
            return await asyncio.wrap_future(answer)
        finally:
            held.clear()  # who left before its turn leaves no bytes in the queue

    def close(self) -> None:
        """Finish the images at work, turn away those that wait, and end all children. Takes at most the wall limit."""
        self._is_closed = True
        self._threads.shutdown()
        for child in self._children:
            child.close()

    def __enter__(self) -> "IsolatedDecoders":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _admit(self, data: bytes) -> None:
        """Refuse what needs no decoder to be refused."""
        try:
            if not data:
                raise InputError(Status.EMPTY_FILE, "0 bytes")
            self._limits.check_bytes(len(data))
            format_name = sniff_format(data)
            if format_name is None or (self._formats is not None and format_name not in self._formats):
                what = describe_unsupported(data) if format_name is None else f"a {format_name} file"
                let_in = f"; let in here: {', '.join(self._formats)}" if self._formats is not None else ""
                raise InputError(Status.UNSUPPORTED_FORMAT, what + let_in)
        except InputError as refused:
            raise ImageRefused.because(refused, inspect_bytes(data)) from None

    def _serve(self, answer: "Future[PreparedImage]", held: list[bytes], wanted: DecodeRequest) -> None:
        if not answer.set_running_or_notify_cancel():
            return
        taken = tuple(held)
        if self._is_closed or not taken:  # closed, or its caller left in this very moment
            answer.set_exception(_closed())
            return
        child = self._free.get()
        try:
            answer.set_result(child.prepare(taken[0], wanted))
        except BaseException as error:
            answer.set_exception(error)
            # The caller has its answer; whoever comes next shall not wait for the libraries of a new child.
            with suppress(TouchstoneError):
                child.start()
        finally:
            self._free.put(child)

    def _start_one(self, wanted: DecodeRequest) -> None:
        child = self._free.get()
        try:
            child.start_for(wanted)
        finally:
            self._free.put(child)


class PreparingChild(Child):
    """One process of `preparing_child`. It imports torch only once something asks for it, and is then started anew."""

    def __init__(self, limits: ImageLimits, wall_limit_s: float, memory_limit_bytes: int) -> None:
        super().__init__(limits, wall_limit_s)
        self._memory_limit_bytes = memory_limit_bytes
        self._has_torch = False

    def start_for(self, wanted: DecodeRequest) -> None:
        """Be up, with the libraries that are wanted."""
        if wanted.needs_torch and not self._has_torch:
            self._has_torch = True
            self.close()
        self.start()

    def prepare(self, data: bytes, wanted: DecodeRequest) -> PreparedImage:
        """As `IsolatedDecoders.prepare`, blocking; within twice the wall limit.

        A file with a C2PA manifest that kills the process or takes too long is tried once more without the native code that reads
        manifests: what stands beside a verdict must not cost one.
        """
        try:
            return self._prepare(data, wanted)
        except ImageRefused as refusal:
            is_suspect = refusal.status in (Status.DECODER_CRASHED, Status.DECODE_TIMEOUT) and wanted.provenance is not None
            if not is_suspect or not has_manifest(data, refusal.facts.format):
                raise
        return self._prepare(data, wanted.model_copy(update={"native": False}))

    def _prepare(self, data: bytes, wanted: DecodeRequest) -> PreparedImage:
        self.start_for(wanted)
        shapes = wanted.shapes
        text = _request_text(wanted)
        size = sum(prod(shape) for shape in shapes if shape)
        report, pixels = self._exchange(data, lambda _: size, before=WANTED_SIZE.pack(len(text)) + text)
        return PreparedImage(report.facts, tuple(_tensors(pixels, shapes)), report.provenance, report.seconds)

    def _command(self) -> list[str]:
        limits = self._limits.model_dump_json()
        library = "torch" if self._has_torch else ""
        return [sys.executable, "-P", decoder_child.__file__, str(self._memory_limit_bytes), str(self._wall_limit_s), limits, library]


def _tensors(pixels: bytearray, shapes: Sequence[tuple[int, int, int] | None]) -> Iterator[Pixels | None]:
    at = 0
    for shape in shapes:
        if shape is None:
            yield None
        else:
            yield np.frombuffer(pixels, np.uint8, prod(shape), at).reshape(shape)
            at += prod(shape)


@lru_cache(maxsize=64)
def _wanted(preprocessings: tuple[Preprocessing, ...], resize: ResizeMode, provenance: ProvenancePolicy | None) -> DecodeRequest:
    return DecodeRequest(preprocessings=preprocessings, resize=resize, provenance=provenance)


@lru_cache(maxsize=64)
def _request_text(wanted: DecodeRequest) -> bytes:
    return wanted.model_dump_json().encode()


def _closed() -> TouchstoneError:
    return TouchstoneError("the decoder processes are closed", hint="this endpoint is shutting down; ask another one")
