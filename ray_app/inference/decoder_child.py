"""Run the decoder process, which turns encoded bytes into RGB pixels or prepared tensors.

Only `decoder_pool` starts this process. The process has no Ray and no secrets, and imports torch
only if torch resizes images.

A request has these parts, in order:

- the number of bytes that follow (uint64);
- the length of the JSON (uint32);
- a `DecodeRequest` as JSON;
- the file, and its sidecar if it has one.

An answer has these parts, in order:

- the lengths of the JSON and of the pixels (2 × uint64);
- a `Report` as JSON;
- the pixels: either RGB, or one tensor after another.

The child sends one `READY` byte when it can serve. Before it decodes a large image, it sends an
answer with an empty JSON and a `DEMAND`: the number of pixels, and the peak memory in bytes. Then
it waits for a `READY` byte.

The child runs as a file, not as a module of `inference`, because the other modules import Arrow. It
must start fast and stay small.
"""

import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import Literal

# Load this very package, but no other module from the folder that contains it.
if __name__ == "__main__":
    package = util.spec_from_file_location(
        "ray_app", Path(__file__).resolve().parents[1] / "__init__.py"
    )
    assert package is not None
    assert package.loader is not None
    sys.modules["ray_app"] = util.module_from_spec(package)
    package.loader.exec_module(sys.modules["ray_app"])

from PIL import Image
from pydantic import Field, FiniteFloat

from ray_app.child_messages import READY, read_request, write_answer
from ray_app.config import Frozen
from ray_app.detectors.preprocessing import Preprocessing, Resize
from ray_app.errors import InputError, Status
from ray_app.images.decode import PeekedImage, peek_image
from ray_app.images.facts import ImageFileFacts, ImageRefused, add_texture
from ray_app.images.limits import ImageLimits
from ray_app.images.provenance import (
    FileWithSidecar,
    Provenance,
    ProvenancePolicy,
    ProvenanceReader,
)

DEMAND = struct.Struct("<QQ")  # Pixels, and peak memory in bytes.
_STATM = Path("/proc/self/statm")


class DecodeRequest(Frozen):
    """A request to a child process to decode a file, and to prepare the image for detectors.

    Attributes:
        preprocessings: The preprocessings to apply. Each preprocessing that resizes gives one
            tensor. None requests the RGB pixels instead of tensors.
        provenance: How to read what the file states about its origin. None does not read it.
        native: Whether native code may read a C2PA manifest. False for a file on which the child
            crashed or took too long before.
        measured: Whether the answer has properties of the image that are measured on its pixels,
            such as `texture`.
        sidecar_bytes: The size of the sidecar, a second file with statements on the origin. It is
            sent after the file. 0 for no sidecar.
    """

    preprocessings: tuple[Preprocessing, ...] | None = None
    provenance: ProvenancePolicy | None = None
    native: bool = True
    measured: bool = False
    sidecar_bytes: int = Field(default=0, ge=0)

    @property
    def shapes(self) -> tuple[tuple[int, int, int] | None, ...]:
        """For each of `preprocessings`, the (height, width, 3) of the tensor that it gives.

        None for a preprocessing that does not resize, which gives no tensor.
        """
        return tuple(
            (*preprocessing.shape, 3) if preprocessing.shape else None
            for preprocessing in self.preprocessings or ()
        )

    @property
    def needs_torch(self) -> bool:
        """Whether resizing may need torch.

        Importing torch takes longer than the wall limit of an image. Therefore a child imports it
        when it starts, before the first request.
        """
        return any(
            preprocessing.resampler == "torch" for preprocessing in self.preprocessings or ()
        )


class Refused(Frozen):
    """The reason why an image has no pixels: the fields of the InputError that was raised."""

    status: Literal[
        Status.EMPTY_FILE,
        Status.UNSUPPORTED_FORMAT,
        Status.CORRUPT_IMAGE,
        Status.TRUNCATED_IMAGE,
        Status.IMAGE_TOO_LARGE,
        Status.METADATA_TOO_LARGE,
    ]
    detail: str = Field(max_length=1000)
    limit: FiniteFloat | None = None
    observed: FiniteFloat | None = None


class Report(Frozen):
    """The JSON part of the answer to a request.

    Attributes:
        facts: Properties of the file.
        refused: The reason why there are no pixels. None if there are pixels.
        provenance: What the file states about its origin. None if not requested or not stated.
        seconds: The time for decoding and preparing.
    """

    facts: ImageFileFacts
    refused: Refused | None = None
    provenance: Provenance | None = None
    seconds: FiniteFloat = Field(default=0.0, ge=0)


Answer = tuple[Report, Sequence[bytes | memoryview]]


def main(arguments: list[str]) -> None:
    """Serve requests until stdin closes.

    Args:
        arguments: Four texts: the memory in bytes in addition to that of the libraries; the wall
            limit in seconds; `ImageLimits` as JSON; and `torch` to import torch, or "".
    """
    limits, wall_limit_s = ImageLimits.model_validate_json(arguments[2]), float(arguments[1])
    if arguments[3] == "torch":
        squash = Resize(mode="squash", size=2)
        Preprocessing(resize=squash, resampler="torch").prepare(Image.new("RGB", (4, 4)))
    # Address space that the libraries take: torch for CUDA reserves gigabytes of it.
    mapped = int(_STATM.read_text().split()[0]) * resource.getpagesize() if _STATM.exists() else 0
    _set_limit(resource.RLIMIT_AS, mapped + int(arguments[0]))
    _set_limit(resource.RLIMIT_CORE, 0)
    _serve(limits, wall_limit_s)


def _serve(limits: ImageLimits, wall_limit_s: float) -> None:
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # A C library that prints must not write into an answer.
    answers.write(READY)
    answers.flush()

    def set_alarm(times: float) -> None:
        # The parent kills this process at the wall limit. If the parent dies first, SIGALRM ends
        # the process, even if C code hangs.
        signal.setitimer(signal.ITIMER_REAL, times and 2 * wall_limit_s * times + 1)

    while request := read_request(requests):
        request_json, data = request
        set_alarm(1)
        decode_request = _parse_request(request_json)
        if decode_request.sidecar_bytes:
            data = FileWithSidecar(
                data[: -decode_request.sidecar_bytes], data[-decode_request.sidecar_bytes :]
            )
        started = time.perf_counter()
        try:
            peeked = peek_image(data, limits)
            if peeked.demand.is_large:
                set_alarm(0)  # Other processes may decode first.
                write_answer(answers, b"", [DEMAND.pack(*peeked.demand)])
                if requests.read(len(READY)) != READY:
                    sys.exit()
                set_alarm(peeked.demand.timeout_factor)
            report, blobs = _decode_request(
                peeked, data, decode_request, limits.max_text_bytes, started
            )
        except ImageRefused as refusal:
            rejection = Refused.model_validate(refusal, from_attributes=True)
            report, blobs = Report(facts=refusal.facts, refused=rejection), ()
        set_alarm(0)
        write_answer(answers, report.model_dump_json().encode(), blobs)


def _decode_request(
    peeked: PeekedImage, data: bytes, request: DecodeRequest, max_text_bytes: int, started: float
) -> Answer:
    """Decode and prepare an image.

    Raises:
        ImageRefused: The image is rejected.
    """
    image = peeked.decode()
    facts = add_texture(image).facts if request.measured else image.facts
    try:
        tensors = [
            preprocessing.prepare(image.pixels).data.cast("B")
            for preprocessing in request.preprocessings or ()
            if preprocessing.shape
        ]
    except InputError as error:
        raise ImageRefused.because(error, facts) from error.__cause__
    provenance = None
    if request.provenance is not None:
        provenance = _reader(request.provenance, max_text_bytes).read(
            data, facts.format, native=request.native, pixels=image.pixels
        )
    pixels = [image.pixels.tobytes()] if request.preprocessings is None else tensors
    return Report(facts=facts, provenance=provenance, seconds=time.perf_counter() - started), pixels


@lru_cache(maxsize=16)
def _parse_request(text: bytes) -> DecodeRequest:
    return DecodeRequest.model_validate_json(text)


@lru_cache(maxsize=1)
def _reader(policy: ProvenancePolicy, max_text_bytes: int) -> ProvenanceReader:
    return ProvenanceReader(policy, max_text_bytes)


def _set_limit(resource_id: int, limit: int) -> None:
    _, hard = resource.getrlimit(resource_id)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource_id, (limit, limit))


if __name__ == "__main__":
    main(sys.argv[1:])
