"""The modes of files that this process writes under an umask."""

import os
import stat
from contextlib import contextmanager


@contextmanager
def umask(mask):
    """Set the umask inside the block; yields the mode that it leaves to a new file."""
    before = os.umask(mask)
    try:
        yield 0o666 & ~mask
    finally:
        os.umask(before)


def modes_in(folder):
    """The modes of all files in a folder and below."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {stat.S_IMODE(path.stat().st_mode) for path in files}
