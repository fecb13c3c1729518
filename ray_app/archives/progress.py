"""Print the progress of long work, such as a listing, as a number of members (`ProgressLog`)."""

import sys
import time

EVERY_S = 10.0


class ProgressLog:
    """Prints a line of progress on stderr at most every ten seconds.

    Nothing is printed for work that takes less time.

    Args:
        name: The name of the work, with which each line begins.
    """

    def __init__(self, name: str) -> None:
        self._name, self._printed_at = name, time.monotonic()

    def __call__(self, doing: str, members: int) -> None:
        """Print a line of progress, if ten seconds have passed since the last line.

        Args:
            doing: The last word of the line, such as `labelled` in "index: 5,000 members labelled".
            members: The number of members so far.
        """
        if time.monotonic() - self._printed_at > EVERY_S:
            self._printed_at = time.monotonic()
            print(f"{self._name}: {members:,} members {doing}", file=sys.stderr, flush=True)

    def count(self, members: int) -> None:
        """Print the number of members so far, if ten seconds have passed since the last line."""
        self("so far", members)
