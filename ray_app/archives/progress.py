"""Report how far a listing or an index is (`ProgressLog`)."""

import sys
import time

EVERY_S = 10.0


class ProgressLog:
    """Prints a line on stderr every ten seconds, and nothing for work that takes less.

    Args:
        name: The work, as the lines name it.
    """

    def __init__(self, name: str) -> None:
        self._name, self._printed_at = name, time.monotonic()

    def __call__(self, doing: str, members: int) -> None:
        """Report how many members are listed, labelled, or generated so far."""
        if time.monotonic() - self._printed_at > EVERY_S:
            self._printed_at = time.monotonic()
            print(f"{self._name}: {members:,} members {doing}", file=sys.stderr, flush=True)

    def count(self, members: int) -> None:
        """Report how many members are listed so far."""
        self("so far", members)
