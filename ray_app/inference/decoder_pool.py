"""Decode untrusted images in child processes (`IsolatedDecoders`).

Each child has a wall limit and a memory limit, and receives no secrets of this process. A child is
not a sandbox: an image that takes the child over can run code. An operator can add a sandbox
(seccomp, a container). The answers of a child are checked before they are used, since the child has
decoded an untrusted file.
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
from ray_app.detectors import Preprocessing
from ray_app.errors import InputError, Status, TouchstoneError, describe_error
from ray_app.images import (
    FLAG_MEANING,
    DecodeCost,
    DecodedImage,
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

# Memory in addition to that of the libraries. The largest image within the default limits (49 MP
# WebP with alpha) took 0.95 GB, prepared in every way.
MEMORY_LIMIT_BYTES = 2 * 1024**3
# Limits of the first and the second start. Imports take half a second, and longer on a loaded
# machine or a cold disk.
START_LIMITS_S = (10.0, 60.0)
# A report has names, numbers, and a line of text: a few hundred bytes.
MAX_REPORT_BYTES = 64 * 1024

# Environment variables that Python and the libraries of a child need, or that select their kernels.
# Tokens and keys are not passed on.
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
# More threads and arenas would reserve address space.
_FEW_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
_PIXELS = DecodeRequest()
_SMALL = DecodeCost(0, 0)  # The demand of an image that any process has memory for.

Answer = tuple[Report, bytearray]


@dataclass(frozen=True)
class PreparedImage:
    """One image that a child process has decoded, ready for detectors.

    Attributes:
        facts: Properties of the file.
        pixels: For each requested preprocessing, a writable (height, width, 3) uint8 array. None if
            the preprocessing does not resize.
        provenance: What the file states about its origin (see `images.provenance`). None if the
            file states nothing, or if provenance was not requested.
        seconds: Time for decoding and preparing in the child.
        data: The bytes of the file, if it may be decoded again. Otherwise None.
    """

    facts: ImageFileFacts
    pixels: tuple[batch.Pixels | None, ...]
    provenance: Provenance | None
    seconds: float
    data: bytes | None = None


class DecoderProcess(ChildProcess):
    """A child process that answers one request at a time within a wall limit.

    A crash or a hang affects only the image that caused it. The process starts at the first use. It
    is started again after it died, and once when a request first needs torch. Only one thread at a
    time may use this object. Use it as a context manager, or call `close()`.

    Args:
        limits: Limits on the size of an image.
        wall_limit_s: Seconds that one image may take.
        memory_limit_bytes: Memory of the process in addition to that of the libraries. None for the
            memory that the largest image within the limits may take.
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
        """Decode an image in the child process, with the same result as `decode_image`.

        Raises:
            ImageRefused: The image is rejected, the child crashed (DECODER_CRASHED), or it took too
                long (DECODE_TIMEOUT).
        """
        with closing(self.peek(data)) as peeked:
            return peeked.decode()

    def prepare(
        self,
        data: bytes,
        request: DecodeRequest,
        turn: AbstractContextManager[object] | None = None,
    ) -> PreparedImage:
        """Decode an image and prepare the requested tensors.

        If provenance is requested, a file with a C2PA manifest may kill the process or take too
        long. It is then decoded again without the native code that reads manifests. An image must
        not lose its verdict because its provenance cannot be read. Apart from starting the process,
        this takes at most twice the wall limit, or longer for a large image. An image is large if
        decoding needs over 384 MiB, or if it has over 50 million pixels.

        Args:
            data: The bytes of the file.
            request: The tensors to prepare.
            turn: A context manager that is entered to decode a large image, such as a lock. The
                time for entering it does not count towards the wall limit.

        Raises:
            ImageRefused: The image is rejected, or the child crashed or took too long.
        """
        try:
            report, pixels = self._answer_with_turn(data, request, turn)
        except ImageRefused as refusal:
            is_suspect = (
                refusal.status in (Status.DECODER_CRASHED, Status.DECODE_TIMEOUT)
                and request.provenance is not None
            )
            if not is_suspect or not has_manifest(data, refusal.facts.format):
                raise
            without_native = request.model_copy(update={"native": False})
            report, pixels = self._answer_with_turn(data, without_native, turn)
        return PreparedImage(
            report.facts,
            tuple(_split_tensors(pixels, request.shapes)),
            report.provenance,
            report.seconds,
        )

    def peek(self, data: bytes, request: DecodeRequest = _PIXELS) -> "PeekedFile":
        """Send a file to the child, which reads its header, and decodes it unless it is large.

        An image is large if decoding needs over 384 MiB, or if it has over 50 million pixels. A
        large image waits, so that the caller can first reserve memory for it. Call `finish`,
        `decode`, or `close` of the result before you send another file.

        Args:
            data: The bytes of the file.
            request: The tensors to prepare. The default requests the RGB pixels instead.

        Returns:
            The file, with the estimated cost of decoding it.

        Raises:
            ImageRefused: The child rejected the image, crashed (DECODER_CRASHED), or took too long
                (DECODE_TIMEOUT).
        """
        self.start(request)
        sidecar = get_sidecar(data) if request.provenance is not None else b""
        request_json = _serialize_request(
            request.model_copy(update={"sidecar_bytes": len(sidecar)}) if sidecar else request
        )
        child, answer = self._child, None
        with self._exchange(self._wall_limit_s) as (answers, deadline):
            self._send(pack_request(request_json, (data, sidecar)))
            answer = self._read_first(data, request, answers)
        if isinstance(answer, DecodeCost):
            if not deadline.has_passed:
                demand = _add_parent_memory(answer, len(data))
                return PeekedFile(self, data, request, demand, None)
            answer = None
        return PeekedFile(
            self, data, request, _SMALL, self._require_pixels(answer, data, child, deadline)
        )

    def finish(self, data: bytes, request: DecodeRequest, timeout_factor: float) -> Answer:
        """Let the child decode the large image whose header `peek` has read.

        Use `PeekedFile.finish` instead, which calls this method.

        Args:
            data: The bytes of the file, as passed to `peek`.
            request: The request, as passed to `peek`.
            timeout_factor: Factor by which the wall limit is multiplied.

        Returns:
            The child's `Report` on the file, and the bytes of the prepared pixels.

        Raises:
            ImageRefused: The child rejected the image, crashed (DECODER_CRASHED), or took too long
                (DECODE_TIMEOUT).
        """
        child, answer = self._child, None
        with self._exchange(self._wall_limit_s * timeout_factor) as (answers, deadline):
            self._send((READY,))
            sizes = ANSWER.unpack(answers.read(ANSWER.size))
            answer = self._read_answer(data, request, answers, *sizes)
        return self._require_pixels(answer, data, child, deadline)

    def _command(self) -> list[str]:
        """Return the command of a decoder process.

        With `-P`, a file `PIL.py` next to the program is not imported.
        """
        limits_json, library = self._limits.model_dump_json(), "torch" if self._has_torch else ""
        return [
            sys.executable,
            "-P",
            decoder_child.__file__,
            str(self._memory_limit_bytes),
            str(self._wall_limit_s),
            limits_json,
            library,
        ]

    def start(self, request: DecodeRequest | None = None) -> None:
        """Start the child with the libraries that a request needs, and wait until it is ready.

        Nothing happens if such a child is already running. A child that hangs during its start is
        replaced once.

        Raises:
            TouchstoneError: The child does not start.
        """
        if request is not None and request.needs_torch and not self._has_torch:
            self._has_torch = True
            self.close()
        if self.pid is not None:
            return
        try:
            is_ready = any(
                self._spawn(self._command(), _make_environment(), READY, limit_s, folder=PACKAGE)
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
                f"the decoder process did not start: it {self._describe_exit(self._child)}",
                hint=f"run {command} to see the error",
            )

    def _answer_with_turn(
        self, data: bytes, request: DecodeRequest, turn: AbstractContextManager[object] | None
    ) -> Answer:
        with closing(self.peek(data, request)) as peeked:
            if turn is None or not peeked.demand.is_large:
                return peeked.finish()
            with turn:
                return peeked.finish()

    def _require_pixels(
        self,
        answer: Answer | None,
        data: bytes,
        child: "subprocess.Popen[bytes] | None",
        deadline: ChildDeadline,
    ) -> Answer:
        """Return an answer with pixels.

        Raises:
            ImageRefused: There is no such answer.
        """
        if deadline.has_passed:
            self.close()
            reason = f"longer than {deadline.limit_s:g} s"
            raise ImageRefused(
                Status.DECODE_TIMEOUT, reason, inspect_bytes(data), limit=deadline.limit_s
            )
        if answer is None:
            reason = f"the decoder process {self._describe_exit(child)}"
            raise ImageRefused(Status.DECODER_CRASHED, reason, inspect_bytes(data))
        report, _ = answer
        if report.refused is not None:
            raise ImageRefused(facts=report.facts, **dict(report.refused))
        return answer

    def _read_first(
        self, data: bytes, request: DecodeRequest, answers: io.BufferedReader
    ) -> DecodeCost | Answer | None:
        """Read the demand of a large image, or the answer.

        Raises:
            ValueError: It is neither.
        """
        sizes = ANSWER.unpack(answers.read(ANSWER.size))
        if sizes[0] > 0:
            return self._read_answer(data, request, answers, *sizes)
        demand = DecodeCost(*DEMAND.unpack(answers.read(DEMAND.size)))
        if demand.pixels > self._limits.max_pixels:
            raise ValueError(
                f"image has {demand.pixels} pixels, limit is {self._limits.max_pixels}"
            )
        return demand

    def _read_answer(
        self,
        data: bytes,
        request: DecodeRequest,
        answers: io.BufferedReader,
        report_size: int,
        pixels_size: int,
    ) -> Answer | None:
        """Read an answer of these sizes, or return None if the child died before it was complete.

        Raises:
            ValueError: The answer does not match the request.
        """
        if report_size > MAX_REPORT_BYTES:
            raise ValueError(f"report is {report_size} bytes, limit is {MAX_REPORT_BYTES}")
        report_json = answers.read(report_size)
        if len(report_json) < report_size:
            return None
        report = self._check_report(report_json, data)
        expected = 0 if report.refused is not None else _count_pixel_bytes(request, report.facts)
        if pixels_size != expected:
            raise ValueError(f"pixels are {pixels_size} bytes, expected {expected}")
        pixels = bytearray(expected)
        return (report, pixels) if answers.readinto(pixels) == expected else None

    def _check_report(self, report_json: bytes, data: bytes) -> Report:
        """Parse a report, and check that it can belong to this file.

        Raises:
            ValueError: It is invalid, or belongs to another file.
        """
        report = Report.model_validate_json(report_json)
        facts, expected = report.facts, inspect_bytes(data)
        if (facts.sha256, facts.format) != (
            expected.sha256,
            expected.format,
        ) or facts.flags != tuple(sorted(FLAG_MEANING.keys() & facts.flags)):
            raise ValueError("the report has the facts of another file")
        if report.refused is None:
            try:
                # The child decodes the JPEG preview of a RAW file.
                self._limits.check_size(
                    *_size(facts), len(data), "JPEG" if facts.format == "RAW" else facts.format
                )
            except InputError as error:
                raise ValueError(str(error)) from None
        return report


class PeekedFile:
    """A file that was sent to a child process, which has read its header.

    The child has also decoded the image, unless it is large: decoding needs over 384 MiB, or the
    image has over 50 million pixels. A large image is decoded only when `decode` or `finish` is
    called, so that the caller can first reserve `demand.peak_bytes` of memory. Call `decode` to get
    an image, `finish` to get the child's answer, or `close`.

    Attributes:
        demand: The number of pixels, and the peak memory for decoding in the child and in this
            process together. Both are 0 if the image is already decoded.
    """

    def __init__(
        self,
        child: DecoderProcess,
        data: bytes,
        request: DecodeRequest,
        demand: DecodeCost,
        answer: Answer | None,
    ) -> None:
        self.demand = demand
        self._child, self._data, self._request, self._answer = child, data, request, answer
        self._is_pending = answer is None
        self._idle: queue.SimpleQueue[DecoderProcess] | None = None

    @property
    def facts(self) -> ImageFileFacts:
        """The properties of the file that are known without decoding it."""
        return inspect_bytes(self._data)

    def decode(self) -> DecodedImage:
        """Wait until the child has decoded the image, and return the image. Call it only once.

        The file must have been sent with a request for RGB pixels, the default of `peek`.

        Raises:
            ImageRefused: The image is rejected.
        """
        report, pixels = self.finish()
        return DecodedImage(Image.frombytes("RGB", _size(report.facts), pixels), report.facts)

    def finish(self) -> Answer:
        """Wait until the child has decoded and prepared the image. Call it only once.

        Returns:
            The child's `Report` on the file, and the bytes of the prepared pixels.

        Raises:
            ImageRefused: The image is rejected.
        """
        answer, self._answer = self._answer, None
        if answer is not None:
            return answer
        self._is_pending = False
        try:
            return self._child.finish(self._data, self._request, self.demand.timeout_factor)
        finally:
            self._return_child()

    def close(self) -> None:
        """Cancel a large image that is not decoded yet, by ending the child process.

        Does nothing if the image is decoded.
        """
        if self._is_pending:
            self._is_pending = False
            self._child.close()
            self._return_child()

    def return_child_to(self, idle: "queue.SimpleQueue[DecoderProcess]") -> None:
        """Put the child process into a queue of idle children as soon as this file is finished.

        That is now if the image is already decoded. Otherwise it is after `decode`, `finish`, or
        `close`.
        """
        self._idle = idle
        if not self._is_pending:
            self._return_child()

    def _return_child(self) -> None:
        if self._idle is not None:
            self._idle.put(self._child)


class IsolatedDecoders:
    """Decode images in a fixed number of child processes, each of which takes one image at a time.

    Several threads may share this object. A call blocks until a child is idle. Call `close` at the
    end, when no image is being decoded.

    Args:
        limits: Limits on the size of an image.
        processes: Number of children. Each starts at its first use.
        wall_limit_s: Seconds that one image may take.
        memory_limit_bytes: Memory of each child in addition to that of the libraries. None for the
            memory that the largest image within the limits may take.
        formats: Formats that `prepare` accepts, as recognised from the content of a file. None
            accepts all formats.
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
        self._idle: queue.SimpleQueue[DecoderProcess] = queue.SimpleQueue()
        for child in self._children:
            self._idle.put(child)
        self._large_image_lock = threading.Lock()

    def start(self, preprocessings: Sequence[Preprocessing] = ()) -> None:
        """Start every child with the libraries that these preprocessings need.

        Raises:
            TouchstoneError: A child does not start.
        """
        request = DecodeRequest(preprocessings=tuple(preprocessings))
        with ThreadPoolExecutor(len(self._children)) as threads:
            for started in [threads.submit(child.start, request) for child in self._children]:
                started.result()

    def decode(self, data: bytes) -> DecodedImage:
        """Decode an image in an idle child. Blocks until a child is idle.

        Raises:
            ImageRefused: The image is rejected.
        """
        with closing(self.peek(data)) as peeked:
            return peeked.decode()

    def peek(self, data: bytes) -> PeekedFile:
        """Send a file to a child, which reads its header, and decodes it unless it is large.

        Blocks until a child is idle. An image is large if decoding needs over 384 MiB, or if it has
        over 50 million pixels. A large image keeps its child occupied until you call `decode`,
        `finish`, or `close` of the result.

        Raises:
            ImageRefused: The image is rejected.
        """
        child = self._idle.get()
        try:
            peeked = child.peek(data)
        except BaseException:
            self._idle.put(child)
            raise
        peeked.return_child_to(self._idle)
        return peeked

    def prepare(self, data: bytes, request: DecodeRequest) -> PreparedImage:
        """Decode a file and prepare the requested tensors. Blocks until a child is idle.

        The pixels are the same as those of `BatchDecoder`. Large images are decoded one at a time.
        Time spent waiting does not count towards the wall limit.

        Raises:
            ImageRefused: The image is rejected, its format is not accepted, the child crashed
                (DECODER_CRASHED), or it took too long (DECODE_TIMEOUT).
        """
        self._reject_early(data)
        child = self._idle.get()
        try:
            return child.prepare(data, request, self._large_image_lock)
        finally:
            self._idle.put(child)

    def close(self) -> None:
        """End all child processes."""
        for child in self._children:
            child.close()

    def _reject_early(self, data: bytes) -> None:
        """Reject a file that can be rejected without a decoder."""
        try:
            if not data:
                raise InputError(Status.EMPTY_FILE, "0 bytes")
            self._limits.check_bytes(len(data))
            format_name = sniff_format(data)
            if format_name is None or (
                self._formats is not None and format_name not in self._formats
            ):
                description = (
                    describe_unsupported(data) if format_name is None else f"a {format_name} file"
                )
                accepted = (
                    f"; accepted formats: {', '.join(self._formats)}"
                    if self._formats is not None
                    else ""
                )
                raise InputError(Status.UNSUPPORTED_FORMAT, description + accepted)
        except InputError as error:
            raise ImageRefused.because(error, inspect_bytes(data)) from None


def _make_environment() -> dict[str, str]:
    variables = {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name.startswith("PYTHON")
    }
    variables.pop(SEARCH_PATH, None)
    return variables | _FEW_THREADS | safe_variables()


def _add_parent_memory(demand: DecodeCost, encoded_bytes: int) -> DecodeCost:
    """Return the demand of an image in both processes together.

    The pixels take four bytes each in the child, leave it as three, arrive as three, and take four
    more here. Both processes hold the file.
    """
    return DecodeCost(
        demand.pixels, encoded_bytes + max(demand.peak_bytes, demand.pixels * (4 + 3 + 3 + 4))
    )


def _size(facts: ImageFileFacts) -> tuple[int, int]:
    return facts.width or 0, facts.height or 0


def _count_pixel_bytes(request: DecodeRequest, facts: ImageFileFacts) -> int:
    return (
        3 * prod(_size(facts))
        if request.preprocessings is None
        else sum(prod(shape) for shape in request.shapes if shape)
    )


def _split_tensors(
    pixels: bytearray, shapes: Sequence[tuple[int, int, int] | None]
) -> Iterator[batch.Pixels | None]:
    offset = 0
    for shape in shapes:
        if shape is None:
            yield None
        else:
            yield np.frombuffer(pixels, np.uint8, prod(shape), offset).reshape(shape)
            offset += prod(shape)


@lru_cache(maxsize=64)
def _serialize_request(request: DecodeRequest) -> bytes:
    return request.model_dump_json().encode()
