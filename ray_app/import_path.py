"""Run no code from the current folder, which may be an archive: neither a Python module nor a
shared library.

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
PACKAGE = Path(__file__).resolve().parent

# NVIDIA's libcusparseLt, which torch loads, has the search path `$ORIGIN:`. Its empty entry is the
# current folder.
_SEARCHED_LIBRARY = "libcuda.so.1"
_SEARCHED_FOLDERS = (
    "glibc-hwcaps", "x86-64-v2", "x86-64-v3", "x86-64-v4", "tls", "haswell", "xeon_phi", "avx512_1", "x86_64", "atomics", "aarch64",
)  # fmt: skip


def safe_variables() -> dict[str, str]:
    """Return the environment variables with which a Python process does not search the current
    folder.

    PYTHONPATH keeps its absolute entries. It is missing if there are none: remove it from the
    environment of the child then.
    """
    entries = _absolute_entries()
    return {SAFE_PATH: "1"} | ({SEARCH_PATH: os.pathsep.join(entries)} if entries else {})


def remove_current_folder() -> None:
    """Remove what depends on the current folder from the module search path of this process and of
    all processes that it starts.

    A folder that PYTHONPATH names by an absolute path stays. If this package is in the current
    folder, the folder becomes the last entry.
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
    """Raise ConfigError if importing torch would load a shared library from the current folder."""
    if found := _find_library(Path(), set()):
        raise ConfigError(
            f"the current folder contains {found}, which NVIDIA's libraries would load and run",
            hint="start the command in another folder, and write the path of this folder",
        )


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Change the current folder of this process inside the block. No other thread may use a
    relative path meanwhile.
    """
    try:
        before = os.getcwd()
    except FileNotFoundError:  # Somebody deleted the folder. No relative path can be used there.
        before = None
    os.chdir(folder)
    try:
        yield
    finally:
        # As under sudo in a folder of another user: no relative path works there.
        with suppress(PermissionError, FileNotFoundError):
            if before is not None:
                os.chdir(before)


def _entries() -> list[str]:
    return os.environ.get(SEARCH_PATH, "").split(os.pathsep)


def _absolute_entries() -> list[str]:
    return [entry for entry in _entries() if os.path.isabs(entry)]


def _find_library(folder: Path, seen: set[tuple[int, int]]) -> Path | None:
    """Return the library if the dynamic linker would find it in this folder or in those for single
    processors.

    `seen` has the device and inode of each folder that was searched: links of an archive may lead
    in circles.
    """
    try:
        facts = os.stat(folder)
        if (facts.st_dev, facts.st_ino) in seen:
            return None
        seen.add((facts.st_dev, facts.st_ino))
    except OSError:  # This user may not enter the folder, and the linker neither.
        return None
    if os.path.exists(folder / _SEARCHED_LIBRARY):
        return folder / _SEARCHED_LIBRARY
    return next(
        filter(
            None,
            (
                _find_library(folder / name, seen)
                for name in _SEARCHED_FOLDERS
                if os.path.isdir(folder / name)
            ),
        ),
        None,
    )
