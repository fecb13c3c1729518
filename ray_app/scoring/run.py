"""Run one scoring session from start to end (`score_archive`).

After the checks, a `ScoringRun` lists the source, scores files, publishes and verifies rows, and writes
the summary. Every step can be interrupted at any point. The same command then resumes from the files
of the run directory.
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
    create_fetcher,
    finish_manifest,
    is_as_listed,
    read_complete,
    read_last_listing,
    read_open_manifest,
)
from ray_app.archives.listing import ListingProcess
from ray_app.cluster import gpu_check, ray_cluster
from ray_app.cluster.progress import Progress
from ray_app.cluster.shutdown import (
    LIMIT_GRACE_S,
    SIGNAL_GRACE_S,
    ShutdownController,
    StallWatchdog,
)
from ray_app.detectors import licences, publish_weights, resolve_weights, weights
from ray_app.detectors.callables.process import require_device, require_startable
from ray_app.errors import (
    ClusterError,
    ConfigError,
    ExitCode,
    StorageError,
    TouchstoneError,
    resumable,
)
from ray_app.inference import ResourceEstimate, ScoringSpec, decoder
from ray_app.inference.groups import DetectorGroups, estimate_total_bytes
from ray_app.inference.spec import profile_cards
from ray_app.reports.format import describe_listing, headline, pluralize, size, truncate
from ray_app.runs import CurrentRows, RunDirectory, begin_retry, check_conservation, document
from ray_app.scoring import identity, stages
from ray_app.scoring.backlog import (
    find_work,
    is_complete,
    listing_request,
    open_archive,
    report_folders,
)
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.control import start_control
from ray_app.scoring.layout import ScoringLayout, plan_groups, plan_layout
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
from ray_app.storage import Lease, apply_s3_settings, node_budget, strip_secrets

# A run ends if no block is finished for this many seconds.
STALL_S = 900.0
# The longer limit in seconds, for a run with a block whose members have more than these bytes on
# average. Large images also wait for each other.
HEAVY_STALL_S, HEAVY_BYTES = 3600.0, 8 * 2**20
NOTICE_EVERY = 3  # Ticks, of a second each, between two checks for nodes that will be taken away.
# The size of a node's object store as a fraction of the memory that Ray schedules on. The store has
# 30 % of all memory.
STORE_SHARE = 0.4
MARGIN_S = 5.0  # A driver should exit this long before its machine is taken away.


_POLL_S, _FOLLOW_POLL_S = 0.25, 1.0  # Between two checks for the next portion of a listing.


def today() -> date:
    """Return the current day in UTC."""
    return datetime.now(UTC).date()


@dataclass(frozen=True)
class ScoringResult:
    """The result of `score_archive`, with the content of `summary.json`.

    The exit code is `TOO_MANY_BAD` if too many files have no score.
    """

    exit_code: ExitCode
    summary: dict[str, Any]


@apply_s3_settings
def score_archive(config: ScoreConfig) -> ScoringResult:
    """Score the images in `config.source`, and write the results to the run directory `config.out`.

    If the run directory contains a run of the same command, that run continues. Its pending files
    are scored. If none are pending, the source is listed again, and new or changed files are
    scored. Settings that the config does not set are taken from the existing run. With
    `config.follow`, the run continues until it is stopped.

    If the same call can resume after an exception, the exception has the note
    `ray_app.errors.RESUMABLE`. Raises IdentityError if the directory is used by another command or
    another run is writing to it, ClusterError if the cluster has no capacity, or no block is
    finished for too long, and KeyboardInterrupt if a signal, `max_hours`, or `max_cost` stopped the
    run before all files were listed and scored.
    """
    if not config.source or not config.out:
        raise ConfigError(
            "the argument SOURCE is missing"
            if not config.source
            else "no run directory: --out DIR is missing",
            hint="run touchstone score SOURCE --out DIR",
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
                result = _finish_unchanged(settings, directory, lease, start)
            if result is not None:
                return result
            with ray_cluster.cluster(config.cluster):
                cpus, gpus, memory_bytes = ray_cluster.resources(config.cluster)
                spec = settings.spec(gpus)
                nodes, node_bytes = ray_cluster.planned_nodes(settings.config.cluster.labels, cpus)
                groups = groups_for(settings.config, spec, cpus, gpus, nodes, node_bytes)
                layout = layout_for(settings.config, spec, groups, cpus, gpus, memory_bytes)
                directory.claim(
                    settings.facts(spec), list(spec.cards), spec.ensemble.model_dump(mode="json")
                )
                with _explain_deletion(directory), resumable(ClusterError):
                    run = ScoringRun(settings, directory, lease, spec, start)
                    return run.execute(layout, groups)


@apply_s3_settings
def check_scoring(config: ScoreConfig) -> None:
    """Run the checks of `score_archive` that come before it writes anything. Fetches weights.

    An evaluation calls this before it scores anything. The exceptions are those of `score_archive`.
    """
    directory = RunDirectory.open(config.out or "")
    check_settings(identity.resolve(config, directory), directory)


def check_settings(settings: identity.Settings, directory: RunDirectory) -> None:
    """Check settings, source, and run directory before a file is written or a cluster is started.

    The exceptions are those of `score_archive`. The check fails in these cases:

    - The run directory belongs to another command.
    - A card is unknown, weights are missing, or a licence was not accepted.
    - A trust list, which has certificates whose C2PA signatures count as trusted, is missing.
    - The source is missing or empty.
    - The ensemble was not calibrated for the settings.
    """
    config = settings.config
    directory.check_free()
    if directory.exists():
        directory.check_writable()
    elif config.rescore:
        raise ConfigError(
            f"there is no run in {directory.store.url} to retry",
            hint="run the same command without --retry to create a run",
        )
    check_detectors(settings)
    settings.spec(gpus=0)
    settings.require_same(directory)
    last = read_last_listing(directory.store)
    if last is None:
        if settings.embeddings is None:
            open_archive(config).check()
    elif last.goes_on and not last.portions:
        raise ConfigError(
            f"{directory.store.url}: Touchstone 0.25 did not finish the first listing of this run",
            hint="finish it with Touchstone 0.25, or score the source again with another --out",
        )


@contextlib.contextmanager
def _explain_deletion(directory: RunDirectory) -> Iterator[None]:
    """Raise StorageError instead of an exception whose cause is that the run was deleted.

    A ConfigError is raised unchanged, because a run with an empty source deletes itself.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        store, is_deleted, left = directory.store, False, []
        # The error may come from the store that is read here.
        with contextlib.suppress(StorageError):
            is_deleted = not directory.exists()
            left = [*store.folders(""), *store.names("")] if is_deleted else []
        if not is_deleted:
            raise
        raise StorageError(
            f"{store.url}: the run was deleted while this command scored; "
            f"left in the directory: {', '.join(left) or 'nothing'}",
            hint="restore the directory, or delete it, and run the same command again",
        ) from error


def _finish_unchanged(
    settings: identity.Settings, directory: RunDirectory, lease: Lease, start: float
) -> ScoringResult | None:
    """Finish a session on a finished run whose source has not changed, without starting a cluster.

    The result is None if there may be something to do.
    """
    config = settings.config
    if (
        config.rescore
        or config.follow is not None
        or not directory.exists()
        or not is_complete(directory)
    ):
        return None
    checked_at = time.monotonic()
    # This check is so short that it needs no cluster.
    if settings.embeddings is not None:
        is_listed = settings.embeddings.is_listed(directory)
    else:
        is_listed = is_as_listed(directory.store, open_archive(config), config.limit)
    if not is_listed:
        return None
    listing_s = time.monotonic() - checked_at
    run = ScoringRun(settings, directory, lease, settings.spec(gpus=0), start)
    run.session.add_listing_s(listing_s)
    return run.finish_unchanged()


class ScoringRun:
    """Run one scoring session: the work of one command on a run directory.

    `start` is the monotonic time at which the user's command started.
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
        differing = settings.changed_default()
        if differing:
            text = ", ".join(f"{line['key']} {truncate(line['run'], 80)}" for line in differing)
            print(
                f"keeping the settings of the existing run: {truncate(text, 400)}",
                file=sys.stderr,
                flush=True,
            )
        self.start, self.spent_before = start, 0.0
        self.day = today()
        facts = lease.facts() | ({"kept": differing} if differing else {})
        # A source may be a signed URL.
        sources = [strip_secrets(source) for source in self.config.source]
        settings_json = self.config.model_dump(mode="json") | {"source": sources}
        self.session = ScoringSession(directory, settings_json, start, extra_facts=facts)

    def execute(self, layout: ScoringLayout, groups: DetectorGroups | None) -> ScoringResult:
        """List the archive, score it, and publish its rows, on the Ray cluster of this process.

        The groups take turns in the processes. None if all detectors fit into memory together.
        """
        self.layout, self.groups = layout, groups
        nodes = ray_cluster.working_nodes(self.config.cluster.labels)
        self.session.set_plan(
            layout, groups, estimate_memory(self.config, self.spec, groups, layout, *nodes)
        )
        plan = layout.block_plan(self.spec.slots)
        with start_control(layout.max_open_blocks) as self.control:
            if self.config.rescore:
                self.retry(plan)
            elif self.config.follow is not None:
                self.follow(plan)
            elif self.embeddings is not None:
                self.score_embeddings(self.embeddings)
            else:
                self.score_listed(plan)
        return self.finish_manifests()

    def score_listed(self, plan: BlockPlan) -> None:
        """Score the pending files of the run. If none are pending, list and score new files.

        A listing that an earlier command did not finish is continued. Raises ConfigError if the
        source is empty. If the run has never listed a file, the run is deleted, so that other
        commands can use the directory.
        """
        run = self.directory
        # A command that followed the source may have left it open.
        finish_manifest(run.store, self.lease.number)
        if find_work(run).pending and read_open_manifest(run.store) is None:
            self.score(None)
            return
        try:
            with ListingProcess(listing_request(self.config, self.lease.number, plan)) as listing:
                self.score(listing)
                self.session.add_listing_s(listing.result().seconds)
        except ConfigError:
            if read_last_listing(run.store) is None:
                run.discard()
            raise
        report_folders(run)

    def score_embeddings(self, embeddings: StoredEmbeddings) -> None:
        """Score the stored embeddings of another run (`features::RUN`) instead of files.

        If an earlier command left some blocks unscored, only these blocks are scored. Otherwise all
        embeddings are scored that this run has not scored yet.
        """
        work, copied_at = find_work(self.directory), time.monotonic()
        # The first block is scored after all manifests are copied. If no block is scored, a killed
        # command may have copied some manifests.
        if len(work.pending) == len(work.blocks):
            embeddings.copy_manifests(self.directory)
            self.session.add_listing_s(time.monotonic() - copied_at)
        self.score(None)

    def retry(self, plan: BlockPlan) -> None:
        """Score files again whose current (newest) row has one of the statuses in `config.rescore`.

        The source is not listed. If an earlier command did not finish a retry, that retry is
        continued instead. Raises ConfigError if some files of the last listing have not been
        scored.
        """
        run, statuses = self.directory, [status.value for status in self.config.rescore]
        finish_manifest(run.store, self.lease.number)
        work, last = find_work(run), read_last_listing(run.store)
        if last is None or last.goes_on or (work.pending and not last.is_retry):
            raise ConfigError(
                f"{run.store.url}: not all files have been scored yet, so none can be retried",
                hint="run the same command without --retry first",
            )
        if not work.pending:
            if work.manifests:
                self.finish_manifests()
            retry = begin_retry(CurrentRows.read(run), statuses, plan)
            if retry.refused:
                print(
                    f"not retried: {retry.refused:,} that were refused when the archive was listed; "
                    "run the same command without --retry to list the archive again",
                    file=sys.stderr,
                )
            elif retry.info is None:
                print(
                    f"no file has the status {' or '.join(statuses)}: nothing to retry",
                    file=sys.stderr,
                )
            if retry.info is None:
                return
            last = retry.info
        names = " or ".join(last.retried)
        print(
            f"retrying {pluralize(last.members, 'file')} with the status {names}", file=sys.stderr
        )
        self.session.add_retry(last.manifest, last.retried, last.members)
        self.score(None)

    def follow(self, plan: BlockPlan) -> NoReturn:
        """Score the files of the source, and new files as they appear, until the run is stopped.

        The manifest, which is the list of files, and the session are finished at the end of each
        day in UTC. If the run is stopped after all listed files are scored, the current manifest is
        also finished. KeyboardInterrupt is raised then.
        """
        # Otherwise a few hundred images would become a dozen blocks.
        often = plan.model_copy(update={"blocks_per_doubling": self.layout.workers})
        request = listing_request(self.config, self.lease.number, often)
        while True:
            self.day = today()
            try:
                with ListingProcess(request) as listing:
                    self.score(listing)
            except KeyboardInterrupt:
                if not find_work(self.directory).pending:
                    self._finish_day()
                raise
            if self._finish_day():
                self.spent_before += self.session.cost().total
                self.session = self.session.next_session()

    def _finish_day(self) -> bool:
        """Finish the manifest of a day; return False if its first listing has not reached its end."""
        store = self.directory.store
        finish_manifest(store, self.lease.number)
        if read_last_listing(store) is None or read_open_manifest(store) is not None:
            return False
        report_folders(self.directory)
        summary = document.RunSummary.model_validate(self.finish_manifests().summary)
        print(f"finished the day: {headline(summary)}", file=sys.stderr, flush=True)
        return True

    def finish_manifests(self) -> ScoringResult:
        """Publish and verify the rows of all scored files, and write the summary and the report.

        This finishes the manifests, which are the lists of files. The verification proves that
        every file has exactly one row.
        """
        unfinished = find_work(self.directory).manifests
        self.publish()
        check_conservation(self.directory, unfinished, each=ray_cluster.map_on_ray)
        if not unfinished:
            return self.finish_unchanged()
        summary = write_summary(
            self.directory, self.spec, self.session, thumbnails=self.config.thumbnails
        )
        return self._finish_session(summary)

    def score(self, listing: ListingProcess | None) -> None:
        """Score the pending blocks of the run, and the files that are listed at the same time.

        Raises KeyboardInterrupt if a stop was requested while blocks were pending, and ClusterError
        if Ray gave up, a block killed its workers, or the listing ended early.
        """
        is_listing = listing is not None and listing.is_running
        if is_listing or find_work(self.directory).pending:
            self._score_turns(listing)
        if listing is not None and not listing.is_running:
            listing.result()

    def _is_day_over(self) -> bool:
        return self.config.follow is not None and today() != self.day

    def _score_turns(self, listing: ListingProcess | None) -> None:
        """Score the pending blocks, turn after turn. Raises as `score`."""
        from ray_app.scoring.engine import score_turn

        config, run = self.config.cluster, self.directory
        work, layout = find_work(run), self.layout
        n_done = work.members - work.pending.members
        exported = ray_cluster.named_cluster(config.address) is not None
        meter = RunMeter(
            name_of(run.store.url), self.session.total, len(work.pending), layout, exported=exported
        )
        progress = Progress(work.members, done=n_done, note=meter.bound)
        if listing is None:
            listed_text = (
                f"{pluralize(work.members, 'file')} in {pluralize(len(work.blocks), 'block')}"
            )
            progress.say(f"{listed_text}, {n_done:,} done before; {layout.described}")
        else:
            earlier = pluralize(self._settled_files() + n_done, "file")
            progress.say(f"listing; {earlier} done before; {layout.described}")
        stopper = ShutdownController(say=progress.say, grace_s=config.grace_s)
        stall_s = HEAVY_STALL_S if work.pending.heaviest_mean > HEAVY_BYTES else STALL_S
        patience_s = config.stall_timeout_s or max(
            stall_s, layout.slowest_block_s(ResourceEstimate.from_spec(self.spec).worst_gmac)
        )
        state = _TurnState(listing, progress, meter, stopper)
        state.following = work.following
        state.expected = len(work.pending)
        # Workers load while the first portion is listed.
        state.keeps_workers = work.following == (0, 0)
        if work.listed is not None:
            state.members, state.blocks = work.listed.members, work.listed.blocks
        seconds, emulating = itertools.count(), frozenset[str]()
        watch: StallWatchdog = StallWatchdog(
            patience_s, stopper, lambda: self._tick(state, watch, next(seconds))
        )
        try:
            with self._job(run) as job, stopper.handle_signals(), watch:
                while (turn := self._next_turn(state)) is not None:
                    before = len(state.scored)
                    for report in score_turn(turn, job, layout, watch):
                        state.scored.add(report.ref.place)
                        state.active_at = time.monotonic()
                        for node in report.work.emulating - emulating:
                            progress.say(
                                f"{node} is slow: its processor has no bf16, in which this run scores, and emulates it"
                            )
                        emulating |= report.work.emulating
                        self.session.add_block(report)
                        progress.advance(report.ref.members, report.bad)
                    # Blocks on a node that will be taken away may return without a start.
                    is_excused = stopper.reason is not None or bool(stopper.draining_nodes)
                    if turn.blocks and len(state.scored) == before and not is_excused:
                        raise ClusterError(
                            f"the workers ended without scoring any of the {len(turn.blocks):,} pending blocks (groups of images)",
                            hint="check that the cluster has nodes for the plan shown above, and run the same command again to resume",
                        )
        except BaseException:
            # The error may come from the store that this is written to.
            with contextlib.suppress(StorageError):
                if run.exists():
                    self.session.log("interrupted")
            raise
        finally:
            progress.close()
            meter.export(is_over=True)

    def _next_turn(self, state: "_TurnState") -> Turn | None:
        """Start the next turn once blocks are pending; None if there is nothing left to do.

        Raises KeyboardInterrupt if a stop was requested and something is left to do.
        """
        run, listing = self.directory, state.listing
        while True:
            # Checked first: files that were listed before the listing ended are pending below.
            is_listing = listing is not None and listing.is_running
            if listing is not None and not is_listing:
                self._announce_listed(state, listing)
            work = find_work(run)
            left = work.pending.select([ref.place not in state.scored for ref in work.pending])
            if state.stopper.reason is not None and (left or is_listing):
                raise KeyboardInterrupt(state.stopper.reason)
            if left or (is_listing and not self._is_day_over() and state.keeps_workers):
                break
            if listing is None or not is_listing or self._is_day_over():
                return None
            self._await_portion(*work.following, listing)
        following = work.following if is_listing else None
        number = self.control.begin_turn()
        state.keeps_workers, state.active_at = True, time.monotonic()
        return Turn(run, self.control, number, left, following)

    def _await_portion(self, number: int, portion: int, listing: ListingProcess) -> None:
        """Wait until a portion is complete, the listing has ended, or the day is over."""
        while listing.is_running and not self._is_day_over():
            if read_complete(self.directory.store, number, portion) is not None:
                return
            time.sleep(_POLL_S if self.config.follow is None else _FOLLOW_POLL_S)

    def publish(self) -> None:
        """Merge the result rows of all blocks into a few files per manifest, which readers use.

        Workers write one small file per block. A manifest is a list of files to score.
        """
        self.directory.publish_all(each=ray_cluster.map_on_ray)

    def finish_unchanged(self) -> ScoringResult:
        """Finish a session that found nothing to score, without counting rows again.

        An existing report is kept, because a new report would fetch its thumbnails again. A new
        report is written only if there is none for the last listing, or if the config sets a prior
        (the expected fraction of fakes), which the report uses.
        """
        run, finished = self.directory, self.directory.last_finished()
        has_report = run.store.exists("report.html") and (
            run.store.exists("summary.json")
            and run.read_json("summary.json")["listing"] == finished
        )
        summary = renew_summary(run, self.session, thumbnails=self.config.thumbnails)
        return self._finish_session(
            summary, reports=self.config.prior is not None or not has_report
        )

    def _finish_session(self, summary: dict[str, Any], *, reports: bool = True) -> ScoringResult:
        config = self.config
        if reports:
            write_report(self.directory, prior=config.prior)
        self.session.log("finished")
        limit = config.max_bad_fraction
        too_many = has_read_nothing(summary) if limit is None else bad_fraction(summary) > limit
        return ScoringResult(ExitCode.TOO_MANY_BAD if too_many else ExitCode.DONE, summary)

    @contextlib.contextmanager
    def _job(self, directory: RunDirectory) -> Iterator[stages.ScoringJob]:
        """Yield the job for the workers, with a folder for crash markers on the disk of each node."""
        config = self.config
        markers = Path(tempfile.gettempdir()) / f"touchstone-{uuid.uuid4().hex}"
        mirror = share_weights(self.spec, self.directory) if ray_cluster.has_other_nodes() else None
        try:
            fetcher = create_fetcher(
                config.source, config.retry, allow_private=config.allow_private
            )
            limit_s, decode_bytes = config.cluster.decode_limit_s, config.cluster.decode_bytes
            yield stages.ScoringJob(directory, self.spec, fetcher, self.session.number, markers, self.control, mirror, limit_s, decode_bytes,
                members=self.layout.block_members, compiled=config.compiled,
                groups=self.groups, stored=self.heads)  # fmt: skip
        finally:
            shutil.rmtree(markers, ignore_errors=True)

    def _layout_now(self) -> ScoringLayout:
        """Return the layout for the present nodes if it is of the same kind as the planned one.

        Otherwise the run waits for nodes like those that it started with.
        """
        planned, resources = self.layout, ray_cluster.resources(self.config.cluster)
        try:
            now = layout_for(self.config, self.spec, self.groups, *resources)
        except ClusterError:
            return planned
        is_same_kind = (now.kind, len(now.scorers), now.scorer_gpus) == (
            planned.kind,
            len(planned.scorers),
            planned.scorer_gpus,
        )
        return replace(now, block_members=planned.block_members) if is_same_kind else planned

    def _tick(self, state: "_TurnState", watch: StallWatchdog, second: int) -> None:
        """Check the lease, the listing, the limits of time and cost, and nodes that are taken away.

        The watchdog calls this every second. Except for a lost lease, each finding requests a stop
        or the end of the turn. A lost lease raises StorageError.
        """
        stopper = state.stopper
        state.progress.redraw()
        state.meter.export()
        if self.lease.lost.is_set():
            url = self.directory.store.url
            raise StorageError(
                f"{url}: another command has taken over this run directory",
                hint="stop the other command, which the newest file in its folder `lease` names; only one command may write there at a time",
            )
        hours, cost = self.config.max_hours, self.config.max_cost
        if hours is not None and time.monotonic() - self.start > hours * 3600:
            stopper.request_stop(f"--max-hours {hours:g} is over", LIMIT_GRACE_S)
        if cost is not None and self.spent_before + self.session.cost().total >= cost:
            stopper.request_stop(f"--max-cost {cost:g} is spent", LIMIT_GRACE_S)
        if second % NOTICE_EVERY == 0:
            leaving = ray_cluster.get_draining_nodes()
            stopper.avoid_nodes(leaving)
            left_s = leaving.get(ray_cluster.current_node_id())
            if left_s is not None:
                stopper.request_stop(
                    "this machine will be taken away",
                    max(0.0, min(SIGNAL_GRACE_S, left_s - MARGIN_S)),
                )
            now = state.meter.set_layout(self._layout_now())
            self.control.set_window(now.max_open_blocks)
            self._note_listed(state)
            watch.is_idle = len(state.scored) >= state.expected
        self.control.stop(stopper.reason is not None, stopper.draining_nodes)

    def _note_listed(self, state: "_TurnState") -> None:
        """Count the files that were listed meanwhile, and end the turn if no more come."""
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
            self.control.end_turn()

    def _announce_listed(self, state: "_TurnState", listing: ListingProcess) -> None:
        """Print once what a finished listing found, or that it ended early.

        `score` finally raises the error of a listing that ended early.
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
        info = read_last_listing(self.directory.store)
        if info is not None:
            state.progress.say(describe_listing(info.listed, outcome.members, outcome.blocks))

    def _settled_files(self) -> int:
        """Return the number of files that the last summary counts."""
        try:
            return int(self.directory.read_json("summary.json")["members"])
        except FileNotFoundError:
            return 0


@dataclass
class _TurnState:
    """The state that changes from turn to turn.

    Attributes:
        following: The next manifest and portion for the progress.
        members: The members of the open manifest that the progress counts.
        blocks: The blocks of the open manifest that the progress counts.
        expected: The number of blocks that were pending at first or have been listed since.
        keeps_workers: Whether workers wait for the next files of the listing.
        is_listed: Whether the end of the listing was noticed.
        active_at: The time at which a turn started or a block was committed last.
    """

    listing: ListingProcess | None
    progress: Progress
    meter: RunMeter
    stopper: ShutdownController
    scored: set[tuple[int, int]] = field(default_factory=set)
    following: tuple[int, int] = (0, 0)
    members: int = 0
    blocks: int = 0
    expected: int = 0
    keeps_workers: bool = False
    is_listed: bool = False
    active_at: float = 0.0


def share_weights(spec: ScoringSpec, run: RunDirectory) -> str | None:
    """Return the URL from which all workers can load the weights of an ensemble.

    If $TOUCHSTONE_WEIGHTS_MIRROR is not set, the weights are copied to the run directory. Only the
    driver fetches weights from a hub, because a hub would refuse a thousand workers at once. The
    result is None if all weights are shipped with Touchstone, so that workers need no copy.
    """
    if weights.MIRROR_VARIABLE in os.environ:
        return os.environ[weights.MIRROR_VARIABLE]
    # Heads travel with the job.
    cards = () if spec.reads_embeddings else spec.cards.values()
    fetched = [
        card
        for card in cards
        if not all(weights.is_shipped(path) for _, path in weights.resolve_parts(card))
    ]
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
    """Divide the detectors of a run into groups, if not all fit into the memory of a process.

    The groups take turns: a process loads one group after another for each block of images. `cpus`
    and `gpus` are those of all nodes, `node_bytes` is the memory of the smallest node. The result
    is None if all detectors fit together. Raises ConfigError if the detectors have to fit together
    (`compiled`), or if one alone does not fit.
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
            f"`compiled` cannot be true: the detectors do not fit into cluster.worker_bytes ({size(config.cluster.worker_bytes or 0)}) "
            "together, so they are loaded in turns and would be compiled again for each block of images",
            hint=f"use --set cluster.worker_bytes={estimate_total_bytes(spec)} or more, or --set compiled=false",
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
    """Choose the kinds and numbers of processes for a run on a cluster.

    `memory_bytes` is what Ray schedules on in the whole cluster. Raises ClusterError if the cluster
    has less than one CPU.
    """
    is_local = ray_cluster.named_cluster(config.cluster.address) is None
    store_bytes = (
        ray_cluster.local_store_bytes(config.cluster) if is_local else STORE_SHARE * memory_bytes
    )
    layout = plan_layout(
        ResourceEstimate.from_spec(spec),
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


def estimate_memory(
    config: ScoreConfig,
    spec: ScoringSpec,
    groups: DetectorGroups | None,
    layout: ScoringLayout,
    nodes: int,
    node_bytes: int | None,
) -> document.Memory:
    """Estimate the memory that the processes of a layout need on each node.

    `node_bytes` is the memory of the smallest node. Sizes that depend on an unknown `node_bytes`
    are None.
    """
    decode_bytes = config.cluster.decode_bytes or (
        node_budget.compute_budget(node_bytes) if node_bytes else None
    )
    encoded = None if decode_bytes is None else decoder.file_bytes(decode_bytes, config.limits)
    process_bytes = (
        ResourceEstimate.from_spec(spec).process_bytes if groups is None else groups.process_bytes
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
    """Check that all detectors of a command can be used on this machine. Fetches weights.

    The licences must be accepted and the weights available. Detectors that run in a Python process
    of their own (family `callable`) are started for a test. Raises ConfigError if the card of the
    identifier (which names generators) or of the describer (which predicts prompts) is missing or
    does not fit, and DetectorError if a detector cannot be used.
    """
    cards = {card.name: card for card in settings.cards}
    for card in cards.values():
        licences.require_accepted(card, settings.config.accept_licences)
        if settings.embeddings is not None:
            continue  # Only its head is read, by `Settings.heads`.
        resolve_weights(card)
        if card.process is not None:
            require_device(card, settings.config.device)
            require_startable(card)
    for part in (
        part
        for profiling in profile_cards(settings.ensemble, cards)
        if profiling is not None
        for part in profiling.parts
    ):
        weights.resolve_part(part)
