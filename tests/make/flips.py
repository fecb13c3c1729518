"""Good files of every format with bits of their headers changed: case n is the same bytes wherever
the fixtures are the same.

python -m tests.make.flips 4711 > case      writes one of them, for a closer look
"""

import random
import struct
import sys
import zlib
from functools import cache

import pytest

from tests.make import images

# How many examples of hypothesis a default run takes, and how many all of `make test-memory`.
SWEEPS = [200, pytest.param(2000, marks=pytest.mark.slow)]
_EXTREMES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
_LARGEST = 60_000  # bytes; larger fixtures make it slow and have no other headers


@cache
def _files() -> dict[str, bytes]:
    made = {name: make() for name, (_, make) in [*images.SOUND.items(), *images.ODD.items()]}
    return {name: data for name, data in sorted(made.items()) if len(data) <= _LARGEST}


def flipped(case: int) -> tuple[str, bytes]:
    """The fixture that was taken, and its bytes with one to six changes: most near the start, some
    at the end, where TIFFs keep theirs.
    """
    draw = random.Random(case)
    name = draw.choice(list(_files()))
    data = bytearray(_files()[name])
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        near = min(len(data), draw.choice((32, 64, 256, 1024)))
        at = (
            draw.randrange(near)
            if draw.random() < 0.8
            else len(data) - 1 - draw.randrange(min(512, len(data)))
        )
        how = draw.random()
        if how < 0.4:
            data[at] ^= 1 << draw.randrange(8)
        elif how < 0.6:
            data[at] = draw.choice(_EXTREMES)
        else:
            data[at : at + draw.choice((2, 4, 8))] = _number(draw)
    return name, _with_checksums(bytes(data)) if draw.random() < 0.8 else bytes(data)


def _number(draw: random.Random) -> bytes:
    """A field of two to eight bytes that somebody may take for a size: nothing, all, the sign bit
    alone, all but the sign bit, anything.
    """
    size = draw.choice((2, 4, 8))
    ends = (b"\x80" + bytes(size - 1), bytes(size - 1) + b"\x80", b"\x7f" + b"\xff" * (size - 1))
    return draw.choice((bytes(size), b"\xff" * size, *ends, draw.randbytes(size)))


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold now; others as they are."""
    if not data.startswith(b"\x89PNG"):
        return data
    out, at = bytearray(data), 8
    while at + 12 <= len(out) and (end := at + 8 + struct.unpack_from(">I", out, at)[0]) + 4 <= len(
        out
    ):
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


if __name__ == "__main__":
    sys.stdout.buffer.write(flipped(int(sys.argv[1]))[1])
