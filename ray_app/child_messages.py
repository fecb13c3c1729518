"""Messages between this process and its children, over pipes (`read_request`, `write_answer`).

A request is the length of the rest (uint64), the length of a text (uint32), the text, and data. An
answer is the lengths of a text and of data (2 × uint64), the text, and the data. A child writes one
`READY` byte as soon as it can serve.

The child of a callable runs this file in another Python, from 3.9: only the standard library is
imported here, and nothing of this package.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import BinaryIO

READY = b"+"
ANSWER = struct.Struct("<QQ")
_REQUEST = struct.Struct("<Q")
_TEXT_SIZE = struct.Struct("<I")


def pack_request(
    text: bytes, blobs: Sequence[bytes | memoryview]
) -> tuple[bytes | memoryview, ...]:
    """Return the pieces of a request, whose data are some blobs, one after another."""
    size_bytes = _TEXT_SIZE.size + len(text) + sum(map(len, blobs))
    return _REQUEST.pack(size_bytes), _TEXT_SIZE.pack(len(text)), text, *blobs


def read_request(requests: BinaryIO) -> tuple[bytes, bytes] | None:
    """Read the text and the data of a request. None if the other side has closed the pipe."""
    header = requests.read(_REQUEST.size)
    if not header:
        return None
    text = requests.read(*_TEXT_SIZE.unpack(requests.read(_TEXT_SIZE.size)))
    return text, requests.read(_REQUEST.unpack(header)[0] - _TEXT_SIZE.size - len(text))


def write_answer(answers: BinaryIO, text: bytes, blobs: Sequence[bytes | memoryview]) -> None:
    """Write an answer, whose data are some blobs, one after another."""
    for part in (ANSWER.pack(len(text), sum(map(len, blobs))), text, *blobs):
        answers.write(part)
    answers.flush()
