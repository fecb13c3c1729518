"""Create private folders for the files of a local Ray (`private_folder`).

`ray_base` returns the folder in which the private folders are created.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX, _LOCK = "ts-", "touchstone.lock"
# The path of a Unix socket has at most 107 bytes, and Ray's longest needs up to 80 of them below
# this folder.
_MAX_BASE_BYTES = 24


def ray_base() -> Path:
    """Return the folder for Ray's files and Unix sockets, and create it if necessary.

    The folder is $RAY_TMPDIR, or else Python's temporary folder. It is /tmp if the path of that
    folder is too long for a Unix socket below it.
    """
    preferred = os.path.abspath(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    base = Path(preferred if len(os.fsencode(preferred)) <= _MAX_BASE_BYTES else "/tmp")  # noqa: S108 - Only private folders are created in it.
    base.mkdir(parents=True, exist_ok=True)
    return base


@contextmanager
def private_folder() -> Iterator[Path]:
    """Create a folder for Ray's files that only this user may enter.

    Ray makes its own folder accessible to every user. Therefore Ray's folder has to be inside a
    private folder. After the block, the private folder stays with its logs. The next call in any
    process of this user deletes it. A folder whose block still runs is not deleted.
    """
    base = ray_base()
    _remove_abandoned(base)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Otherwise another process found the folder before it was locked, and removed it.
        if (folder / _LOCK).exists():
            break
        os.close(lock)
    try:
        yield folder
    finally:
        os.close(lock)


def _remove_abandoned(base: Path) -> None:
    """Remove the folders of processes that have ended.

    The operating system releases a lock when its process ends, even if the process is killed.
    """
    for lock_path in base.glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError):
            if lock_path.parent.lstat().st_uid != os.getuid():
                continue
            lock = os.open(lock_path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_path.parent, ignore_errors=True)
            finally:
                os.close(lock)
