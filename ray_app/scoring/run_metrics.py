"""What a scoring run reports while it goes (`RunMeter`): counters of its cluster, as Ray metrics,
and which of its processes bound it.

The driver alone counts, from its workers' reports on committed blocks. Ray exports the counters
beside its own, on the metrics port of the driver's node, which a cluster's Prometheus scrapes:
configs/prometheus, configs/grafana/touchstone-run.json.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from ray_app.cluster.progress import RECENT_S
from ray_app.inference import STAGES
from ray_app.scoring.layout import ScoringLayout
from ray_app.scoring.session import Tally

# Of each metric: what it is and its labels. Ray exports it as `ray_touchstone_<name>`, a counter
# with `_total` behind it.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "run_images": ("files that have a row", ("run",)),
    "run_bytes": ("encoded bytes read", ("run",)),
    "run_bad": ("files without a score", ("run",)),
    "run_stage_seconds": ("seconds of all processes of the run in one stage", ("run", "stage")),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "run_blocks_behind": (
        "blocks that are listed and not committed; 0 once the session is over",
        ("run",),
    )
}

BUSY = 0.5  # processes that rest longer than they work hold nothing up
MOSTLY = 0.95  # of what a process does: the rest is not mentioned
DRIVER_BUSY = 0.7  # of one core, in this process; Ray's own threads of it count
_STAGE_WORDS = {
    "fetch": ("storage", "waiting for it"),
    "wait": ("memory", "waiting for room for large images"),
    "decode": ("decoding", "decoding"),
    "prepare": ("preparing", "resizing"),
    "load": ("loading detectors", "loading detectors"),
    "score": ("scoring", "scoring"),
    "identify": ("identifying", "naming generators"),
    "describe": ("describing", "finding words"),
    "write": ("writing", "writing rows"),
}
_BEFORE_SCORES = ("fetch", "wait", "decode", "prepare")
_LONGEST_NAME = 100


class _Pool(NamedTuple):
    """Processes of a kind, how many, and the stages that they work on."""

    name: str
    processes: int
    stages: tuple[str, ...]


class RunMeter:
    """Reads what the committed blocks of a session add up to, once a second or less.

    `name`: the run's, as its label. `tally`: of the session. `blocks`: how many are to be committed.
    `exported`: whether to count as Ray metrics, too, which needs a Ray that this process has
    joined. `clock` and `cpu` give seconds, of the world and of this process.
    """

    def __init__(
        self,
        name: str,
        tally: Tally,
        blocks: int,
        layout: ScoringLayout,
        *,
        exported: bool,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self._labels, self._tally, self._blocks, self._layout = {"run": name}, tally, blocks, layout
        self._clock, self._cpu = clock, cpu
        self._is_listing = False
        self._exported: dict[tuple[str, str], float] = {}
        # when, seconds of this process, images, by stage
        self._recent: deque[tuple[float, float, int, dict[str, float]]] = deque()
        self._lock = threading.Lock()  # the progress line is drawn by two threads
        self._metrics = _metrics() if exported else None

    def laid_out(self, layout: ScoringLayout) -> ScoringLayout:
        """Take note of the processes from now on; the same layout."""
        self._layout = layout
        return layout

    def grow(self, blocks: int, *, goes_on: bool) -> None:
        """Add blocks that are to be committed, too; while `goes_on` more may be listed."""
        self._blocks, self._is_listing = self._blocks + blocks, goes_on

    def export(self, *, is_over: bool = False) -> None:
        """Hand what was counted since the last call to Ray, if it is exported. Called once a
        second, and once more at the end: whether it is finished or was interrupted, nothing is
        behind in a session that is over. Ray keeps the numbers of a driver that has ended on its
        node's page.
        """
        blocks, images, bad, size, by_stage = self._tally.standing()
        if not self._recent and images:
            self._recent.append((self._clock(), self._cpu(), images, by_stage))
        if self._metrics is None:
            return
        totals: dict[tuple[str, str], float] = {
            ("run_images", ""): images,
            ("run_bytes", ""): size,
            ("run_bad", ""): bad,
        }
        totals |= {("run_stage_seconds", stage): seconds for stage, seconds in by_stage.items()}
        for (name, stage), total in totals.items():
            if (more := total - self._exported.get((name, stage), 0)) > 0:
                self._metrics[name].inc(more, self._labels | ({"stage": stage} if stage else {}))
        self._exported = totals
        self._metrics["run_blocks_behind"].set(
            0 if is_over else self._blocks - blocks, self._labels
        )

    def bound(self) -> str:
        """What the run was bound by in the last minutes, in words for its progress line: the
        processes that rested least.

        Their seconds are those of blocks that were committed meanwhile.
        """
        _, images, _, _, by_stage = self._tally.standing()
        now, cpu_s = self._clock(), self._cpu()
        with self._lock:
            if not self._recent:
                return (
                    "bound by listing"
                    if self._is_listing
                    else "no bottleneck seen yet: no block has ended"
                )
            while len(self._recent) > 1 and now - self._recent[1][0] >= RECENT_S:
                self._recent.popleft()
            since, cpu_before, images_before, before = self._recent[0]
            self._recent.append((now, cpu_s, images, by_stage))
        window = now - since
        if images == images_before or window <= 0:
            return f"no bottleneck seen: no block ended in {window:.0f} s"
        spent = {stage: by_stage.get(stage, 0.0) - before.get(stage, 0.0) for stage in STAGES}
        return self._in_words(spent, (cpu_s - cpu_before) / window, window)

    def _in_words(self, spent: Mapping[str, float], driving: float, window: float) -> str:
        """`spent`: seconds of all processes by stage; `driving`: the share of a core that this
        process took; `window`: seconds.
        """
        busy, pool = max(
            (
                (
                    min(
                        sum(spent[stage] for stage in pool.stages) / (window * pool.processes), 1.0
                    ),
                    pool,
                )
                for pool in self._pools()
            ),
            key=lambda found: found[0],
        )
        named = f"{pool.processes} {pool.name if pool.processes > 1 else pool.name.removesuffix('s')} {busy:.0%} busy"
        if busy >= BUSY:
            stage = max(pool.stages, key=lambda one: spent[one])
            what, doing = _STAGE_WORDS[stage]
            part = spent[stage] / sum(spent[one] for one in pool.stages)
            return f"bound by {what}: {named}" + (
                f", {part:.0%} of that {doing}" if part < MOSTLY else ""
            )
        if driving >= DRIVER_BUSY:
            return f"bound by the driver: {driving:.0%} of one core; {named}"
        if self._is_listing:
            return f"bound by listing: {named}"
        return f"no bottleneck seen (start-up, Ray or the driver): {named}"

    def _pools(self) -> list[_Pool]:
        layout = self._layout
        if layout.kind == "fused":
            return [_Pool("workers", sum(layout.scorers), STAGES)]
        scorers = _Pool(
            "GPU scorers" if layout.scorer_gpus else "scorers",
            sum(layout.scorers),
            ("load", "score", "identify", "describe"),
        )
        return [
            _Pool("decoders", layout.decoders, _BEFORE_SCORES),
            scorers,
            _Pool("writers", layout.committers, ("write",)),
        ]


def name_of(run_url: str) -> str:
    """The last part of a run directory's address: what follows a `?`, and folders above it, may be
    confidential.
    """
    return (
        PurePosixPath(run_url.rpartition("://")[2].partition("?")[0]).name[:_LONGEST_NAME] or "run"
    )


def _metrics() -> dict[str, Any]:
    from ray.util import metrics

    counters = {
        name: metrics.Counter(f"touchstone_{name}", meaning, labels)
        for name, (meaning, labels) in COUNTERS.items()
    }
    return counters | {
        name: metrics.Gauge(f"touchstone_{name}", meaning, labels)
        for name, (meaning, labels) in GAUGES.items()
    }
