"""The decoder process: reads encoded bytes on stdin, answers with facts and RGB pixels on stdout. Started by `safe_decoder` alone.

Request: length (uint64), bytes. Answer: lengths of JSON and pixels (2 × uint64), JSON, pixels. One `READY` byte once it can serve.
Before it decodes a large image the child asks: a JSON of length 0, then a `DEMAND`; it goes on when it gets a `READY` byte.
`serve` is the loop of any such child; what it makes of a request is the caller's.
"""

import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from typing import BinaryIO, Literal

from pydantic import Field, FiniteFloat

from ray_app.config import Frozen
from ray_app.errors import InputError, Status
from ray_app.images.decode import decode_image
from ray_app.images.facts import ImageFileFacts, ImageRefused
from ray_app.images.limits import ImageLimits
from ray_app.images.memory import Admit, Demand
from ray_app.images.provenance import Provenance

READY = b"+"
REQUEST = struct.Struct("<Q")
ANSWER = struct.Struct("<QQ")
DEMAND = struct.Struct("<QQ")  # pixels, bytes at the peak


class DecodeRefusal(Frozen):
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

    @classmethod
    def of(cls, error: InputError) -> "DecodeRefusal":
        """What travels of a refusal."""
        return cls.model_validate(error, from_attributes=True)


class Report(Frozen):
    """The JSON of an answer. `provenance` and `seconds` come from a child that prepares as well."""

    facts: ImageFileFacts
    refused: DecodeRefusal | None = None
    provenance: Provenance | None = None
    seconds: FiniteFloat = Field(default=0.0, ge=0)


Answer = tuple[Report, Sequence[bytes | memoryview]]


def main(arguments: list[str]) -> None:
    """Serve until stdin closes. Arguments: memory limit in bytes, wall limit in seconds, ImageLimits as JSON."""
    limits = ImageLimits.model_validate_json(arguments[2])
    serve(lambda data, admit: _decode(data, limits, admit), int(arguments[0]), float(arguments[1]))


def serve(answer_to: Callable[[bytes, Admit], Answer], memory_limit_bytes: int, wall_limit_s: float) -> None:
    """Answer requests one after another until stdin closes; the memory limit is one of address space, libraries included."""
    _limit(resource.RLIMIT_AS, memory_limit_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    answers = _claim_stdout()
    answers.write(READY)
    answers.flush()
    requests = sys.stdin.buffer

    def patience(times: float) -> None:
        # The parent kills us at the wall limit; should it die first, the kernel's default for SIGALRM does, hung C code or not.
        signal.setitimer(signal.ITIMER_REAL, times and 2 * wall_limit_s * times + 1)

    def admit(demand: Demand) -> None:
        if not demand.is_large:
            return
        patience(0)  # others may decode before us
        answers.write(ANSWER.pack(0, DEMAND.size) + DEMAND.pack(*demand))
        answers.flush()
        if requests.read(len(READY)) != READY:
            sys.exit()
        patience(demand.patience)

    def answer(data: bytes) -> None:
        patience(1)
        report, blobs = answer_to(data, admit)
        patience(0)
        text = report.model_dump_json().encode()
        for part in (ANSWER.pack(len(text), sum(map(len, blobs))), text, *blobs):
            answers.write(part)
        answers.flush()

    while header := requests.read(REQUEST.size):
        answer(requests.read(*REQUEST.unpack(header)))


def _decode(data: bytes, limits: ImageLimits, admit: Admit) -> Answer:
    try:
        image = decode_image(data, limits, admit)
    except ImageRefused as refusal:
        return Report(facts=refusal.facts, refused=DecodeRefusal.of(refusal)), ()
    return Report(facts=image.facts), [image.pixels.tobytes()]


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _claim_stdout() -> BinaryIO:
    """Keep the pipe to ourselves: a C library that prints must not write into an answer."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main(sys.argv[1:])
