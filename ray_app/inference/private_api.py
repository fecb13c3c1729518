"""Use private names of Pillow that have no public substitute.

Each function states the reason for the private name, and the fallback if Pillow no longer has it.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pillow_blocks(size_bytes: int) -> Iterator[None]:
    """Let Pillow allocate memory for images in blocks of this size.

    Reason: Pillow reads its public setting, the environment variable PILLOW_BLOCK_SIZE, once, when
    it is imported. Only large images need larger blocks, and the process may belong to a caller.

    Fallback: Pillow's own block size. A large image then takes longer, since more of its memory
    returns to the system.
    """
    try:
        from PIL._imaging import get_block_size, set_block_size
    except ImportError:
        yield
        return
    size_before = get_block_size()
    set_block_size(size_bytes)
    try:
        yield
    finally:
        set_block_size(size_before)
