"""What a scoring run tells while it goes (`RunMeter`): counters of its cluster, as Ray metrics, and which of its processes bound it.

The driver alone counts, from its workers' reports on committed blocks. Ray exports the counters beside its own, on the metrics port of
the driver's node, which a cluster's Prometheus scrapes: configs/prometheus, configs/grafana/touchstone-run.json.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from ray_app.cluster.progress import RECENT_S
from ray_app.inference import STAGES
from ray_app.scoring.layout import ScoringLayout
from ray_app.scoring.messages import BlockReport
from ray_app.scoring.session import BYTES

# Of each metric: what it is and its labels. Ray exports it as `ray_touchstone_<name>`, a counter with `_total` behind it.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "run_images": ("files that have a row", ("run",)),
    "run_bytes": ("encoded bytes read", ("run",)),
    "run_bad": ("files without a score", ("run",)),
    "run_stage_seconds": ("seconds of all processes of the run in one stage", ("run", "stage")),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "run_blocks_behind": ("blocks that are listed and not committed; 0 once the session is over", ("run",))
}

BUSY = 0.5  # processes that rest longer than they work hold nothing up
MOSTLY = 0.95  # of what a process does: the rest need not be told of
DRIVER_BUSY = 0.7  # of one core, in this process; Ray's own threads of it count
_STAGE_WORDS = {
    "fetch": ("storage", "waiting for it"),
    "wait": ("memory", "waiting for room for large images"),
    "decode": ("decoding", "decoding"),
    "prepare": ("preparing", "resizing"),
    "score": ("scoring", "scoring"),
    "identify": ("identifying", "naming generators"),
    "describe": ("describing", "finding words"),
    "write": ("writing", "writing rows"),
}
_BEFORE_SCORES = ("fetch", "wait", "decode", "prepare")
_LONGEST_NAME = 100


@dataclass(frozen=True)
class _Standing:
    """How far the run was at one time. `cpu_s`: of this process."""

    at: float
    cpu_s: float
    members: int
    seconds: Mapping[str, float]


class _Pool(NamedTuple):
    """Processes of a kind, how many, and the stages that they work on."""

    name: str
    processes: int
    stages: tuple[str, ...]


class RunMeter:
    """Adds up the reports of a run's blocks; `committed` costs the driver a few microseconds, all else happens once a second or less.

    `name`: the run's, as its label. `blocks`: how many are to be committed. `exported`: whether to count as Ray metrics, too, which
    needs a Ray that this process has joined. `clock` and `cpu` give seconds, of the world and of this process.
    """

    def __init__(
        self,
        name: str,
        blocks: int,
        layout: ScoringLayout,
        *,
        exported: bool,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self._is_listing = False
        self._behind, self._layout, self._clock, self._cpu = blocks, layout, clock, cpu
        self._labels = {"run": name}
        self._lock = threading.Lock()  # blocks are committed in one thread, and told of in another
        self._counts: Counter[str] = Counter()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._told: dict[tuple[str, str], float] = {}
        self._recent: deque[_Standing] = deque()
        self._metrics = _metrics() if exported else None

    def laid_out(self, layout: ScoringLayout) -> ScoringLayout:
        """Take note of the processes from now on; the same layout."""
        self._layout = layout
        return layout

    def grow(self, blocks: int, *, goes_on: bool) -> None:
        """Add blocks that are to be committed, too; while `goes_on` more may be listed."""
        with self._lock:
            self._behind, self._is_listing = self._behind + blocks, goes_on

    def committed(self, report: BlockReport) -> None:
        """Add one block's report."""
        with self._lock:
            self._behind -= 1
            self._counts["run_images"] += report.ref.members
            self._counts["run_bytes"] += report.work.counts.get(BYTES, 0)
            self._counts["run_bad"] += report.bad
            for stage, seconds in report.work.seconds.items():
                self._seconds[stage] += seconds
            if not self._recent:
                self._recent.append(self._standing())

    def tell(self) -> None:
        """Hand what was counted since the last call to Ray, if it is exported. Called once a second."""
        if self._metrics is None:
            return
        with self._lock:
            totals: dict[tuple[str, str], float] = {(name, ""): count for name, count in self._counts.items()}
            totals |= {("run_stage_seconds", stage): seconds for stage, seconds in self._seconds.items()}
            for (name, stage), total in totals.items():
                if (more := total - self._told.get((name, stage), 0)) > 0:
                    self._metrics[name].inc(more, self._labels | ({"stage": stage} if stage else {}))
            self._told = totals
            self._metrics["run_blocks_behind"].set(self._behind, self._labels)

    def close(self) -> None:
        """Tell a last time: whether it is finished or was interrupted, nothing is behind in a session that is over. Ray keeps the numbers
        of a driver that has ended on its node's page.
        """
        with self._lock:
            self._behind = 0
        self.tell()

    def bound(self) -> str:
        """What the run was bound by in the last minutes, in words for its progress line: the processes that rested least.

        Their seconds are those of blocks that were committed meanwhile.
        """
        with self._lock:
            now = self._standing()
            if not self._recent:
                return "bound by listing" if self._is_listing else "no bottleneck seen yet: no block has ended"
            while len(self._recent) > 1 and now.at - self._recent[1].at >= RECENT_S:
                self._recent.popleft()
            before = self._recent[0]
            self._recent.append(now)
        window = now.at - before.at
        if now.members == before.members or window <= 0:
            return f"no bottleneck seen: no block ended in {window:.0f} s"
        spent = {stage: now.seconds.get(stage, 0.0) - before.seconds.get(stage, 0.0) for stage in STAGES}
        return self._in_words(spent, (now.cpu_s - before.cpu_s) / window, window)

    def _in_words(self, spent: Mapping[str, float], driving: float, window: float) -> str:
        """`spent`: seconds of all processes by stage; `driving`: the share of a core that this process took; `window`: seconds."""
        busy, pool = max(
            ((min(sum(spent[stage] for stage in pool.stages) / (window * pool.processes), 1.0), pool) for pool in self._pools()),
            key=lambda found: found[0],
        )
        named = f"{pool.processes} {pool.name if pool.processes > 1 else pool.name.removesuffix('s')} {busy:.0%} busy"
        if busy >= BUSY:
            stage = max(pool.stages, key=lambda one: spent[one])
            what, doing = _STAGE_WORDS[stage]
            part = spent[stage] / sum(spent[one] for one in pool.stages)
            return f"bound by {what}: {named}" + (f", {part:.0%} of that {doing}" if part < MOSTLY else "")
        if driving >= DRIVER_BUSY:
            return f"bound by the driver: {driving:.0%} of one core; {named}"
        if self._is_listing:
            return f"bound by listing: {named}"
        return f"no bottleneck seen (start-up, Ray or the driver): {named}"

    def _standing(self) -> _Standing:
        return _Standing(self._clock(), self._cpu(), self._counts["run_images"], dict(self._seconds))

    def _pools(self) -> list[_Pool]:
        layout = self._layout
        if layout.kind == "fused":
            return [_Pool("workers", sum(layout.scorers), STAGES)]
        scorers = _Pool("GPU scorers" if layout.scorer_gpus else "scorers", sum(layout.scorers), ("score", "identify", "describe"))
        return [_Pool("decoders", layout.decoders, _BEFORE_SCORES), scorers, _Pool("writers", layout.committers, ("write",))]


def name_of(run_url: str) -> str:
    """The last part of a run directory's address: what follows a `?`, and folders above it, may be nobody's business."""
    return PurePosixPath(run_url.rpartition("://")[2].partition("?")[0]).name[:_LONGEST_NAME] or "run"


def _metrics() -> dict[str, Any]:
    from ray.util import metrics

    counters = {name: metrics.Counter(f"touchstone_{name}", meaning, labels) for name, (meaning, labels) in COUNTERS.items()}
    return counters | {name: metrics.Gauge(f"touchstone_{name}", meaning, labels) for name, (meaning, labels) in GAUGES.items()}
