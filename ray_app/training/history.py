"""What a worker notes while it trains, kept in files that are named by the step they begin at.

Such a file is written with a checkpoint and covers the steps since the one before. Who starts again from step s removes the files that
begin at s or later and writes them anew: so nothing stands twice, however often a part of a training is repeated.
"""

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray_app.storage import Store

HISTORY, SAMPLES, UNREADABLE, TENSORBOARD = "history", "samples", "unreadable", "tensorboard"
_EVENTS = "events.out.tfevents."
Line = Mapping[str, Any]


class Notes:
    """The lines of one rank in one folder, from one checkpoint to the next."""

    def __init__(self, out: Store, folder: str, rank: int) -> None:
        self._out, self._folder, self._rank = out, folder, rank
        self._lines: list[Line] = []

    def add(self, line: Line) -> None:
        """Keep a line until the next `write`."""
        self._lines.append(line)

    def write(self, first: int) -> list[Line]:
        """Write what was added since the last time as the file of step `first`, if anything; returns it."""
        lines, self._lines = self._lines, []
        if lines:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            self._out.write(f"{self._folder}/{first:08d}-{self._rank:04d}.jsonl", text.encode())
        return lines


def forget_from(out: Store, step: int) -> None:
    """Remove all notes that begin at `step` or later: they are about to be written again."""
    for folder in (HISTORY, SAMPLES, UNREADABLE, TENSORBOARD):
        for name in out.names(folder):
            if first_of(name) >= step:
                out.delete(f"{folder}/{name}")


def first_of(name: str) -> int:
    """The step at which a file begins; -1 for a file that is none of ours."""
    digits = name.removeprefix(_EVENTS).partition("-")[0].partition(".")[0]
    return int(digits) if digits.isdigit() else -1


def read_notes(out: Store, folder: str) -> Iterator[dict[str, Any]]:
    """All lines of a folder, in the order of steps, then of ranks."""
    for name in out.names(folder):
        for line in out.read(f"{folder}/{name}").splitlines():
            yield json.loads(line)


def write_events(out: Store, first: int, lines: Iterable[Line], *, prefix: str = "train") -> None:
    """The same lines for TensorBoard: every number but step and time is a curve."""
    name = f"{_EVENTS}{first:08d}.{prefix}"
    out.write(f"{TENSORBOARD}/{name}", event_bytes(lines, prefix))


def event_bytes(lines: Iterable[Line], prefix: str) -> bytes:
    """An event file of TensorBoard: one scalar `prefix/key` per finite number of a line, at the line's `step`."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(logdir=folder) as writer:
            for line in lines:
                for key, value in line.items():
                    if key not in ("step", "time") and isinstance(value, int | float) and math.isfinite(value):
                        writer.add_scalar(f"{prefix}/{key}", value, line["step"], walltime=line.get("time"))
        return next(Path(folder).iterdir()).read_bytes()
