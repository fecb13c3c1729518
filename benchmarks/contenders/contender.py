"""What a contender is to the harness: a command to start, and a record of what it did. Knows
nothing about torch or Ray.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks.environments import FOLDER, Environment
from benchmarks.work import Work


@dataclass(frozen=True)
class Record:
    """What one process did; all times are epoch seconds, so that they compare with the harness's
    clock.

    `finished`: (time, images finished by then). `scores`: log-odds by file name. `marks`: when each
    step of the start was over. `rate`: images per second where it follows from stage times instead
    of from `finished`. `detail`: figures for the reader of the JSON.
    """

    finished: Sequence[tuple[float, int]] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    marks: Mapping[str, float] = field(default_factory=dict)
    rate: float | None = None
    detail: Mapping[str, float] = field(default_factory=dict)

    def print(self) -> None:
        """Hand the record to the harness: one line on stdout."""
        print(json.dumps(asdict(self)), flush=True)

    @classmethod
    def parse(cls, stdout: str) -> "Record":
        """The record that a process printed as its last line."""
        fields = json.loads(stdout.strip().splitlines()[-1])
        return cls(**{**fields, "finished": [(t, count) for t, count in fields["finished"]]})


@dataclass(frozen=True)
class Contender:
    """`command(work, count, out)` scores `count` images and may write below `out`; `read(stdout,
    out)` tells what it did.

    `environment` is added to a plain user's; `needs_ray` says that it starts a Ray of its own.
    `lacks(folder)` makes what it needs in a folder for environments, and says in one line why it
    cannot run here, or None. It does these `works` and no others.
    """

    name: str
    says: str
    command: Callable[[Work, int, Path], list[str]]
    read: Callable[[str, Path], Record]
    environment: Mapping[str, str] = field(default_factory=dict)
    needs_ray: bool = False
    lacks: Callable[[Path], str | None] = lambda folder: None
    works: tuple[str, ...] = ("decode_bound", "compute_bound")


def script(module: str, *extra: str) -> Callable[[Work, int, Path], list[str]]:
    """The command of a contender that is a script of ours: `python -m MODULE WORK-AS-JSON COUNT …`."""
    return lambda work, count, out: [
        sys.executable,
        "-m",
        module,
        json.dumps(work.as_json()),
        str(count),
        *extra,
    ]


def without(*packages: str) -> Callable[[Path], str | None]:
    """`lacks` of a contender that needs nothing but packages in our own environment."""

    def lacks(folder: Path) -> str | None:
        missing = [name for name in packages if find_spec(name) is None]
        return f"not installed: {', '.join(missing)}" if missing else None

    return lacks


class InEnvironment:
    """The command `python -m MODULE WORK-AS-JSON COUNT OUT` in an environment of its own, which
    `lacks` has made or found.
    """

    def __init__(self, environment: Environment, module: str) -> None:
        self._environment, self._module, self._folder = environment, module, FOLDER

    def lacks(self, folder: Path) -> str | None:
        self._folder = folder
        return self._environment.made(folder)

    def command(self, work: Work, count: int, out: Path) -> list[str]:
        return [
            str(self._environment.python(self._folder)),
            "-m",
            self._module,
            json.dumps(work.as_json()),
            str(count),
            str(out),
        ]


def arguments() -> tuple[Work, int, list[str]]:
    """What `script` passed, in the process that it started."""
    return Work(**json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3:]


def printed(stdout: str, out: Path) -> Record:
    """`read` of a contender that prints its record."""
    return Record.parse(stdout)
