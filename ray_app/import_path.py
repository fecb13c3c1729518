"""Keep the current folder off Python's module search path, so that no file of an archive is imported as a module.

Python searches the current folder first if it is started with `-c` or `-m`, and if PYTHONPATH has an empty or relative entry. Libraries
start such processes, for example `multiprocessing`. `safe_variables` protects a child process, `remove_current_folder` this process and
all processes that it starts.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

SEARCH_PATH, SAFE_PATH = "PYTHONPATH", "PYTHONSAFEPATH"
PACKAGE = Path(__file__).resolve().parent


def safe_variables() -> dict[str, str]:
    """Return the environment variables with which a Python process does not search the current folder.

    PYTHONPATH keeps its absolute entries. It is missing if there are none: remove it from the environment of the child then.
    """
    entries = _absolute_entries()
    return {SAFE_PATH: "1"} | ({SEARCH_PATH: os.pathsep.join(entries)} if entries else {})


def remove_current_folder() -> None:
    """Remove what depends on the current folder from the module search path of this process and of all processes that it starts.

    A folder that PYTHONPATH names by an absolute path stays. If this package is in the current folder, the folder becomes the last entry.
    """
    variables, absolute = safe_variables(), {os.path.abspath(entry) for entry in _absolute_entries()}
    relative = {"", os.curdir}
    with suppress(FileNotFoundError):  # The current folder may have been deleted.
        relative |= {os.path.abspath(entry) for entry in ("", *_entries())} - absolute
    sys.path[:] = [entry for entry in sys.path if entry not in relative]
    if str(PACKAGE.parent) not in sys.path:
        sys.path.append(str(PACKAGE.parent))
    os.environ.pop(SEARCH_PATH, None)
    os.environ.update(variables)


def _entries() -> list[str]:
    return os.environ.get(SEARCH_PATH, "").split(os.pathsep)


def _absolute_entries() -> list[str]:
    return [entry for entry in _entries() if os.path.isabs(entry)]
