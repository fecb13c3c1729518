"""Keep Python from running modules or libraries of the current folder, which may be an archive.

Python searches the current folder first if it is started with `-c` or `-m`, and if PYTHONPATH has
an empty or relative entry. Libraries start such processes, for example `multiprocessing`.
`safe_variables` protects a child process, `remove_current_folder` this process and all processes
that it starts.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray_app.errors import ConfigError

SEARCH_PATH, SAFE_PATH = "PYTHONPATH", "PYTHONSAFEPATH"
UTF8_MODE = "PYTHONUTF8"
PACKAGE = Path(__file__).resolve().parent

# NVIDIA's libcusparseLt, which torch loads, has the search path `$ORIGIN:`. Its empty entry is the
# current folder.
_SEARCHED_LIBRARY = "libcuda.so.1"
_SEARCHED_FOLDERS = (
    "glibc-hwcaps", "x86-64-v2", "x86-64-v3", "x86-64-v4", "tls", "haswell", "xeon_phi", "avx512_1", "x86_64", "atomics", "aarch64",
)  # fmt: skip


def safe_variables() -> dict[str, str]:
    """Return environment variables that keep a child's Python from searching the current folder.

    The variables are PYTHONSAFEPATH, and PYTHONPATH with only its absolute entries. If there are no
    such entries, the result has no PYTHONPATH. The caller then has to remove PYTHONPATH from the
    environment of the child.
    """
    entries = _absolute_entries()
    return {SAFE_PATH: "1"} | ({SEARCH_PATH: os.pathsep.join(entries)} if entries else {})


def remove_current_folder() -> None:
    """Remove the current folder from the module search path of this process and its children.

    A folder that PYTHONPATH names by an absolute path stays. If this package is in the current
    folder, the current folder becomes the last entry of `sys.path` instead.
    """
    variables, absolute = (
        safe_variables(),
        {os.path.abspath(entry) for entry in _absolute_entries()},
    )
    relative = {"", os.curdir}
    with suppress(FileNotFoundError):  # The current folder may have been deleted.
        relative |= {os.path.abspath(entry) for entry in ("", *_entries())} - absolute
    sys.path[:] = [entry for entry in sys.path if entry not in relative]
    if str(PACKAGE.parent) not in sys.path:
        sys.path.append(str(PACKAGE.parent))
    os.environ.pop(SEARCH_PATH, None)
    os.environ.update(variables)


def refuse_searched_library() -> None:
    """Raise ConfigError if importing torch would run a shared library of the current folder.

    NVIDIA's libraries, which torch loads, search the current folder for `libcuda.so.1`. The folder may
    be an archive from an untrusted source.
    """
    if library := _find_library(Path(), set()):
        raise ConfigError(
            f"the current folder contains {library}, which NVIDIA's libraries would load and run",
            hint="start the command in another folder, and name files of this folder by absolute paths",
        )


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Change the current folder of this process for the `with` block.

    No other thread may use a relative path during the block.
    """
    try:
        previous = os.getcwd()
    except FileNotFoundError:  # The folder was deleted. No relative path works in it.
        previous = None
    os.chdir(folder)
    try:
        yield
    finally:
        # Under sudo, the folder may belong to another user. No relative path works in it.
        with suppress(PermissionError, FileNotFoundError):
            if previous is not None:
                os.chdir(previous)


def _entries() -> list[str]:
    return os.environ.get(SEARCH_PATH, "").split(os.pathsep)


def _absolute_entries() -> list[str]:
    return [entry for entry in _entries() if os.path.isabs(entry)]


def _find_library(folder: Path, visited: set[tuple[int, int]]) -> Path | None:
    """Return the library if the dynamic linker would find it in this folder or its CPU subfolders.

    Args:
        folder: The folder to search.
        visited: The device and inode of each searched folder. The links of an archive may be
            circular.
    """
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            return None
        visited.add((status.st_dev, status.st_ino))
    except OSError:  # Neither this user nor the linker may enter the folder.
        return None
    if os.path.exists(folder / _SEARCHED_LIBRARY):
        return folder / _SEARCHED_LIBRARY
    return next(
        filter(
            None,
            (
                _find_library(folder / name, visited)
                for name in _SEARCHED_FOLDERS
                if os.path.isdir(folder / name)
            ),
        ),
        None,
    )
