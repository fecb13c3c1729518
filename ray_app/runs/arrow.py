"""`leave_pandas_out`: pyarrow without pandas, for processes that have no use for it.

pyarrow imports pandas, where it is installed, at the first array that it makes of anything but a NumPy array, to see whether that is a
pandas object: 0.3 s and 40 MB of a process that never meets one.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

import pyarrow as pa


class _Hidden(importlib.abc.MetaPathFinder):
    """Finds no pandas."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError(name=name)
        return None


def leave_pandas_out() -> None:
    """Let pyarrow look for pandas now, and find none. To be called by a process's own program alone, as early as may be.

    Whoever imports pandas afterwards has it, and tables still convert to and from it; only `pyarrow.array` of a Series takes that for a
    plain sequence until then. Does nothing where pandas has been imported.
    """
    if "pandas" in sys.modules:
        return
    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(hidden)
