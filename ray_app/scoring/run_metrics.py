"""Report the metrics of a scoring run in progress (`RunMeter`).

The metrics are counters, which are exported as Ray metrics, and the kind of process that limits the
rate. Only the driver counts, from its workers' reports on committed blocks. Ray exports the counters
with its own metrics on the metrics port of the driver's node. The Prometheus server of a cluster reads
them from there: configs/prometheus, configs/grafana/touchstone-run.json.
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

# The description and the labels of each metric. Ray exports a metric as `ray_touchstone_<name>`, and
# adds `_total` to the name of a counter.
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

BUSY = 0.5  # Processes that are idle for longer than they work are no bottleneck.
MOSTLY = 0.95  # If a stage has this fraction of a process's time, its percentage is left out.
DRIVER_BUSY = 0.7  # Of one core, in this process, including Ray's own threads.
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
_MAX_NAME_CHARACTERS = 100


class _Pool(NamedTuple):
    """The processes of one kind, their number, and the stages that they work on."""

    name: str
    processes: int
    stages: tuple[str, ...]


class RunMeter:
    """Derive the metrics of a run in progress from the work on the blocks committed so far.

    The blocks are those of one session, which is the work of one command on a run.

    Args:
        name: The name of the run, as a label of the metrics.
        tally: The sums of the session.
        blocks: The number of blocks to commit.
        layout: The kinds and numbers of worker processes.
        exported: Whether to export the counts as Ray metrics. If so, Ray must be initialised.
        clock: Returns the time in seconds.
        cpu: Returns the CPU seconds of this process.
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
        # Samples: the time, the CPU seconds of this process, the images, and the seconds by stage.
        self._recent: deque[tuple[float, float, int, dict[str, float]]] = deque()
        self._lock = threading.Lock()  # Two threads draw the progress line.
        self._metrics = _metrics() if exported else None

    def set_layout(self, layout: ScoringLayout) -> ScoringLayout:
        """Set how many worker processes the run has from now on, and return `layout` unchanged.

        Call this for example after nodes joined the cluster.
        """
        self._layout = layout
        return layout

    def grow(self, blocks: int, *, goes_on: bool) -> None:
        """Raise the number of blocks to commit by the blocks that were listed in the meantime.

        Args:
            blocks: The number of new blocks.
            goes_on: Whether the listing is still in progress.
        """
        self._blocks, self._is_listing = self._blocks + blocks, goes_on

    def export(self, *, is_over: bool = False) -> None:
        """Export to Ray the counts since the last call.

        Call this method once a second, and once more at the end of the session. The last call reports
        no pending blocks, even after an interruption, because Ray keeps the last values of a driver
        that has exited.

        Args:
            is_over: Whether this is the last call.
        """
        blocks, images, bad, size, by_stage = self._tally.read()
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
        """Return a phrase for the progress line about what limited the run in the last minutes.

        Examples are `bound by listing` and `bound by scoring: 8 workers 93% busy`.
        """
        _, images, _, _, by_stage = self._tally.read()
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
        seconds = {stage: by_stage.get(stage, 0.0) - before.get(stage, 0.0) for stage in STAGES}
        return self._describe_bound(seconds, (cpu_s - cpu_before) / window, window)

    def _describe_bound(self, seconds: Mapping[str, float], driving: float, window: float) -> str:
        """Return the phrase about the busiest processes.

        Args:
            seconds: Seconds of all processes by stage.
            driving: The fraction of a core that this process used.
            window: The length of the time window in seconds.
        """
        busy, pool = max(
            (
                (
                    min(
                        sum(seconds[stage] for stage in pool.stages) / (window * pool.processes),
                        1.0,
                    ),
                    pool,
                )
                for pool in self._pools()
            ),
            key=lambda pair: pair[0],
        )
        text = f"{pool.processes} {pool.name if pool.processes > 1 else pool.name.removesuffix('s')} {busy:.0%} busy"
        if busy >= BUSY:
            stage = max(pool.stages, key=lambda name: seconds[name])
            resource, activity = _STAGE_WORDS[stage]
            part = seconds[stage] / sum(seconds[name] for name in pool.stages)
            return f"bound by {resource}: {text}" + (
                f", {part:.0%} of that {activity}" if part < MOSTLY else ""
            )
        if driving >= DRIVER_BUSY:
            return f"bound by the driver: {driving:.0%} of one core; {text}"
        if self._is_listing:
            return f"bound by listing: {text}"
        return f"no bottleneck seen (start-up, Ray or the driver): {text}"

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
    """Return the name of a run for its metrics: the last part of the run directory's URL.

    The other folders of the URL, and the text after a `?`, may be confidential.
    """
    return (
        PurePosixPath(run_url.rpartition("://")[2].partition("?")[0]).name[:_MAX_NAME_CHARACTERS]
        or "run"
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
