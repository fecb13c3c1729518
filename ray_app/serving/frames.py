"""Exchange messages between the HTTP process and its workers: a JSON header followed by bytes."""

import asyncio
import json
import socket
import struct
import threading
from typing import Any, NamedTuple

_SIZES = struct.Struct("<IQ")  # Size of the header and size of the data, in bytes.


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
    """Wait for a frame, and return it.

    Raises:
        asyncio.IncompleteReadError: The other process has ended.
    """
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
        """Send a frame.

        Raises:
            OSError: The other process has ended.
        """
        with self._sending:
            self.connection.sendall(pack_header(frame) + frame.data)

    def receive(self) -> WorkerFrame | None:
        """Wait for a frame, and return it. Return None if the other process has ended."""
        sizes = self._receive(_SIZES.size)
        if sizes is None:
            return None
        header_bytes, data_bytes = _SIZES.unpack(sizes)
        header, data = self._receive(header_bytes), self._receive(data_bytes)
        if header is None or data is None:
            return None
        return WorkerFrame(json.loads(header), bytes(data))

    def close(self) -> None:
        """Close the socket. This ends the loop of the other process."""
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
