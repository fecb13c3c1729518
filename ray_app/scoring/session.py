"""Record one session, the work of one command on a run.

`ScoringSession` sums the reports of its workers (`Tally`) and writes a file in `sessions/`.
`compute_cost` computes the cost of a session.
"""

import logging
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ray_app import __version__
from ray_app.errors import ConfigError
from ray_app.inference import DESCRIBED, RESCORED, RESCORED_MS, STAGES
from ray_app.inference.batch import ALONE_US, ELAPSED_US, REQUESTED, RUNS, SEEN
from ray_app.inference.groups import DetectorGroups
from ray_app.reports.format import escape_invisible, file_name, truncate
from ray_app.runs import RunDirectory, document
from ray_app.scoring.config import Prices, ScoreConfig
from ray_app.scoring.layout import ScoringLayout
from ray_app.scoring.stages import BlockReport
from ray_app.storage.urls import get_scheme

GB = 1e9  # Network traffic is billed in decimal gigabytes.

# The names of counts in reports of workers and in summaries.
GETS, PUTS, BYTES = "requests", "puts", "bytes_read"

_COUNTED = ("bytes_read", "requests", "puts", "retried", "throttled", "decoded")
MEASURABLE_S = 2.0  # A rate over less time would mean nothing.
_MAX_NAME_CHARACTERS = 300
_log = logging.getLogger(__name__)


def is_billed(url: str) -> bool:
    """Return whether requests to a URL go over a network, to a store that bills them."""
    return get_scheme(url) != "file"


def compute_cost(prices: Prices, hours: float, counts: Mapping[str, float]) -> document.CostSummary:
    """Compute the unrounded cost of a session from its hours and its traffic.

    Egress is billed only if the bytes came over a network. If `counts` has no requests, the files
    were local, and egress costs nothing.

    Args:
        prices: The prices.
        hours: The hours in which the cluster was used.
        counts: `requests` (GET and HEAD over a network) and `bytes_read`. An unknown count is 0.

    Returns:
        The cost of the machines, of egress (the bytes that leave a store), and of both together.
    """
    compute = hours * prices.per_hour
    egress = counts.get(BYTES, 0) / GB * prices.egress_per_gb if counts.get(GETS) else 0.0
    total = compute + egress
    return document.CostSummary(
        compute=compute,
        egress=egress,
        total=total,
        compute_share=compute / total if total else None,
    )


def is_priced(prices: Prices) -> bool:
    """Return whether any price is greater than 0."""
    return prices != Prices()


def require_prices(config: ScoreConfig) -> None:
    """Raise ConfigError if `max_cost` could never be reached because no price is set."""
    if config.max_cost is not None and not is_priced(config.prices):
        raise ConfigError(
            f"--max-cost {config.max_cost:g}: no price is set, so this limit would never stop the run",
            hint="set the price of all machines together per hour: --set prices.per_hour=12.50",
        )


class Tally:
    """Sums over the blocks that were committed in a session, which is the work of one command.

    One thread adds blocks, and other threads call `read`. Times are of the monotonic clock.

    Attributes:
        began: The time at which this object was created.
        first: The time at which the first block was added; None before it.
        last: The time at which the last block was added.
        blocks: The number of blocks.
        images: The number of images.
        first_images: The number of images in the first block.
        bad: The number of images without a score.
        peak_bytes: The maximum memory of a worker in bytes.
        counts: The counters of the workers by name.
        seconds: The seconds of all workers by stage.
    """

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.first: float | None = None
        self.blocks = self.images = self.first_images = self.bad = self.peak_bytes = 0
        self.counts = Counter[str]()
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    def add(self, report: BlockReport, images: int) -> None:
        """Add the report of a committed block to the sums.

        Args:
            report: The report of the block.
            images: The number of images in the block.
        """
        work = report.work
        with self._lock:
            self.last = time.monotonic()
            if self.first is None:
                self.first, self.first_images = self.last, images
            self.images += images
            self.blocks, self.bad = self.blocks + 1, self.bad + report.bad
            self.counts.update(work.counts)
            for stage, seconds in work.seconds.items():
                self.seconds[stage] += seconds
            self.peak_bytes = max(self.peak_bytes, work.peak_bytes)

    def read(self) -> tuple[int, int, int, int, dict[str, float]]:
        """Return the sums over all blocks added so far. Any thread may call this method.

        Returns:
            A tuple: blocks, images, images without a score, bytes read, and seconds by stage.
        """
        with self._lock:
            return self.blocks, self.images, self.bad, self.counts[BYTES], dict(self.seconds)

    @property
    def images_per_s(self) -> float | None:
        """Images per second between the first and the last block.

        None if that time is too short to give a rate.
        """
        steady = self.last - (self.first or self.last)
        return (
            round((self.images - self.first_images) / steady, 2) if steady >= MEASURABLE_S else None
        )


class ScoringSession:
    """Record one session, the work of one command on a run.

    The session sums the reports on committed blocks, and is written to a file in `sessions/`.

    Args:
        run: The run directory.
        settings: The config as plain JSON.
        start: The monotonic time at which the user's command started.
        extra_facts: Further keys of the session's section in the summary.

    Attributes:
        number: The number of the session, from 1. Rows store it in the column `attempt`.
        total: The sums over all blocks.
    """

    def __init__(
        self,
        run: RunDirectory,
        settings: dict[str, Any],
        start: float,
        *,
        extra_facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._run, self._settings, self._extra_facts = run, settings, dict(extra_facts or {})
        self._prices = Prices.model_validate(settings.get("prices", {}))
        self.number = 1 + run.last_session()
        self.started_at = datetime.now(UTC)
        self._start = start
        self.total = Tally()
        self._listing_s = 0.0
        self._layout: ScoringLayout | None = None
        self._memory: document.Memory | None = None
        self._retries: list[document.RetrySummary] = []
        self._groups: DetectorGroups | None = None
        self._logged: set[tuple[str, ...]] = set()
        self.log("started")

    def next_session(self) -> "ScoringSession":
        """Start the next session of a command that runs for several days, and return it.

        It has the next number, and keeps the processes and the planned memory of this session.
        """
        session = ScoringSession(
            self._run, self._settings, time.monotonic(), extra_facts=self._extra_facts
        )
        session._layout, session._groups, session._memory = self._layout, self._groups, self._memory
        return session

    def elapsed_s(self) -> float:
        """Return the seconds since the session started.

        The first session of a command starts with the command.
        """
        return time.monotonic() - self._start

    def note(self, **facts: Any) -> None:
        """Add further keys to the `session` section that `facts` returns for the summary."""
        self._extra_facts |= facts

    def add_listing_s(self, seconds: float) -> None:
        """Add seconds to the time that listing took in this session."""
        self._listing_s += seconds

    def set_plan(
        self, layout: ScoringLayout, groups: DetectorGroups | None, memory: document.Memory
    ) -> None:
        """Record the planned processes and memory of the session, for its file and the summary.

        Args:
            layout: The kinds and numbers of worker processes.
            groups: Groups of detectors that take turns in a process; None if all fit together.
            memory: The planned memory of a node.
        """
        self._layout, self._groups, self._memory = layout, groups, memory

    def add_retry(self, manifest: int, statuses: Sequence[str], members: int) -> None:
        """Record a retry, in which this session scores files again that had certain statuses.

        Args:
            manifest: The number of the manifest that lists these files.
            statuses: The statuses that are retried.
            members: The number of files that are scored again.
        """
        self._retries.append(
            document.RetrySummary(listing=manifest, statuses=list(statuses), members=members)
        )
        self.log("started")

    def add_block(self, report: BlockReport) -> None:
        """Add the report of one committed block."""
        self.total.add(report, report.ref.members)
        self.total.counts[PUTS] += is_billed(self._run.store.url)
        for failure in report.failures:
            self._log_failure(failure)

    def _log_failure(self, failure: Mapping[str, Any]) -> None:
        """Log a member on which Touchstone's own code failed.

        A traceback is logged only once. Otherwise a million members could repeat it.
        """
        *location, _ = lines = failure["traceback"].rstrip().splitlines()
        name = truncate(file_name(failure["uri"], failure["member"]), _MAX_NAME_CHARACTERS)
        new_lines = lines if tuple(location) not in self._logged else lines[-1:]
        self._logged.add(tuple(location))
        _log.error(
            "this is a bug in Touchstone; please report it: %s\n%s",
            name,
            "\n".join(map(escape_invisible, new_lines)),
        )

    def cost(self) -> document.CostSummary:
        """Return the cost of this session so far, by the config's prices."""
        return compute_cost(self._prices, self.elapsed_s() / 3600, self.total.counts)

    def facts(self) -> document.SessionSummary:
        """Return the `session` section of `summary.json`: the times, counts, and cost so far.

        Its `images_per_s` is the rate between the first and the last committed block.
        """
        total, counts = self.total, self.total.counts
        return document.SessionSummary(
            number=self.number,
            rows=total.images,
            wall_s=round(self.elapsed_s(), 2),
            first_result_s=None if total.first is None else round(total.first - self._start, 2),
            images_per_s=total.images_per_s,
            **dict[str, Any]((name, counts[name]) for name in _COUNTED),
            retries=self._retries,
            backbones=count_backbone_runs(counts),
            detectors=detector_times(counts) or None,
            groups=[list(group) for group in self._groups.groups] if self._groups else None,
            peak_worker_bytes=total.peak_bytes,
            memory=self._memory,
            workers=self._layout.workers if self._layout else 0,
            layout=self._layout.kind if self._layout else None,
            cost=self.cost() if is_priced(self._prices) else None,
            looks=self._cascade_stages() if RESCORED in counts else None,
            described=counts.get(DESCRIBED),
            seconds={
                stage: round(seconds, 6)
                for stage, seconds in {"list": self._listing_s, **total.seconds}.items()
            },
            **self._extra_facts,
        )

    def _cascade_stages(self) -> dict[str, document.CascadeStageCost]:
        """Return the cost of each stage of a cascade; both add up to the work of all workers.

        Per stage, these are the images, the seconds of all workers, and the hours and the cost
        (machines only) of a million images of the archive.
        """
        second_s = self.total.counts[RESCORED_MS] / 1000
        elapsed_s = {"first": sum(self.total.seconds.values()) - second_s, "second": second_s}
        images = {"first": self.total.images, "second": self.total.counts[RESCORED]}
        total, compute = (
            max(sum(elapsed_s.values()), 1e-9),
            self.cost().compute if is_priced(self._prices) else None,
        )
        return {
            stage: document.CascadeStageCost(
                images=images[stage],
                seconds=round(seconds, 6),
                hours_per_million=round(seconds / max(self.total.images, 1) * 1e6 / 3600, 3),
                cost_per_million=None
                if compute is None
                else round(compute * seconds / total / max(self.total.images, 1) * 1e6, 4),
            )
            for stage, seconds in elapsed_s.items()
        }

    def log(self, state: str) -> None:
        """Write the session's file in the run directory.

        `state` is `started`, `finished`, or `interrupted`. The file also has the times, counts, and
        settings.
        """
        content = {"state": state, "started_at": self.started_at.isoformat(timespec="seconds"), "version": __version__,
                   "host": platform.node(), "pid": os.getpid(), "settings": self._settings, **self.facts().to_dict()}  # fmt: skip
        self._run.write_json(f"sessions/{self.number:05d}.json", content)


def count_backbone_runs(counts: Mapping[str, int]) -> dict[str, document.Sharing]:
    """Count how often each shared backbone ran, and how often detectors requested it.

    Detectors that share a backbone can use one result, so it may run less often than it is
    requested. The numbers are among `counts`, the counters of the workers by name.
    """
    runs = {
        name.removeprefix(RUNS): count for name, count in counts.items() if name.startswith(RUNS)
    }
    return {
        name: document.Sharing(runs=count, asked=counts.get(REQUESTED + name, 0))
        for name, count in runs.items()
    }


def detector_times(counts: Mapping[str, int]) -> dict[str, document.DetectorTime]:
    """Return for each detector the seconds that it took, and the number of images that it scored.

    The numbers are read from `counts`, the counters of the workers by name.
    """
    images_by_name = {
        name.removeprefix(SEEN): images for name, images in counts.items() if name.startswith(SEEN)
    }
    return {
        name: document.DetectorTime(
            seconds=round(counts.get(ELAPSED_US + name, 0) / 1e6, 6),
            images=images,
            ms_per_image=round(counts.get(ALONE_US + name, 0) / 1000 / images, 4)
            if images
            else None,
        )
        for name, images in images_by_name.items()
    }
