"""One session of a run: `ScoringSession` sums its workers' reports (`Tally`) and writes its file in
`sessions/`; `spent` is the bill.
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
from ray_app.inference import DESCRIBED, LOOKED, LOOKED_MS, STAGES
from ray_app.inference.batch import ALONE_US, REQUESTED, RUNS, SEEN, SPENT_US
from ray_app.inference.groups import DetectorGroups
from ray_app.reports.format import file_name, shortened, visible
from ray_app.runs import RunDirectory, document
from ray_app.scoring.config import Prices, ScoreConfig
from ray_app.scoring.layout import ScoringLayout
from ray_app.scoring.stages import BlockReport
from ray_app.storage.urls import scheme_of

GB = 1e9  # as networks are billed

# What is counted, by the names that reports of workers and summaries use.
GETS, PUTS, BYTES = "requests", "puts", "bytes_read"

_COUNTED = ("bytes_read", "requests", "puts", "retried", "throttled", "decoded")
MEASURABLE_S = 2.0  # over less time than this a rate would say nothing
_LONGEST_NAME = 300
_log = logging.getLogger(__name__)


def is_billed(url: str) -> bool:
    """Whether requests to a place go over a network, to a store that counts them."""
    return scheme_of(url) != "file"


def spent(prices: Prices, hours: float, counts: Mapping[str, float]) -> document.CostSummary:
    """Return the bill, unrounded, for `hours` of the cluster and the bytes that it read meanwhile.

    `counts`: `requests` (GET and HEAD over a network) and `bytes_read`; a count that is not known
    is 0. Bytes cost egress only if they came over a network: without a request no byte left a
    store.
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
    """Return whether any price is set."""
    return prices != Prices()


def require_prices(config: ScoreConfig) -> None:
    """Raises ConfigError for a `max_cost` that could never be reached, because no price is set."""
    if config.max_cost is not None and not is_priced(config.prices):
        raise ConfigError(
            f"--max-cost {config.max_cost:g}: no price is set, so this limit would never stop the run",
            hint="say what all machines together cost per hour: --set prices.per_hour=12.50",
        )


class Tally:
    """Sums over blocks as they are committed, by one thread, and read by others (`standing`); times
    are monotonic.
    """

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.first: float | None = None
        self.blocks = self.images = self.first_images = self.bad = self.peak_bytes = 0
        self.counts = Counter[str]()
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    def add(self, report: BlockReport, images: int) -> None:
        """Add a block with so many images."""
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

    def standing(self) -> tuple[int, int, int, int, dict[str, float]]:
        """What other threads read at one time: blocks, images, images without a score, bytes read,
        and seconds by stage.
        """
        with self._lock:
            return self.blocks, self.images, self.bad, self.counts[BYTES], dict(self.seconds)

    @property
    def images_per_s(self) -> float | None:
        """Between the first and the last block."""
        steady = self.last - (self.first or self.last)
        return (
            round((self.images - self.first_images) / steady, 2) if steady >= MEASURABLE_S else None
        )


class ScoringSession:
    """Counts while blocks are committed. `number` is 1 for the first session of a run; rows carry
    it as `attempt`. `total`: the sums over all blocks.

    `start` is the monotonic time at which the user's command began; `noted`: what its summary says
    of it besides.
    """

    def __init__(
        self,
        run: RunDirectory,
        settings: dict[str, Any],
        start: float,
        *,
        noted: Mapping[str, Any] | None = None,
    ) -> None:
        self._run, self._settings, self._noted = run, settings, dict(noted or {})
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

    def following(self) -> "ScoringSession":
        """The session after this one, laid out as it is; it begins now."""
        later = ScoringSession(self._run, self._settings, time.monotonic(), noted=self._noted)
        later._layout, later._groups, later._memory = self._layout, self._groups, self._memory
        return later

    def elapsed_s(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self._start

    def note(self, **facts: Any) -> None:
        """Have the summary say this of the session, too."""
        self._noted |= facts

    def listed(self, seconds: float) -> None:
        """Count the time that listing took."""
        self._listing_s += seconds

    def planned(
        self, layout: ScoringLayout, groups: DetectorGroups | None, memory: document.Memory
    ) -> None:
        """Note how the work is laid out, the detectors that take turns, and what a node's memory
        holds.
        """
        self._layout, self._groups, self._memory = layout, groups, memory

    def retrying(self, manifest: int, statuses: Sequence[str], members: int) -> None:
        """Note a retry that this session works on."""
        self._retries.append(
            document.RetrySummary(listing=manifest, statuses=list(statuses), members=members)
        )
        self.log("started")

    def committed(self, report: BlockReport) -> None:
        """Add one block's report."""
        self.total.add(report, report.ref.members)
        self.total.counts[PUTS] += is_billed(self._run.store.url)
        for failure in report.failures:
            self._log_failure(failure)

    def _log_failure(self, failure: Mapping[str, Any]) -> None:
        """Log a member on which our own code failed; a traceback that was shown before is not shown
        again for each of a million.
        """
        *where, _ = lines = failure["traceback"].rstrip().splitlines()
        name = shortened(file_name(failure["uri"], failure["member"]), _LONGEST_NAME)
        shown = lines if tuple(where) not in self._logged else lines[-1:]
        self._logged.add(tuple(where))
        _log.error(
            "this is a bug in Touchstone; please report it: %s\n%s",
            name,
            "\n".join(map(visible, shown)),
        )

    def cost(self) -> document.CostSummary:
        """What this session cost so far, by the config's prices."""
        return spent(self._prices, self.elapsed_s() / 3600, self.total.counts)

    def facts(self) -> document.SessionSummary:
        """The `session` section of a summary; the rate is that between the first and the last
        committed block.
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
            backbones=sharing(counts),
            detectors=detector_times(counts) or None,
            groups=[list(group) for group in self._groups.groups] if self._groups else None,
            peak_worker_bytes=total.peak_bytes,
            memory=self._memory,
            workers=self._layout.workers if self._layout else 0,
            layout=self._layout.kind if self._layout else None,
            cost=self.cost() if is_priced(self._prices) else None,
            looks=self._cascade_stages() if LOOKED in counts else None,
            described=counts.get(DESCRIBED),
            seconds={
                stage: round(seconds, 6)
                for stage, seconds in {"list": self._listing_s, **total.seconds}.items()
            },
            **self._noted,
        )

    def _cascade_stages(self) -> dict[str, document.CascadeStageCost]:
        """Of a cascade's first look and its second: images, seconds of all workers, and what a
        million images of the archive take and cost (machines alone) by that; the two of them add up
        to what the workers did.
        """
        again_s = self.total.counts[LOOKED_MS] / 1000
        spent_s = {"first": sum(self.total.seconds.values()) - again_s, "second": again_s}
        images = {"first": self.total.images, "second": self.total.counts[LOOKED]}
        total, compute = (
            max(sum(spent_s.values()), 1e-9),
            self.cost().compute if is_priced(self._prices) else None,
        )
        return {
            look: document.CascadeStageCost(
                images=images[look],
                seconds=round(seconds, 6),
                hours_per_million=round(seconds / max(self.total.images, 1) * 1e6 / 3600, 3),
                cost_per_million=None
                if compute is None
                else round(compute * seconds / total / max(self.total.images, 1) * 1e6, 4),
            )
            for look, seconds in spent_s.items()
        }

    def log(self, state: str) -> None:
        """Write the session's own file: when, where, with which settings, how it ended."""
        content = {"state": state, "started_at": self.started_at.isoformat(timespec="seconds"), "version": __version__,
                   "host": platform.node(), "pid": os.getpid(), "settings": self._settings, **self.facts().written()}  # fmt: skip
        self._run.write_json(f"sessions/{self.number:05d}.json", content)


def sharing(counts: Mapping[str, int]) -> dict[str, document.Sharing]:
    """Per shared backbone, how often it was asked and how often it ran."""
    runs = {
        name.removeprefix(RUNS): count for name, count in counts.items() if name.startswith(RUNS)
    }
    return {
        name: document.Sharing(runs=count, asked=counts.get(REQUESTED + name, 0))
        for name, count in runs.items()
    }


def detector_times(counts: Mapping[str, int]) -> dict[str, document.DetectorTime]:
    """Per detector, how long it took for how many images."""
    seen = {
        name.removeprefix(SEEN): images for name, images in counts.items() if name.startswith(SEEN)
    }
    return {
        name: document.DetectorTime(
            seconds=round(counts.get(SPENT_US + name, 0) / 1e6, 6),
            images=images,
            ms_per_image=round(counts.get(ALONE_US + name, 0) / 1000 / images, 4)
            if images
            else None,
        )
        for name, images in seen.items()
    }
