"""Exchange messages between the HTTP process and its workers: a JSON header followed by bytes."""

import asyncio
import json
import socket
import struct
import threading
from typing import Any, NamedTuple

_SIZES = struct.Struct("<IQ")  # Size of the header and size of the data, in bytes.


class WorkerFrame(NamedTuple):
    """One message between the HTTP process and a worker.

    Attributes:
        header: A JSON object.
        data: Bytes that belong to the message, such as an image file.
    """

    header: dict[str, Any]
    data: bytes = b""


def pack_header(frame: WorkerFrame) -> bytes:
    """Return the bytes of a frame that precede its data: the sizes and the JSON header."""
    header = json.dumps(frame.header).encode()
    return _SIZES.pack(len(header), len(frame.data)) + header


async def read_frame(reader: asyncio.StreamReader) -> WorkerFrame:
    """Wait for the next message in a stream, and return it.

    Raises:
        asyncio.IncompleteReadError: The sending process has ended.
    """
    header_bytes, data_bytes = _SIZES.unpack(await reader.readexactly(_SIZES.size))
    header = json.loads(await reader.readexactly(header_bytes))
    return WorkerFrame(header, await reader.readexactly(data_bytes))


class FrameSocket:
    """Send and receive messages (`WorkerFrame`) through a socket.

    Several threads may send, but only one may receive.

    Args:
        connection: The socket, which `close` closes.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._sending = threading.Lock()

    def send(self, frame: WorkerFrame) -> None:
        """Send a message.

        Raises:
            OSError: The receiving process has ended.
        """
        with self._sending:
            self.connection.sendall(pack_header(frame) + frame.data)

    def receive(self) -> WorkerFrame | None:
        """Wait for the next message, and return it, or None if the sending process has ended."""
        sizes = self._receive(_SIZES.size)
        if sizes is None:
            return None
        header_bytes, data_bytes = _SIZES.unpack(sizes)
        header, data = self._receive(header_bytes), self._receive(data_bytes)
        if header is None or data is None:
            return None
        return WorkerFrame(json.loads(header), bytes(data))

    def close(self) -> None:
        """Close the socket. The process at its other end then receives no more messages."""
        self.connection.close()

    def _receive(self, count: int) -> bytearray | None:
        """Receive `count` bytes, or return None if the other process ends before."""
        received = bytearray(count)
        view, remaining = memoryview(received), count
        while remaining:
            try:
                size = self.connection.recv_into(view[count - remaining :])
            except ConnectionError:
                return None
            if not size:
                return None
            remaining -= size
        return received
