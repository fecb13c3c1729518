"""Where processor time goes: seconds per image in the steady state, by kind of process: a
contender's own, and each of Ray's daemons.

Knows processes and clocks. Linux only.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

OWN = "own"
# The first that is part of a command line names it; a raylet's holds those of the agents that it
# starts, so that it comes first.
RAYS: dict[str, str] = {
    "raylet/raylet": "raylet",
    "gcs/gcs_server": "gcs",
    "dashboard/agent.py": "agents",
    "ray::DashboardAgent": "agents",
    "runtime_env/agent": "agents",
    "ray::RuntimeEnvAgent": "agents",
    "dashboard/dashboard.py": "dashboard",
    "ray-dashboard": "dashboard",
    "log_monitor.py": "log monitor",
    "autoscaler": "autoscaler",
}
_TICKS = os.sysconf("SC_CLK_TCK")

# epoch seconds, processor seconds by kind since the start
Sample = tuple[float, Mapping[str, float]]


def kind_of(command_line: str) -> str:
    """`own`, or which of Ray's daemons a command line is."""
    return next((kind for part, kind in RAYS.items() if part in command_line), OWN)


class ProcessorTimes:
    """Processor seconds of the processes of one tree, by kind; what a process took stays counted
    once it has ended.
    """

    def __init__(self) -> None:
        self._taken: dict[tuple[int, int], tuple[str, float]] = {}
        self.samples: list[Sample] = []

    def note(self, now: float, pids: Iterable[int]) -> None:
        """Read what the living processes have taken until now."""
        for pid in pids:
            if (read := _read(pid)) is not None:
                started, seconds, kind = read
                self._taken[pid, started] = kind, seconds
        total: defaultdict[str, float] = defaultdict(float)
        for kind, seconds in self._taken.values():
            total[kind] += seconds
        self.samples.append((now, dict(total)))


def seconds_per_image(
    samples: Sequence[Sample],
    finished: Sequence[tuple[float, int]],
    total: int,
    window: tuple[float, float],
) -> dict[str, float]:
    """Processor seconds per image by kind, between the first and the last moment at which the count
    lies inside the window.

    `finished`: (epoch seconds, images finished by then). Nothing where there are too few of either
    to tell.
    """
    low, high = window
    inside = [(t, count) for t, count in finished if low * total <= count <= high * total]
    if len(inside) < 2 or len(samples) < 2:
        return {}
    (begin, before), (end, after) = inside[0], inside[-1]
    times = [t for t, _ in samples]
    taken = {}
    for kind in {kind for _, by_kind in samples for kind in by_kind}:
        spent = np.interp([begin, end], times, [by_kind.get(kind, 0.0) for _, by_kind in samples])
        taken[kind] = float(spent[1] - spent[0]) / (after - before)
    return taken


def _read(pid: int) -> tuple[int, float, str] | None:
    """When a process started, in ticks; the seconds that it has taken; its kind. None once it is
    gone.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        command_line = (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return None
    return int(fields[19]), (int(fields[11]) + int(fields[12])) / _TICKS, kind_of(command_line)
