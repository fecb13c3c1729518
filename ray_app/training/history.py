"""What a training reports: `HistoryWriter` keeps each step's figures in files, `ProgressBoard` carries progress and stop to the driver.

A history file is named by the step that it begins at and written with a checkpoint. Who resumes from step s removes the files that
begin at s or later: nothing stands twice, however often a part is repeated. No result depends on the board.
"""

import json
import math
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from ray_app.cluster.ray_cluster import own_node
from ray_app.errors import TouchstoneError
from ray_app.storage import Store

HISTORY, SAMPLES, UNREADABLE, TENSORBOARD = "history", "samples", "unreadable", "tensorboard"
_EVENTS = "events.out.tfevents."
Line = Mapping[str, Any]
_NODE = "ray.io/node-id"  # the label that every node has


class HistoryWriter:
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


@dataclass(frozen=True)
class ProgressReport:
    """What the driver reads: the last figures of rank 0, how many steps this session has made, how often validation showed a sign of life,
    and what ended it all, if anything did.
    """

    figures: dict[str, Any]
    steps: int = 0
    beats: int = 0
    failure: bytes | None = None

    def error(self) -> TouchstoneError | None:
        """The error of a worker that no repetition would help."""
        return None if self.failure is None else pickle.loads(self.failure)  # noqa: S301  (made by a worker of this session)


class ProgressBoard:
    """The actor itself; `tell` returns whether training is to save and stop."""

    def __init__(self) -> None:
        self._report = ProgressReport({})
        self._stop = False
        self._controller: Any = None

    def tell(self, figures: dict[str, Any], steps: int) -> bool:
        """Rank 0's figures, and how many steps it made since its last report."""
        self._report = replace(self._report, figures=figures, steps=self._report.steps + steps)
        return self._stop

    def fail(self, failure: bytes, *, only_before_steps: bool = False) -> None:
        """A worker met what would happen again; with `only_before_steps`, that is so only while no step of this session was made."""
        if self._report.failure is None and not (only_before_steps and self._report.steps):
            self._report = replace(self._report, failure=failure)

    def beat(self) -> None:
        """A checkpoint is still being judged."""
        self._report = replace(self._report, beats=self._report.beats + 1)

    def introduce(self, controller: Any) -> None:
        """The controller of Ray Train says who it is."""
        self._controller = controller

    def controller(self) -> Any:
        """Ray Train's controller; None until it has begun."""
        return self._controller

    def stop(self) -> None:
        """Ask the workers to save and stop."""
        self._stop = True

    def read(self) -> ProgressReport:
        """All reports so far."""
        return self._report


def put_up() -> ActorHandle[ProgressBoard]:
    """A new board on this node; it costs no CPU of Ray's books."""
    board: ActorHandle[ProgressBoard] = ray.remote(num_cpus=0, label_selector={_NODE: own_node()})(ProgressBoard).remote()  # type: ignore[assignment]
    return board
