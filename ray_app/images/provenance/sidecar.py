"""Attach a C2PA manifest that is in a file next to a local image (`attach_sidecar`).

The file NAME.c2pa belongs to NAME.jpg (C2PA 2.1, §11.4). Sidecars are only read for local files. On
object storage, the search for a sidecar would cost a request per image.
"""

import os
import stat
from typing import Self

SUFFIX = ".c2pa"
MAX_BYTES = 8 * 2**20  # A manifest store with its thumbnails has tens to hundreds of KiB.


class FileWithSidecar(bytes):
    """The bytes of an image file, with the bytes of its sidecar as an attribute."""

    sidecar: bytes

    def __new__(cls, data: bytes, sidecar: bytes) -> Self:
        """Create the bytes of the image with the bytes of the sidecar attached."""
        file = super().__new__(cls, data)
        file.sidecar = sidecar
        return file

    def __reduce__(self) -> tuple[object, ...]:
        return FileWithSidecar, (bytes(self), self.sidecar)


def attach_sidecar(data: bytes, path: str) -> bytes:
    """Return the bytes of an image with the bytes of its sidecar attached (`FileWithSidecar`).

    If the image has no readable sidecar, the bytes are returned unchanged.

    Args:
        data: The bytes of the image.
        path: The local path of the image.
    """
    name = os.path.splitext(path)[0] + SUFFIX
    if name == path:
        return data
    try:
        # A pipe of that name must not block.
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            sidecar = _read_regular_file(descriptor)
        finally:
            os.close(descriptor)
    except OSError:  # Nearly always, the file does not exist.
        return data
    return FileWithSidecar(data, sidecar) if sidecar else data


def _read_regular_file(descriptor: int) -> bytes:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return b""
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(MAX_BYTES + 1)


def get_sidecar(data: bytes) -> bytes:
    """Return the bytes of the sidecar that is attached to an image, empty if there is none.

    Args:
        data: The bytes that `attach_sidecar` returned.
    """
    return data.sidecar if isinstance(data, FileWithSidecar) else b""
