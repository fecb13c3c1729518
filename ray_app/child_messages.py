"""Exchange messages with a child process over pipes (`read_request`, `write_answer`).

A request consists of the number of bytes that follow (uint64), the length of a text (uint32), the
text, and data. An answer consists of the lengths of a text and of data (2 × uint64), the text, and
the data.
A child writes one `READY` byte as soon as it can serve requests.

The child of a callable detector runs this file in another Python, from 3.9. Therefore this file
imports only the standard library and nothing of this package.
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
    """Pack a text and data into a request to a child process.

    Args:
        text: The text of the request.
        blobs: The data of the request, in one or more pieces.

    Returns:
        The parts of the request, which are written one after another.
    """
    size_bytes = _TEXT_SIZE.size + len(text) + sum(map(len, blobs))
    return _REQUEST.pack(size_bytes), _TEXT_SIZE.pack(len(text)), text, *blobs


def read_request(requests: BinaryIO) -> tuple[bytes, bytes] | None:
    """Read a request, and return its text and its data, or None if the parent closed the pipe."""
    header = requests.read(_REQUEST.size)
    if not header:
        return None
    text = requests.read(*_TEXT_SIZE.unpack(requests.read(_TEXT_SIZE.size)))
    return text, requests.read(_REQUEST.unpack(header)[0] - _TEXT_SIZE.size - len(text))


def write_answer(answers: BinaryIO, text: bytes, blobs: Sequence[bytes | memoryview]) -> None:
    """Write the answer of a child process to its parent.

    Args:
        answers: The stream to the parent.
        text: The text of the answer.
        blobs: Parts of the data, which are written one after another.
    """
    for part in (ANSWER.pack(len(text), sum(map(len, blobs))), text, *blobs):
        answers.write(part)
    answers.flush()
