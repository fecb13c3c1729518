"""Define the messages between a process and its child, which decodes or scores images.

The parent writes requests to the standard input of the child (`pack_request`), which reads them
(`read_request`). The child writes answers to its standard output (`write_answer`). Requests and
answers consist of a text, such as JSON, and of binary data, such as an image file or its pixels:

    request    number of bytes after this number (uint64), length of the text (uint32), text, data
    answer     length of the text (uint64), length of the data (uint64), text, data

The child writes one `READY` byte as soon as it can serve requests.

A detector that is a Python callable of the user runs in a child with a Python of its own, from 3.9.
This child runs this file. Therefore this file imports only the standard library.
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
    """Make a request to a child process from a text and binary data, without copying the data.

    Args:
        text: The text of the request, such as JSON with the settings.
        blobs: The binary data, such as the bytes of an image file, in one or more pieces.

    Returns:
        The parts of the request. The caller writes them to the child one after another.
    """
    size_bytes = _TEXT_SIZE.size + len(text) + sum(map(len, blobs))
    return _REQUEST.pack(size_bytes), _TEXT_SIZE.pack(len(text)), text, *blobs


def read_request(requests: BinaryIO) -> tuple[bytes, bytes] | None:
    """Read the next request of the parent in a child process. Waits until there is one.

    Args:
        requests: The stream from the parent.

    Returns:
        The text and the data of the request, or None if the parent closed the stream.
    """
    header = requests.read(_REQUEST.size)
    if not header:
        return None
    text = requests.read(*_TEXT_SIZE.unpack(requests.read(_TEXT_SIZE.size)))
    return text, requests.read(_REQUEST.unpack(header)[0] - _TEXT_SIZE.size - len(text))


def write_answer(answers: BinaryIO, text: bytes, blobs: Sequence[bytes | memoryview]) -> None:
    """Write the answer to a request from a child process to its parent.

    Args:
        answers: The stream to the parent.
        text: The text of the answer, such as JSON.
        blobs: The binary data of the answer, such as pixels, in pieces that are written one after
            another.
    """
    for part in (ANSWER.pack(len(text), sum(map(len, blobs))), text, *blobs):
        answers.write(part)
    answers.flush()
