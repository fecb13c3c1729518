"""Seconds per stage of a worker (`StageClock`), and the names of what is counted beside them."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# Which stage takes longest tells a user which one to give more of.
STAGES = ("fetch", "wait", "decode", "prepare", "score", "identify", "describe", "write")
RUNS, ASKED = "runs of backbone ", "asked of backbone "  # counts, each followed by the backbone's name
LOOKED, LOOKED_MS = "looked_again", "looked_again_ms"  # counts: members that were decoded again, and the milliseconds that took
DESCRIBED = "described"  # a count: members that words were found for


class StageClock:
    """Wall seconds spent in each stage by one worker thread; a stage within another does not count for that one too."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._within = 0.0  # seconds of the stages inside the one that is at work

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time inside the block for one stage."""
        start, outside, self._within = time.perf_counter(), self._within, 0.0
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] += spent - self._within
            self._within = outside + spent

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count what another worker measured for the same block."""
        for stage, spent in seconds.items():
            self.seconds[stage] += spent

    def take(self) -> dict[str, float]:
        """The seconds since the last call, and start again from zero."""
        taken, self.seconds = self.seconds, dict.fromkeys(STAGES, 0.0)
        return taken
