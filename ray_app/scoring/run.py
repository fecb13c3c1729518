"""One scoring session from top to bottom: `score_archive` checks, then a `ScoringRun` lists,
scores, publishes, verifies and summarizes.

Every step can be interrupted anywhere; the same command resumes from the facts on disk.
"""

import contextlib
import itertools
import math
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NoReturn

from ray_app.archives import (
    BlockPlan,
    fetcher_of,
    finish_manifest,
    is_as_listed,
    last_listing,
    open_manifest,
    read_complete,
)
from ray_app.archives.listing import ListingProcess
from ray_app.cluster import gpu_check, ray_cluster
from ray_app.cluster.progress import Progress
from ray_app.cluster.shutdown import LIMIT_GRACE_S, SIGNAL_GRACE_S, Stopper, Watch
from ray_app.config import config_root
from ray_app.detectors import licences, publish_weights, resolve_weights, weights
from ray_app.detectors.callables.process import require_startable
from ray_app.errors import (
    ClusterError,
    ConfigError,
    ExitCode,
    StorageError,
    TouchstoneError,
    resumable,
)
from ray_app.inference import ResourceEstimate, ScoringSpec, decoder
from ray_app.inference.groups import DetectorGroups, whole_bytes
from ray_app.inference.spec import profile_cards
from ray_app.reports.format import counted, headline, listing_in_words, shortened, size
from ray_app.runs import CurrentRows, RunDirectory, begin_retry, check_conservation, document
from ray_app.scoring import identity, stages
from ray_app.scoring.backlog import (
    archive_of,
    is_complete,
    listing_request,
    report_folders,
    work_of,
)
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.layout import ScoringLayout, plan_groups, plan_layout
from ray_app.scoring.orders import ORDERS, OrderWriter
from ray_app.scoring.report import (
    bad_fraction,
    has_read_nothing,
    renew_summary,
    write_report,
    write_summary,
)
from ray_app.scoring.run_metrics import RunMeter, name_of
from ray_app.scoring.session import ScoringSession, require_prices
from ray_app.scoring.stored_embeddings import StoredEmbeddings
from ray_app.scoring.turns import Turn
from ray_app.storage import Lease, node_budget, strip_secrets, with_s3_settings
from ray_app.streams.stage import ATTEMPTS

STALL_S = 900.0
# where members are of this size on average: large images also wait for each other
HEAVY_STALL_S, HEAVY_BYTES = 3600.0, 8 * 2**20
NOTICE_EVERY = 3  # ticks, of a second each, between two checks for nodes that will be taken away
# of the memory that Ray schedules on: as large is a node's object store, which has 30 % of it all
STORE_SHARE = 0.4
MARGIN_S = 5.0  # a driver is to have ended so long before its machine goes


_POLL_S, _FOLLOW_POLL_S = 0.25, 1.0  # between two looks for the next manifest


def today() -> date:
    """Return the day in UTC."""
    return datetime.now(UTC).date()


@dataclass(frozen=True)
class ScoringResult:
    """How a run ended: `exit_code` is DONE or TOO_MANY_BAD, `summary` the content of
    `summary.json`.
    """

    exit_code: ExitCode
    summary: dict[str, Any]


@with_s3_settings
def score_archive(config: ScoreConfig) -> ScoringResult:
    """Score `config.source` into `config.out`, from wherever an earlier session of the same command
    stopped.

    What the config leaves open is as the run was begun. Raises ConfigError, IdentityError (the
    directory is another command's or in use), DetectorError, StorageError, ClusterError, and
    KeyboardInterrupt on a request to stop. Those that the same call resumes from carry the note
    RESUMABLE.
    """
    if not config.source or not config.out:
        raise ConfigError(
            "nothing to score" if not config.source else "no run directory: --out DIR is missing",
            hint="touchstone score SOURCE --out DIR",
        )
    require_prices(config)
    if (
        config.cluster.gpus
        and config.device != "cpu"
        and ray_cluster.named_cluster(config.cluster.address) is None
    ):
        gpu_check.require_gpus(config.cluster.gpus)
    start = time.monotonic()
    directory = RunDirectory.open(config.out)
    with resumable(KeyboardInterrupt):
        settings = identity.resolve(config, directory)
        check_settings(settings, directory)
        with Lease(directory.store, unguarded=config.unguarded) as lease:
            with resumable(ClusterError):
                finished = _unchanged(settings, directory, lease, start)
            if finished is not None:
                return finished
            with ray_cluster.cluster(config.cluster):
                cpus, gpus, memory_bytes = ray_cluster.resources(config.cluster)
                spec = settings.spec(gpus)
                nodes, node_bytes = ray_cluster.planned_nodes(settings.config.cluster.labels, cpus)
                groups = groups_for(settings.config, spec, cpus, gpus, nodes, node_bytes)
                layout = layout_for(settings.config, spec, groups, cpus, gpus, memory_bytes)
                directory.claim(
                    settings.facts(spec), list(spec.cards), spec.ensemble.model_dump(mode="json")
                )
                with resumable(ClusterError):
                    run = ScoringRun(settings, directory, lease, spec, start)
                    return run.finished(layout, groups)


@with_s3_settings
def check_scoring(config: ScoreConfig) -> None:
    """Whether `score_archive` would begin: all that it checks before it writes anything. Raises as
    that does; fetches weights.
    """
    directory = RunDirectory.open(config.out or "")
    check_settings(identity.resolve(config, directory), directory)


def check_settings(settings: identity.Settings, directory: RunDirectory) -> None:
    """What can be refused before anything is written or a cluster started: a directory of another
    command, an unknown card, a licence, missing weights, a trust list, a source that is not there
    or empty, settings that an ensemble was not calibrated under.
    """
    config = settings.config
    directory.check_free()
    if directory.exists():
        directory.check_writable()
    elif config.rescore:
        raise ConfigError(
            f"there is no run in {directory.store.url} to retry",
            hint="the same command without --retry makes one",
        )
    check_detectors(settings)
    settings.spec(gpus=0)
    settings.require_same(directory)
    last = last_listing(directory.store)
    if last is None:
        if settings.embeddings is None:
            archive_of(config).check()
    elif last.goes_on and not last.portions:
        raise ConfigError(
            f"{directory.store.url}: Touchstone 0.25 did not finish the first listing of this run",
            hint="finish it with Touchstone 0.25, or score the source again with another --out",
        )


def _unchanged(
    settings: identity.Settings, directory: RunDirectory, lease: Lease, start: float
) -> ScoringResult | None:
    """The end of a finished run whose source is as it was, for which no cluster is started; None
    where there may be something to do.
    """
    config = settings.config
    if (
        config.rescore
        or config.follow is not None
        or not directory.exists()
        or not is_complete(directory)
    ):
        return None
    began = time.monotonic()
    # so short a check that it needs no cluster
    if settings.embeddings is not None:
        is_listed = settings.embeddings.is_listed(directory)
    else:
        is_listed = is_as_listed(directory.store, archive_of(config), config.limit)
    if not is_listed:
        return None
    listing_s = time.monotonic() - began
    run = ScoringRun(settings, directory, lease, settings.spec(gpus=0), start)
    run.session.listed(listing_s)
    return run.renewed()


class ScoringRun:
    """A session on a run directory that is this command's. `spec` is what everything is scored
    with; the caller resolves it once.
    """

    def __init__(
        self,
        settings: identity.Settings,
        directory: RunDirectory,
        lease: Lease,
        spec: ScoringSpec,
        start: float,
    ) -> None:
        self.config, self.directory, self.lease, self.spec = settings.config, directory, lease, spec
        self.embeddings, self.heads = settings.embeddings, settings.heads
        kept = settings.changed_default()
        if kept:
            named = ", ".join(f"{one['key']} {shortened(one['run'], 80)}" for one in kept)
            print(
                f"settings stay as the run was begun: {shortened(named, 400)}",
                file=sys.stderr,
                flush=True,
            )
        self.start, self.spent_before = start, 0.0
        self.day = today()
        facts = lease.facts() | ({"kept": kept} if kept else {})
        # A source may be a signed URL.
        sources = [strip_secrets(source) for source in self.config.source]
        written = self.config.model_dump(mode="json") | {"source": sources}
        self.session = ScoringSession(directory, written, start, noted=facts)

    def finished(self, layout: ScoringLayout, groups: DetectorGroups | None) -> ScoringResult:
        """All steps, on the cluster that this process has joined; `groups`: of detectors that take
        turns in the processes of the layout.
        """
        self.layout, self.groups = layout, groups
        nodes = ray_cluster.working_nodes(self.config.cluster.labels)
        self.session.planned(
            layout, groups, memory_of(self.config, self.spec, groups, layout, *nodes)
        )
        plan = layout.block_plan(self.spec.slots)
        # Orders and attempts of a command that was killed.
        self.directory.store.clear(ATTEMPTS)
        try:
            if self.config.rescore:
                self.retry(plan)
            elif self.config.follow is not None:
                self.follow(plan)
            elif self.embeddings is not None:
                self.score_embeddings(self.embeddings)
            else:
                self.score_listed(plan)
        finally:
            self._tidy_up()
        return self.finish_manifests()

    def score_listed(self, plan: BlockPlan) -> None:
        """Score the pending blocks of an unfinished run, else list the source and score what is new.

        A listing that an earlier command did not finish continues.

        Raises:
            ConfigError: The source is empty. If nothing was ever listed, the directory is free again.
        """
        run = self.directory
        # A command that followed the source may have left it open.
        finish_manifest(run.store, self.lease.number)
        if work_of(run).pending and open_manifest(run.store) is None:
            self.score(None)
            return
        try:
            with ListingProcess(listing_request(self.config, self.lease.number, plan)) as listing:
                self.score(listing)
                self.session.listed(listing.result().seconds)
        except ConfigError:
            if last_listing(run.store) is None:
                run.give_up()
            raise
        report_folders(run)

    def score_embeddings(self, embeddings: StoredEmbeddings) -> None:
        """Score the pending blocks of an unfinished run, else those that the run with the embeddings
        has in addition.
        """
        work, began = work_of(self.directory), time.monotonic()
        # The first block is scored after all manifests are copied. Without a scored block, a killed
        # command may have copied some of them.
        if len(work.pending) == len(work.blocks):
            embeddings.copy_manifests(self.directory)
            self.session.listed(time.monotonic() - began)
        self.score(None)

    def retry(self, plan: BlockPlan) -> None:
        """Score the current members whose row has one of `config.rescore` again; nothing is listed.

        A retry that an earlier command began is continued instead.

        Raises:
            ConfigError: Not all files of the last listing have been scored.
        """
        run, statuses = self.directory, [status.value for status in self.config.rescore]
        finish_manifest(run.store, self.lease.number)
        work, last = work_of(run), last_listing(run.store)
        if last is None or last.goes_on or (work.pending and not last.is_retry):
            raise ConfigError(
                f"{run.store.url}: not all files have been scored once",
                hint="run the same command without --retry first",
            )
        if not work.pending:
            if work.manifests:
                self.finish_manifests()
            begun = begin_retry(CurrentRows.read(run), statuses, plan)
            if begun.refused:
                print(
                    f"not retried: {begun.refused:,} that were refused when the archive was listed; "
                    "the same command without --retry lists it again",
                    file=sys.stderr,
                )
            elif begun.info is None:
                print(
                    f"no file has the status {' or '.join(statuses)}: nothing to retry",
                    file=sys.stderr,
                )
            if begun.info is None:
                return
            last = begun.info
        named = " or ".join(last.retried)
        print(f"retrying {counted(last.members, 'file')} with the status {named}", file=sys.stderr)
        self.session.retrying(last.manifest, last.retried, last.members)
        self.score(None)

    def follow(self, plan: BlockPlan) -> NoReturn:
        """Score what the source has and gets, and finish the manifest of each day at its end.

        Each day is a session of its own. If the run is stopped and everything listed is scored, the
        manifest is finished, too.

        Raises:
            KeyboardInterrupt: The run is stopped.
        """
        # A few hundred images must not become a dozen blocks.
        often = plan.model_copy(update={"blocks_per_doubling": self.layout.workers})
        request = listing_request(self.config, self.lease.number, often)
        while True:
            self.day = today()
            try:
                with ListingProcess(request) as listing:
                    self.score(listing)
            except KeyboardInterrupt:
                if not work_of(self.directory).pending:
                    self._finish_day()
                raise
            if self._finish_day():
                self.spent_before += self.session.cost().total
                self.session = self.session.following()

    def _finish_day(self) -> bool:
        """Finish the manifest of a day; return False if its first listing has not reached its end."""
        store = self.directory.store
        finish_manifest(store, self.lease.number)
        if last_listing(store) is None or open_manifest(store) is not None:
            return False
        report_folders(self.directory)
        summary = document.RunSummary.model_validate(self.finish_manifests().summary)
        print(f"settled: {headline(summary)}", file=sys.stderr, flush=True)
        return True

    def finish_manifests(self) -> ScoringResult:
        """Publish the rows of the unfinished manifests, prove that every member has one, count, and
        report.
        """
        unfinished = work_of(self.directory).manifests
        self.publish()
        check_conservation(self.directory, unfinished, each=ray_cluster.on_ray)
        if not unfinished:
            return self.renewed()
        summary = write_summary(
            self.directory, self.spec, self.session, thumbnails=self.config.thumbnails
        )
        return self._reported(summary)

    def score(self, listing: ListingProcess | None) -> None:
        """Score the pending blocks of the run, and what is listed meanwhile.

        Raises:
            KeyboardInterrupt: A stop was requested while blocks were pending.
            ClusterError: Ray gave up, a block killed its workers, or the listing ended early.
            StorageError: The store or a source is unreachable.
            TouchstoneError: Whatever else a worker met.
        """
        is_listing = listing is not None and listing.is_running
        if is_listing or work_of(self.directory).pending:
            self._score_turns(listing)
        if listing is not None and not listing.is_running:
            listing.result()

    def _is_day_over(self) -> bool:
        return self.config.follow is not None and today() != self.day

    def _score_turns(self, listing: ListingProcess | None) -> None:
        """Score the pending blocks, turn after turn. Raises as `score`."""
        from ray_app.scoring.engine import score_turn

        config, run = self.config.cluster, self.directory
        work, layout = work_of(run), self.layout
        done = work.members - work.pending.members
        exported = ray_cluster.named_cluster(config.address) is not None
        meter = RunMeter(
            name_of(run.store.url), self.session.total, len(work.pending), layout, exported=exported
        )
        progress = Progress(work.members, done=done, note=meter.bound)
        if listing is None:
            listed = f"{counted(work.members, 'file')} in {counted(len(work.blocks), 'block')}"
            progress.say(f"{listed}, {done:,} done before; {layout.described}")
        else:
            earlier = counted(self._settled_files() + done, "file")
            progress.say(f"listing; {earlier} done before; {layout.described}")
        stopper = Stopper(say=progress.say, grace_s=config.grace_s)
        orders = OrderWriter(run.store, self.lease.number, layout.most_open)
        stall_s = HEAVY_STALL_S if work.pending.heaviest_mean > HEAVY_BYTES else STALL_S
        patience_s = config.stall_timeout_s or max(
            stall_s, layout.slowest_block_s(ResourceEstimate.of(self.spec).worst_gmac)
        )
        state = _TurnState(listing, progress, meter, stopper, orders)
        state.following = work.following
        state.expected = len(work.pending)
        # Workers load while the first portion is listed.
        state.keeps_workers = work.following == (0, 0)
        if work.listed is not None:
            state.members, state.blocks = work.listed.members, work.listed.blocks
        seconds, emulating = itertools.count(), frozenset[str]()
        watch: Watch = Watch(patience_s, stopper, lambda: self._tick(state, watch, next(seconds)))
        try:
            with self._job(run) as job, stopper.listening(), watch:
                while (turn := self._next_turn(state)) is not None:
                    before = len(state.scored)
                    for report in score_turn(turn, job, layout, orders, watch):
                        state.scored.add(report.ref.place)
                        state.active_at = time.monotonic()
                        for node in report.work.emulating - emulating:
                            progress.say(
                                f"{node} is slow: its processor has no bf16, in which this run scores, and emulates it"
                            )
                        emulating |= report.work.emulating
                        self.session.committed(report)
                        progress.advance(report.ref.members, report.bad)
                    # A node that will be taken away may return all blocks, unstarted.
                    is_excused = stopper.reason is not None or bool(stopper.avoided)
                    if turn.blocks and len(state.scored) == before and not is_excused:
                        raise ClusterError(
                            f"{len(turn.blocks):,} blocks are pending, and a whole turn committed none of them",
                            hint="check that there are nodes for the plan shown above; the same command resumes",
                        )
        except BaseException:
            # What ends the run may be the very store that this is written to.
            with contextlib.suppress(StorageError):
                self.session.log("interrupted")
            raise
        finally:
            progress.close()
            meter.export(is_over=True)

    def _next_turn(self, state: "_TurnState") -> Turn | None:
        """Begin the next turn, once blocks are pending; None once nothing is left to do.

        Raises:
            KeyboardInterrupt: A stop was requested, and something is left to do.
        """
        run, listing = self.directory, state.listing
        while True:
            # Checked first: what was listed before the listing ended is pending below.
            is_listing = listing is not None and listing.is_running
            if listing is not None and not is_listing:
                self._announce_listed(state, listing)
            work = work_of(run)
            left = work.pending.where([ref.place not in state.scored for ref in work.pending])
            if state.stopper.reason is not None and (left or is_listing):
                raise KeyboardInterrupt(state.stopper.reason)
            if left or (is_listing and not self._is_day_over() and state.keeps_workers):
                break
            if listing is None or not is_listing or self._is_day_over():
                return None
            self._await_portion(*work.following, listing)
        following = work.following if is_listing else None
        number = state.orders.begin_turn()
        state.keeps_workers, state.active_at = True, time.monotonic()
        return Turn(run, self.lease.number, number, left, following)

    def _await_portion(self, number: int, portion: int, listing: ListingProcess) -> None:
        """Wait until a portion is complete, the listing has ended, or the day is over."""
        while listing.is_running and not self._is_day_over():
            if read_complete(self.directory.store, number, portion) is not None:
                return
            time.sleep(_POLL_S if self.config.follow is None else _FOLLOW_POLL_S)

    def publish(self) -> None:
        """Merge the parts of every listing into the files that people read."""
        self.directory.publish_all(each=ray_cluster.on_ray)

    def renewed(self) -> ScoringResult:
        """The end of a session that found nothing to do: no row is counted again, and a report that
        is there stays (its pictures would be fetched anew), unless another prior is wanted.
        """
        run, finished = self.directory, self.directory.last_finished()
        has_report = run.store.exists("report.html") and (
            run.store.exists("summary.json")
            and run.read_json("summary.json")["listing"] == finished
        )
        summary = renew_summary(run, self.session, thumbnails=self.config.thumbnails)
        return self._reported(summary, reports=self.config.prior is not None or not has_report)

    def _reported(self, summary: dict[str, Any], *, reports: bool = True) -> ScoringResult:
        config = self.config
        if reports:
            write_report(self.directory, prior=config.prior)
        self.session.log("finished")
        most = config.max_bad_fraction
        too_many = has_read_nothing(summary) if most is None else bad_fraction(summary) > most
        return ScoringResult(ExitCode.TOO_MANY_BAD if too_many else ExitCode.DONE, summary)

    @contextlib.contextmanager
    def _job(self, directory: RunDirectory) -> Iterator[stages.ScoringJob]:
        """What workers are given, and a folder of their own on the disk of each node."""
        config = self.config
        markers = Path(tempfile.gettempdir()) / f"touchstone-{uuid.uuid4().hex}"
        mirror = share_weights(self.spec, self.directory) if ray_cluster.has_other_nodes() else None
        try:
            fetcher = fetcher_of(config.source, config.retry, allow_private=config.allow_private)
            limit_s, decode_bytes = config.cluster.decode_limit_s, config.cluster.decode_bytes
            yield stages.ScoringJob(directory, self.spec, fetcher, self.session.number, markers, mirror, limit_s, decode_bytes,
                members=self.layout.block_members, compiled=config.compiled, lease=self.lease.number,
                groups=self.groups, stored=self.heads)  # fmt: skip
        finally:
            shutil.rmtree(markers, ignore_errors=True)

    def _layout_now(self) -> ScoringLayout:
        """The layout for the nodes of now, if it is of the same kind; else the run waits for nodes
        like those it began with.
        """
        planned, here = self.layout, ray_cluster.resources(self.config.cluster)
        try:
            now = layout_for(self.config, self.spec, self.groups, *here)
        except ClusterError:
            return planned
        same = (now.kind, len(now.scorers), now.scorer_gpus) == (
            planned.kind,
            len(planned.scorers),
            planned.scorer_gpus,
        )
        return replace(now, block_members=planned.block_members) if same else planned

    def _tick(self, state: "_TurnState", watch: Watch, second: int) -> None:
        """Check every second the lease, the listing, the limits of time and cost, and machines that
        will be taken away.

        Raises:
            StorageError: The lease is lost. All else requests a stop or the end of the turn.
        """
        stopper = state.stopper
        state.progress.redraw()
        state.meter.export()
        if self.lease.lost.is_set():
            url = self.directory.store.url
            raise StorageError(
                f"{url}: another run took this directory over",
                hint="only one run may write there at a time; the newest file in its folder lease names it",
            )
        hours, cost = self.config.max_hours, self.config.max_cost
        if hours is not None and time.monotonic() - self.start > hours * 3600:
            stopper.ask(f"--max-hours {hours:g} is over", LIMIT_GRACE_S)
        if cost is not None and self.spent_before + self.session.cost().total >= cost:
            stopper.ask(f"--max-cost {cost:g} is spent", LIMIT_GRACE_S)
        if second % NOTICE_EVERY == 0:
            leaving = ray_cluster.leaving_nodes()
            stopper.avoid(leaving)
            left_s = leaving.get(ray_cluster.own_node())
            if left_s is not None:
                stopper.ask(
                    "this machine will be taken away",
                    max(0.0, min(SIGNAL_GRACE_S, left_s - MARGIN_S)),
                )
            now = state.meter.laid_out(self._layout_now())
            state.orders.window = now.most_open
            self._note_listed(state)
            watch.rests = len(state.scored) >= state.expected
        state.orders.stop(stopper.reason is not None, stopper.avoided)

    def _note_listed(self, state: "_TurnState") -> None:
        """Count what was listed meanwhile, and end the turn if no more comes."""
        listing = state.listing
        if listing is None:
            return
        is_running = listing.is_running
        if not is_running:
            self._announce_listed(state, listing)
        state.progress.grow(0, goes_on=is_running)
        state.meter.grow(0, goes_on=is_running)
        while (info := read_complete(self.directory.store, *state.following)) is not None:
            state.progress.grow(info.members - state.members, goes_on=is_running)
            state.meter.grow(info.blocks - state.blocks, goes_on=is_running)
            state.expected += info.blocks - state.blocks
            state.following = info.manifest, info.portions
            state.members, state.blocks = info.members, info.blocks
        idle_s = self.config.cluster.idle_s
        is_idle = idle_s is not None and time.monotonic() - state.active_at > idle_s
        if is_idle and is_running and state.keeps_workers:
            state.progress.say(f"stopping workers: no new items for {idle_s:.0f} s")
            state.keeps_workers = False
        if not is_running or is_idle or self._is_day_over():
            state.orders.end_turn()

    def _announce_listed(self, state: "_TurnState", listing: ListingProcess) -> None:
        """Say once what a listing that has ended found, or that it ended early.

        `score` raises the error of a listing that ended early, in the end.
        """
        if state.is_listed:
            return
        state.is_listed = True
        state.progress.grow(0, goes_on=False)
        state.meter.grow(0, goes_on=False)
        try:
            outcome = listing.result()
        except TouchstoneError as error:
            if state.following != (0, 0):
                state.progress.say(
                    f"the listing ended early; the files listed so far are scored first: {error}"
                )
            return
        info = last_listing(self.directory.store)
        if info is not None:
            state.progress.say(listing_in_words(info.listed, outcome.members, outcome.blocks))

    def _settled_files(self) -> int:
        """Return how many files the last summary counts."""
        try:
            return int(self.directory.read_json("summary.json")["members"])
        except FileNotFoundError:
            return 0

    def _tidy_up(self) -> None:
        """Remove what workers were told and what they noted."""
        with contextlib.suppress(StorageError):
            self.directory.store.delete(ORDERS)
            self.directory.store.clear(ATTEMPTS)


@dataclass
class _TurnState:
    """What changes from turn to turn.

    Attributes:
        scored: The blocks that were reported.
        following: The next manifest and portion that the progress counts.
        members: Members of the open manifest that the progress counts.
        blocks: Blocks of the open manifest that the progress counts.
        expected: How many blocks were pending or have been listed since.
        keeps_workers: Whether workers wait for what is listed next.
        is_listed: Whether the end of the listing was noticed.
        active_at: When a turn began or a block was committed last.
    """

    listing: ListingProcess | None
    progress: Progress
    meter: RunMeter
    stopper: Stopper
    orders: OrderWriter
    scored: set[tuple[int, int]] = field(default_factory=set)
    following: tuple[int, int] = (0, 0)
    members: int = 0
    blocks: int = 0
    expected: int = 0
    keeps_workers: bool = False
    is_listed: bool = False
    active_at: float = 0.0


def share_weights(spec: ScoringSpec, run: RunDirectory) -> str | None:
    """Return where the workers of a cluster find weights, and copy them there if need be.

    The driver alone fetches, since a hub would refuse a thousand workers at once.

    Returns:
        $TOUCHSTONE_WEIGHTS_MIRROR if it is set, else a copy in the run directory; None if all
        weights are shipped.
    """
    if weights.MIRROR_VARIABLE in os.environ:
        return os.environ[weights.MIRROR_VARIABLE]
    shipped = config_root() / "detectors"
    # Heads travel with the job.
    cards = () if spec.reads_embeddings else spec.cards.values()
    fetched = [card for card in cards if resolve_weights(card).parent != shipped]
    profile = [card for card in (spec.identifier, spec.describer) if card is not None]
    if not fetched and not profile:
        return None
    mirror = f"{run.store.url}/weights"
    for card in fetched:
        publish_weights(card, mirror)
    for part in (part for card in profile for part in card.parts):
        weights.publish_part(part, mirror)
    return mirror


def groups_for(
    config: ScoreConfig,
    spec: ScoringSpec,
    cpus: float,
    gpus: float,
    nodes: int,
    node_bytes: float | None,
) -> DetectorGroups | None:
    """Group the detectors that do not fit into a process of this run together.

    Raises:
        ConfigError: They must fit, or one alone does not.
    """
    if spec.reads_embeddings:
        return None
    groups = plan_groups(
        spec,
        worker_bytes=config.cluster.worker_bytes,
        workers=config.cluster.workers,
        cpus=cpus,
        gpus=gpus,
        nodes=nodes,
        node_bytes=node_bytes,
    )
    if groups is not None and config.compiled and spec.device != "cpu":
        raise ConfigError(
            f"compiled: the detectors do not fit into {size(config.cluster.worker_bytes or 0)}, "
            "and networks that take turns would be compiled for each block",
            hint=f"--set cluster.worker_bytes={whole_bytes(spec)} or more, or --set compiled=false",
        )
    return groups


def layout_for(
    config: ScoreConfig,
    spec: ScoringSpec,
    groups: DetectorGroups | None,
    cpus: float,
    gpus: float,
    memory_bytes: float,
) -> ScoringLayout:
    """The processes that a run of this config uses on such a cluster. Raises ClusterError when
    nothing fits.
    """
    is_local = ray_cluster.named_cluster(config.cluster.address) is None
    store_bytes = (
        ray_cluster.local_store_bytes(config.cluster) if is_local else STORE_SHARE * memory_bytes
    )
    layout = plan_layout(
        ResourceEstimate.of(spec),
        slots=spec.slots,
        passes=spec.passes,
        cpus=cpus,
        gpus=0 if spec.reads_embeddings else gpus,
        workers=config.cluster.workers,
        block_members=config.block_members,
        memory_bytes=memory_bytes,
        store_bytes=store_bytes,
        groups=groups,
    )
    return replace(layout, labels=config.cluster.labels, reads_embeddings=spec.reads_embeddings)


def memory_of(
    config: ScoreConfig,
    spec: ScoringSpec,
    groups: DetectorGroups | None,
    layout: ScoringLayout,
    nodes: int,
    node_bytes: int | None,
) -> document.Memory:
    """What the processes of such a layout take on each of `nodes` nodes, the smallest of which has
    `node_bytes` of memory.
    """
    decode_bytes = config.cluster.decode_bytes or (
        node_budget.budget_of(node_bytes) if node_bytes else None
    )
    encoded = None if decode_bytes is None else decoder.file_bytes(decode_bytes, config.limits)
    process_bytes = (
        ResourceEstimate.of(spec).process_bytes if groups is None else groups.process_bytes
    )
    processes = math.ceil(layout.workers / nodes)
    total = (
        None
        if decode_bytes is None or encoded is None
        else processes * process_bytes + decode_bytes + encoded
    )
    return document.Memory(
        processes=processes,
        process_bytes=process_bytes,
        decode_bytes=decode_bytes,
        file_bytes=encoded,
        total_bytes=total,
    )


def check_detectors(settings: identity.Settings) -> None:
    """Whether every detector may and can be used here; fetches weights. Raises ConfigError, and
    DetectorError for licence or weights.
    """
    cards = {card.name: card for card in settings.cards}
    for card in cards.values():
        licences.require_accepted(card, settings.config.accept_licences)
        if settings.embeddings is not None:
            continue  # Its head alone is read, by `Settings.heads`.
        resolve_weights(card)
        if card.process is not None:
            require_startable(card)
    for part in (
        part
        for profiling in profile_cards(settings.ensemble, cards)
        if profiling is not None
        for part in profiling.parts
    ):
        weights.resolve_part(part)
