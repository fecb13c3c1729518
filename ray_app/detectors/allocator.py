"""One setting of the C library that a CPU detector wants. Knows glibc; knows nothing about networks."""

import ctypes
import functools
import sys

# mallopt's parameters (malloc.h). 512 MiB of freed memory is kept; blocks up to 32 MiB, glibc's own maximum, come from the heap.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = {_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 512 * 2**20, _TOP_PAD: 16 * 2**20}


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep the memory that a batch's activations leave, for the next batch.

    By default glibc hands it back to the system after every batch, and each page is faulted in and cleared again: a quarter of
    the time of ViT-S/384 and of touchstone-tiny on one core. Does nothing where the C library is another one.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for parameter, value in _SETTINGS.items():
                libc.mallopt(parameter, value)
