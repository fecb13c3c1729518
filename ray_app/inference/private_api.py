"""Names of Pillow without a public substitute, each with its reason and a fallback for a Pillow
that no longer has it.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pillow_blocks(size_bytes: int) -> Iterator[None]:
    """Let Pillow take memory for images in blocks of this size inside the block.

    Reason: Pillow reads its public setting, the environment variable PILLOW_BLOCK_SIZE, once, when
    it is imported. Only large images need larger blocks, and the process may be a caller's own.
    Fallback: Pillow's own block size; a large image takes longer, since more of its memory returns
    to the system.
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
