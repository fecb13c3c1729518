"""Keep or return freed memory, by functions of the C library that Python does not expose.

Call `keep_freed_memory` before networks run on a CPU, and `return_freed_memory` after they are
unloaded.
"""

import ctypes
import functools
import sys

# The parameters of mallopt(3) with their numbers in malloc.h. glibc keeps 512 MiB of freed memory,
# and takes blocks of up to 32 MiB, its maximum, from that memory.
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2
_SETTINGS = {_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 512 * 2**20, _TOP_PAD: 16 * 2**20}


@functools.cache
def keep_freed_memory() -> None:
    """Make this process keep freed memory, so that the next batch can use it.

    By default, glibc returns the memory of a batch's activations to the system, and for the next
    batch each page is faulted in and cleared again. That costs 10 % of the CPU time of ViT-S/384 on
    one core, and 19 % of the default ensemble's.

    Environment variables such as MALLOC_TRIM_THRESHOLD_ do not help. glibc reads them only when a
    process starts, but `load_ensemble` and `touchstone check` score in a process that is already
    running. The variables would also affect Ray's workers that load no detector and should not keep
    memory. Other C libraries keep their default behaviour.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for parameter, value in _SETTINGS.items():
                libc.mallopt(parameter, value)


def return_freed_memory() -> None:
    """Return freed memory of this process to the system.

    Call it after you deleted detectors, before you load others into the same process. Otherwise,
    the others may need memory in addition to the freed memory. After `keep_freed_memory`, glibc
    keeps up to 512 MiB of freed memory at the end of the heap. It also keeps all freed memory at
    lower addresses than memory that is in use. Other C libraries keep their default behaviour.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
