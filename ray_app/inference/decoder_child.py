"""The decoder process: encoded bytes in, RGB pixels or prepared tensors out. `decoder_pool` alone
starts it; no torch, Ray or secrets.

Request: length (uint64); length of a JSON `DecodeRequest` (uint32), the JSON, the file, its sidecar
if it has one. Answer: lengths of JSON and pixels (2 × uint64), a JSON `Report`, pixels: RGB, or one
tensor after another. One `READY` byte once it can serve. Before it decodes a large image the child
sends a JSON of length 0, then a `DEMAND`; it decodes when it gets a `READY` byte.

Runs as a file, not as a module of `inference`, whose other modules bring Arrow: it must be up soon
and stay small.
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
from ray_app.detectors.preprocessing import Preprocessing, Resize, ResizeMode
from ray_app.errors import InputError, Status
from ray_app.images.decode import PeekedImage, peek_image
from ray_app.images.facts import ImageFileFacts, ImageRefused, with_texture
from ray_app.images.limits import ImageLimits
from ray_app.images.provenance import (
    FileWithSidecar,
    Provenance,
    ProvenancePolicy,
    ProvenanceReader,
)

DEMAND = struct.Struct("<QQ")  # pixels, bytes at the peak
_STATM = Path("/proc/self/statm")


class DecodeRequest(Frozen):
    """What is to be made of a file: its RGB pixels (null), or one tensor per preprocessing, but for
    those that keep sizes; how its provenance is read; whether its facts have what is measured on
    pixels; and how many of the last bytes are its sidecar's.
    """

    preprocessings: tuple[Preprocessing, ...] | None = None
    resize: ResizeMode = "exact"
    provenance: ProvenancePolicy | None = None
    native: bool = True
    measured: bool = False
    sidecar_bytes: int = Field(default=0, ge=0)

    @property
    def shapes(self) -> tuple[tuple[int, int, int] | None, ...]:
        """(height, width, 3) of each; None where the size is kept."""
        return tuple((*each.shape, 3) if each.shape else None for each in self.preprocessings or ())

    @property
    def needs_torch(self) -> bool:
        """Whether torch may resize one of them: importing it takes longer than an image may."""
        return any(
            each.resampler == "torch" or self.resize == "fast" for each in self.preprocessings or ()
        )


class Refused(Frozen):
    """Why an image has no pixels: the fields of an InputError that a decoder raises."""

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
    """The JSON of an answer. `seconds`: decoding and preparing."""

    facts: ImageFileFacts
    refused: Refused | None = None
    provenance: Provenance | None = None
    seconds: FiniteFloat = Field(default=0.0, ge=0)


Answer = tuple[Report, Sequence[bytes | memoryview]]


def main(arguments: list[str]) -> None:
    """Serve until stdin closes. Arguments: memory beyond the libraries in bytes, wall limit in s,
    ImageLimits as JSON, `torch` or ``.
    """
    limits, wall_limit_s = ImageLimits.model_validate_json(arguments[2]), float(arguments[1])
    if arguments[3] == "torch":
        squash = Resize(mode="squash", size=2)
        Preprocessing(resize=squash, resampler="torch").prepare(Image.new("RGB", (4, 4)))
    # Address space that the libraries take: torch for CUDA reserves gigabytes of it.
    mapped = int(_STATM.read_text().split()[0]) * resource.getpagesize() if _STATM.exists() else 0
    _limit(resource.RLIMIT_AS, mapped + int(arguments[0]))
    _limit(resource.RLIMIT_CORE, 0)
    _serve(limits, wall_limit_s)


def _serve(limits: ImageLimits, wall_limit_s: float) -> None:
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a C library that prints must not write into an answer
    answers.write(READY)
    answers.flush()

    def patience(times: float) -> None:
        # The parent kills us at the wall limit; should it die first, the kernel's default for
        # SIGALRM does, hung C code or not.
        signal.setitimer(signal.ITIMER_REAL, times and 2 * wall_limit_s * times + 1)

    while request := read_request(requests):
        text, data = request
        patience(1)
        wanted = _wanted(text)
        if wanted.sidecar_bytes:
            data = FileWithSidecar(data[: -wanted.sidecar_bytes], data[-wanted.sidecar_bytes :])
        started = time.perf_counter()
        try:
            peeked = peek_image(data, limits)
            if peeked.demand.is_large:
                patience(0)  # Other processes may decode first.
                write_answer(answers, b"", [DEMAND.pack(*peeked.demand)])
                if requests.read(len(READY)) != READY:
                    sys.exit()
                patience(peeked.demand.patience)
            report, blobs = _answer(peeked, data, wanted, limits.max_text_bytes, started)
        except ImageRefused as refusal:
            refused = Refused.model_validate(refusal, from_attributes=True)
            report, blobs = Report(facts=refusal.facts, refused=refused), ()
        patience(0)
        write_answer(answers, report.model_dump_json().encode(), blobs)


def _answer(
    peeked: PeekedImage, data: bytes, wanted: DecodeRequest, max_text_bytes: int, started: float
) -> Answer:
    """Decode and prepare an image. Raises ImageRefused."""
    image = peeked.decode()
    facts = with_texture(image).facts if wanted.measured else image.facts
    try:
        tensors = [
            each.prepare(image.pixels, wanted.resize).data.cast("B")
            for each in wanted.preprocessings or ()
            if each.shape
        ]
    except InputError as error:
        raise ImageRefused.because(error, facts) from error.__cause__
    provenance = None
    if wanted.provenance is not None:
        provenance = _reader(wanted.provenance, max_text_bytes).read(
            data, facts.format, native=wanted.native, pixels=image.pixels
        )
    pixels = [image.pixels.tobytes()] if wanted.preprocessings is None else tensors
    return Report(facts=facts, provenance=provenance, seconds=time.perf_counter() - started), pixels


@lru_cache(maxsize=16)
def _wanted(text: bytes) -> DecodeRequest:
    return DecodeRequest.model_validate_json(text)


@lru_cache(maxsize=1)
def _reader(policy: ProvenancePolicy, max_text_bytes: int) -> ProvenanceReader:
    return ProvenanceReader(policy, max_text_bytes)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


if __name__ == "__main__":
    main(sys.argv[1:])
