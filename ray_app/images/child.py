"""The decoder process: reads encoded bytes on stdin, answers with facts and RGB pixels on stdout. Started by `safe_decoder` alone.

Request: length (uint64), bytes. Answer: lengths of JSON and pixels (2 × uint64), JSON, pixels. One `READY` byte once it can serve.
"""

import dataclasses
import json
import os
import resource
import signal
import struct
import sys
from typing import Any, BinaryIO

from ray_app.images.decoding import decode_image
from ray_app.images.facts import ImageRefused
from ray_app.images.limits import ImageLimits

READY = b"+"
REQUEST = struct.Struct("<Q")
ANSWER = struct.Struct("<QQ")


def main(arguments: list[str]) -> None:
    """Serve until stdin closes. Arguments: memory limit in bytes, wall limit in seconds, ImageLimits as JSON."""
    memory_limit_bytes, wall_limit_s = int(arguments[0]), float(arguments[1])
    limits = ImageLimits.model_validate_json(arguments[2])
    _limit(resource.RLIMIT_AS, memory_limit_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    answers = _claim_stdout()
    answers.write(READY)
    answers.flush()
    requests = sys.stdin.buffer
    while header := requests.read(REQUEST.size):
        data = requests.read(*REQUEST.unpack(header))
        # The parent kills us at the wall limit; should it die first, the kernel's default for SIGALRM does, hung C code or not.
        signal.setitimer(signal.ITIMER_REAL, 2 * wall_limit_s + 1)
        report, pixels = _decode(data, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        text = json.dumps(report).encode()
        for part in (ANSWER.pack(len(text), len(pixels)), text, pixels):
            answers.write(part)
        answers.flush()


def _decode(data: bytes, limits: ImageLimits) -> tuple[dict[str, Any], bytes]:
    try:
        image = decode_image(data, limits)
    except ImageRefused as refusal:
        return {"status": refusal.status, "detail": refusal.detail, "facts": dataclasses.asdict(refusal.facts)}, b""
    return {"facts": dataclasses.asdict(image.facts)}, image.pixels.tobytes()


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
