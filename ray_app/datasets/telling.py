"""Says now and then, on stderr, how far a long index is."""

import sys
import time

EVERY_S = 10.0


class Telling:
    """A `progress` for indexing: one line every ten seconds, none for what takes less."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, doing: str, members: int) -> None:
        """`members` were listed, labelled or made so far."""
        if time.monotonic() - self._said > EVERY_S:
            self._said = time.monotonic()
            print(f"index: {members:,} members {doing}", file=sys.stderr, flush=True)
