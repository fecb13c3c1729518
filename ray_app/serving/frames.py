"""Messages between the HTTP process and its workers: a JSON header with bytes after it."""

import asyncio
import json
import socket
import struct
import threading
from typing import Any, NamedTuple

_SIZES = struct.Struct("<IQ")  # bytes of the header, bytes after it


class WorkerFrame(NamedTuple):
    """One message.

    Attributes:
        header: A JSON object.
        data: Bytes that belong to it.
    """

    header: dict[str, Any]
    data: bytes = b""


def pack_header(frame: WorkerFrame) -> bytes:
    """Return the sizes and the header of a frame, which precede its data."""
    header = json.dumps(frame.header).encode()
    return _SIZES.pack(len(header), len(frame.data)) + header


async def read_frame(reader: asyncio.StreamReader) -> WorkerFrame:
    """Wait for a frame. Raises asyncio.IncompleteReadError if the other process has ended."""
    header_bytes, data_bytes = _SIZES.unpack(await reader.readexactly(_SIZES.size))
    header = json.loads(await reader.readexactly(header_bytes))
    return WorkerFrame(header, await reader.readexactly(data_bytes))


class FrameSocket:
    """Send and receive frames. Several threads may send, and one may receive.

    Args:
        connection: The socket. `close` closes it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._sending = threading.Lock()

    def send(self, frame: WorkerFrame) -> None:
        """Send a frame. Raises OSError if the other process has ended."""
        with self._sending:
            self.connection.sendall(pack_header(frame) + frame.data)

    def receive(self) -> WorkerFrame | None:
        """Wait for a frame. Returns None if the other process has ended."""
        sizes = self._receive(_SIZES.size)
        if sizes is None:
            return None
        header_bytes, data_bytes = _SIZES.unpack(sizes)
        header, data = self._receive(header_bytes), self._receive(data_bytes)
        if header is None or data is None:
            return None
        return WorkerFrame(json.loads(header), bytes(data))

    def close(self) -> None:
        """Close the socket, which ends the loop of the other process."""
        self.connection.close()

    def _receive(self, count: int) -> bytearray | None:
        """Receive that many bytes. Returns None if the other process ends before."""
        received = bytearray(count)
        view, missing = memoryview(received), count
        while missing:
            try:
                size = self.connection.recv_into(view[count - missing :])
            except ConnectionError:
                return None
            if not size:
                return None
            missing -= size
        return received
