"""Use private names of Pillow that have no public substitute.

Each function states the reason for the private name, and the fallback if Pillow no longer has it.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pillow_blocks(size_bytes: int) -> Iterator[None]:
    """Let Pillow allocate memory in blocks of `size_bytes` during a `with` block.

    Reason: Pillow reads its public setting, the environment variable PILLOW_BLOCK_SIZE, once, when
    it is imported. Only large images need larger blocks, so the size is restored after the block.

    Fallback: Pillow's own block size. A large image then takes longer, because more of its
    memory is returned to the operating system.
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
