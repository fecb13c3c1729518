"""A pass: score a sequence of blocks of a run directory, with progress shown, limits kept and stops made well."""

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ray_app.archives import fetcher_of
from ray_app.cluster.progress import Progress
from ray_app.cluster.ray_cluster import has_other_nodes, leaving_nodes, own_node
from ray_app.cluster.shutdown import LIMIT_GRACE_S, SIGNAL_GRACE_S, Stopper, Watch
from ray_app.errors import ClusterError, StorageError
from ray_app.inference import ResourceEstimate, ScoringSpec
from ray_app.runs import RunDirectory
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.identity import known_scores, share_weights
from ray_app.scoring.layout import ScoringLayout
from ray_app.scoring.listing import Listing
from ray_app.scoring.session import ScoringSession
from ray_app.scoring.workers import ScoringJob
from ray_app.storage import Lease

STALL_S = 900.0
HEAVY_STALL_S, HEAVY_BYTES = 3600.0, 8 * 2**20  # where members are of this size on average: large images also wait for each other
NOTICE_EVERY = 3  # ticks, of a second each, between two looks for nodes that will be taken away
MARGIN_S = 5.0  # a driver is to have ended so long before its machine goes


@dataclass(frozen=True)
class Pass:
    """What every pass of one session has in common. `layout` is the one that people were told; `replan` fits it to the nodes of now;
    `home` is the run itself, where a pass may score into a part of it.
    """

    config: ScoreConfig
    lease: Lease
    session: ScoringSession
    spec: ScoringSpec
    layout: ScoringLayout
    replan: Callable[[], ScoringLayout]
    home: RunDirectory

    def score(self, run: RunDirectory, work: Listing) -> None:
        """Score the pending blocks of `work` into `run`.

        Raises KeyboardInterrupt when it was asked to stop and blocks are left; ClusterError, StorageError and whatever else a worker met.
        """
        from ray_app.scoring.engine import score_blocks

        progress = self._progress(work)
        stopper = Stopper(run.store, self.session.number, say=progress.say, grace_s=self.config.cluster.grace_s)
        stall_s = HEAVY_STALL_S if work.pending.heaviest_mean > HEAVY_BYTES else STALL_S
        slowest_s = self.layout.slowest_block_s(ResourceEstimate.of(self.spec).worst_gmac)
        patience_s = self.config.cluster.stall_timeout_s or max(stall_s, slowest_s)
        try:
            ticks = _Ticks(self, run.store.url, progress, stopper)
            with self._job(run) as job, stopper.listening(), Watch(patience_s, stopper, ticks) as watch:
                for report in score_blocks(work.pending, job, self._layout, stopper=stopper, watch=watch):
                    self.session.committed(report)
                    progress.advance(report["members"], report["bad"])
        except BaseException:
            with contextlib.suppress(StorageError):  # what ends the run may be the very place that this is written to
                self.session.log("interrupted")
            raise
        finally:
            progress.close()

    def _progress(self, work: Listing) -> Progress:
        done = work.members - work.pending.members
        progress = Progress(work.members, done=done)
        blocks = f"{len(work.blocks):,} block{'s' * (len(work.blocks) != 1)}"
        progress.say(f"{work.members:,} members in {blocks}, {done:,} done before; {self.layout.described}")
        return progress

    @contextmanager
    def _job(self, run: RunDirectory) -> Iterator[ScoringJob]:
        crumbs = Path(tempfile.gettempdir()) / f"touchstone-{uuid.uuid4().hex}"
        mirror = share_weights(self.spec, self.home) if has_other_nodes() else None
        known = known_scores(self.home, self.spec) if self.config.reuse else None
        config, number = self.config, self.session.number
        limit_s, decode_bytes = config.cluster.decode_limit_s, config.cluster.decode_bytes
        try:
            fetcher = fetcher_of(config.source, config.retry, allow_private=config.allow_private)
            yield ScoringJob(run, self.spec, fetcher, number, crumbs, mirror, limit_s, known, decode_bytes)
        finally:
            shutil.rmtree(crumbs, ignore_errors=True)

    def _layout(self) -> ScoringLayout:
        """The layout for the nodes of now, if it is of the same kind; else the pass waits for nodes like those it began with."""
        try:
            now = self.replan()
        except ClusterError:
            return self.layout
        same = (now.kind, len(now.scorers), now.scorer_gpus) == (self.layout.kind, len(self.layout.scorers), self.layout.scorer_gpus)
        return replace(now, block_members=self.layout.block_members) if same else self.layout


class _Ticks:
    """What is looked at every second: the lease, the limits of time and cost, machines that will be taken away."""

    def __init__(self, scoring: Pass, url: str, progress: Progress, stopper: Stopper) -> None:
        self._config, self._lease, self._session = scoring.config, scoring.lease, scoring.session
        self._progress, self._stopper, self._count = progress, stopper, 0
        self._url = url

    def __call__(self) -> None:
        """Raises StorageError once the lease is lost; all else asks the stopper."""
        self._progress.redraw()
        self._lease_held()
        self._limits()
        if self._count % NOTICE_EVERY == 0:
            self._notices()
        self._count += 1

    def _lease_held(self) -> None:
        if self._lease.lost.is_set():
            raise StorageError(f"{self._url}: another run took this directory over", hint="only one may write it; see lease.json there")

    def _limits(self) -> None:
        hours, cost = self._config.max_hours, self._config.max_cost
        if hours is not None and self._session.elapsed_s() > hours * 3600:
            self._stopper.ask(f"--max-hours {hours:g} is over", LIMIT_GRACE_S)
        if cost is not None and self._session.cost().total >= cost:
            self._stopper.ask(f"--max-cost {cost:g} is spent", LIMIT_GRACE_S)

    def _notices(self) -> None:
        leaving = leaving_nodes()
        self._stopper.avoid(leaving)
        left_s = leaving.get(own_node())
        if left_s is not None:
            self._stopper.ask("the machine of this driver will be taken away", max(0.0, min(SIGNAL_GRACE_S, left_s - MARGIN_S)))
