"""One scoring session: claim the directory, list, plan, score what is pending, check that nothing is lost, summarise.

Every step can be interrupted anywhere; the same command goes on from the facts on disk.

`--retry`: members whose rows have certain statuses are scored again, before anything else is done with the run, or instead of it.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ray_app.archives import BlockPlan, manifests, read_blocks
from ray_app.cluster.ray_cluster import cluster, on_ray, resources, working_nodes
from ray_app.detectors import resolve_weights
from ray_app.detectors.licences import require_accepted
from ray_app.detectors.weights import resolve_part
from ray_app.errors import ClusterError, ConfigError, ExitCode, resumable
from ray_app.images.phash import require_perceptual_hash
from ray_app.inference import ResourceEstimate, ScoringSpec
from ray_app.inference.block_reader import file_bytes
from ray_app.inference.spec import profile_cards
from ray_app.reports.format import shortened
from ray_app.runs import Retry, RunDirectory, begin_retry, begun_retry, check_conservation, merge_retry
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.driver import Pass
from ray_app.scoring.forecast.cost import require_prices
from ray_app.scoring.guarantee import settle_guarantee
from ray_app.scoring.identity import REFERENCES, check_reuse, keep_references
from ray_app.scoring.layout import MemberCost, NodeMemory, ScoringLayout, plan_layout
from ray_app.scoring.listing import Listing, archive_of, bring_up_to_date, has_nothing_new, is_complete
from ray_app.scoring.redecide import decided
from ray_app.scoring.report import bad_fraction, renew_summary, write_report, write_summary
from ray_app.scoring.resolution import Resolved, resolve
from ray_app.scoring.session import ScoringSession
from ray_app.storage import Lease
from ray_app.storage.node_budget import budget_of

ScoreBlocks = Callable[[RunDirectory, Listing], None]


def check_retry(config: ScoreConfig, run: RunDirectory) -> None:
    """Whether a retry that is asked for makes sense here, before a cluster is started. Raises ConfigError."""
    if config.rescore and not run.exists():
        raise ConfigError(f"{run.store.url}: no run here to retry", hint="the same command without --retry makes one")


def finish_begun(run: RunDirectory, session: "ScoringSession", score: ScoreBlocks) -> None:
    """Finish the retry that an earlier session began, if there is one."""
    retry = begun_retry(run)
    if retry is not None:
        _retrying_finish(run, retry, session, score)


def retry_members(config: ScoreConfig, run: RunDirectory, session: "ScoringSession", plan: BlockPlan, score: ScoreBlocks) -> None:
    """Score the current members whose row has one of `config.rescore` again; nothing is listed.

    Rows are replaced under the same ids, with the session's number as `attempt`. Raises ConfigError while blocks of the run are
    still to be scored for the first time.
    """
    numbers = manifests(run.store)
    if not numbers or any(not _is_scored(run, number) for number in numbers):
        raise ConfigError(
            f"{run.store.url}: not all members have been scored once", hint="the same command without --retry does that first"
        )
    for number in numbers:
        run.publish(number, each=on_ray)
    passed_over = list[int]()
    retry = begin_retry(run, session.number, [status.value for status in config.rescore], plan, passed_over=passed_over.append)
    if sum(passed_over):
        refused = f"{sum(passed_over):,} that were refused when the archive was listed"
        print(f"not retried: {refused}; the same command without --retry lists it again", file=sys.stderr)
    elif retry is None:
        print(f"no member has the status {' or '.join(config.rescore)}: nothing to retry", file=sys.stderr)
    if retry is not None:
        _retrying_finish(run, retry, session, score)


def _is_scored(run: RunDirectory, manifest: int) -> bool:
    return not read_blocks(run.store, manifest).without(run.done_blocks(manifest))


def _retrying_finish(run: RunDirectory, retry: Retry, session: "ScoringSession", score: ScoreBlocks) -> None:
    print(f"retrying {retry.members:,} members with the status {' or '.join(retry.statuses)}", file=sys.stderr)
    session.retrying(retry.number, retry.statuses, retry.members)
    pending = retry.pending()
    if pending:
        score(retry.directory, Listing([0], retry.blocks(), pending, 0.0))
    merge_retry(run, retry)


@dataclass(frozen=True)
class ScoringResult:
    """How a run ended: `exit_code` is DONE or TOO_MANY_BAD, `summary` the content of `summary.json`."""

    exit_code: ExitCode
    summary: dict[str, Any]


def score_archive(config: ScoreConfig) -> ScoringResult:
    """Score `config.source` into `config.out`, from wherever an earlier session of the same command stopped.

    What the config leaves open is as the run was begun. Raises ConfigError, IdentityError (the directory is another command's or in use),
    DetectorError, StorageError, ClusterError, and KeyboardInterrupt when it was asked to stop. Those that the same call resumes from carry
    the note RESUMABLE.
    """
    if not config.source or not config.out:
        raise ConfigError(
            "nothing to score" if not config.source else "no run directory: --out DIR is missing", hint="touchstone score SOURCE --out DIR"
        )
    require_prices(config)
    start = time.monotonic()
    run = RunDirectory.open(config.out)
    with resumable(KeyboardInterrupt):
        resolved = resolve(config, run)
        _check(resolved, run)
        with Lease(run.store, unguarded=config.unguarded) as lease:
            with resumable(ClusterError):
                finished = _unchanged(resolved, run, lease, start)
            if finished is not None:
                return finished
            with cluster(config.cluster):
                return _score(resolved, run, lease, start)


def check_scoring(config: ScoreConfig) -> None:
    """Whether `score_archive` would begin: all that it looks at before it writes anything. Raises as that does; fetches weights."""
    run = RunDirectory.open(config.out or "")
    _check(resolve(config, run), run)


def _check(resolved: Resolved, run: RunDirectory) -> None:
    """What can be refused before anything is written or a cluster started: a directory of another command, an unknown card, a licence,
    missing weights, a trust list, a source that is not there or empty, settings that an ensemble was not calibrated under.
    """
    config = resolved.config
    run.check_free()
    check_retry(config, run)
    check_detectors(resolved)
    spec = resolved.spec(gpus=0)
    check_reuse(config, spec.cards.values(), profiled=spec.ensemble.profile is not None)
    if config.perceptual_hash:
        require_perceptual_hash()
    resolved.references()
    resolved.require_own()
    if not manifests(run.store):
        archive_of(config).check()


def _unchanged(resolved: Resolved, run: RunDirectory, lease: Lease, start: float) -> ScoringResult | None:
    """The end of a finished run whose source is as it was, for which no cluster is started; None where there may be something to do."""
    config = resolved.config
    if config.rescore or not run.exists() or not is_complete(run):
        return None
    listing = time.monotonic()
    if not has_nothing_new(config, run):
        return None
    session = _session(resolved, run, lease, resolved.spec(gpus=0), start)
    session.listed(time.monotonic() - listing)
    return _told(config, run, session, renew_summary(run, session))


def _score(resolved: Resolved, run: RunDirectory, lease: Lease, start: float) -> ScoringResult:
    config = resolved.config
    cpus, gpus, memory_bytes = resources(config.cluster)
    spec = resolved.spec(gpus)
    layout = layout_for(config, spec, cpus, gpus, memory_bytes)
    references = resolved.references()
    run.claim(resolved.identity(spec), list(spec.cards), spec.ensemble.model_dump(mode="json"))
    keep_references(run, references)
    with resumable(ClusterError):
        return _claimed(resolved, run, lease, spec, layout, start)


def _session(resolved: Resolved, run: RunDirectory, lease: Lease, spec: ScoringSpec, start: float) -> ScoringSession:
    kept = resolved.kept(spec)
    if kept:
        named = ", ".join(f"{one['key']} {shortened(one['run'], 80)}" for one in kept)
        print(f"going on as the run was begun: {shortened(named, 400)}", file=sys.stderr, flush=True)
    noted = lease.facts() | ({"kept": kept} if kept else {})
    return ScoringSession(run, resolved.config.model_dump(mode="json"), start, noted=noted)


def _claimed(resolved: Resolved, run: RunDirectory, lease: Lease, spec: ScoringSpec, layout: ScoringLayout, start: float) -> ScoringResult:
    config = resolved.config
    was_complete = not config.rescore and is_complete(run)
    session = _session(resolved, run, lease, spec, start)
    session.planned(layout, memory_of(config, spec, layout, *working_nodes(config.cluster.labels)))
    scoring = Pass(config, lease, session, spec, layout, lambda: layout_for(config, spec, *resources(config.cluster)), run)
    plan = layout.block_plan(spec.slots)
    finish_begun(run, session, scoring.score)
    if config.rescore:
        retry_members(config, run, session, plan, scoring.score)
    else:
        work = _listed(run, config, plan)
        session.listed(work.listing_s)
        if work.pending:
            scoring.score(run, work)
        elif was_complete and not work.is_new:
            return _told(config, run, session, renew_summary(run, session))
    return _finish(config, run, session, spec)


def _listed(run: RunDirectory, config: ScoreConfig, plan: BlockPlan) -> Listing:
    """The work there is. A first listing that fails by what the user gave leaves the directory to whoever wants it."""
    try:
        return bring_up_to_date(run, config, plan, each=on_ray)
    except ConfigError:
        if not manifests(run.store):
            run.store.delete(REFERENCES)
            run.give_up()
        raise


def _finish(config: ScoreConfig, run: RunDirectory, session: ScoringSession, spec: ScoringSpec) -> ScoringResult:
    for manifest in manifests(run.store):
        run.publish(manifest, each=on_ray)
    check_conservation(run, each=on_ray)
    guarantee = settle_guarantee(run, spec, decided, each=on_ray)
    return _told(config, run, session, write_summary(run, spec, session, guarantee))


def _told(config: ScoreConfig, run: RunDirectory, session: ScoringSession, summary: dict[str, Any]) -> ScoringResult:
    write_report(run, prior=config.prior, thumbnails=config.thumbnails)
    session.log("finished")
    too_many = config.max_bad_fraction is not None and bad_fraction(summary) > config.max_bad_fraction
    return ScoringResult(ExitCode.TOO_MANY_BAD if too_many else ExitCode.DONE, summary)


def layout_for(config: ScoreConfig, spec: ScoringSpec, cpus: float, gpus: float, memory_bytes: float) -> ScoringLayout:
    """The processes that a run of this config uses on such a cluster. Raises ClusterError when nothing fits."""
    cost = ResourceEstimate.of(spec)
    work = MemberCost(
        spec.slots, cost.tensor_bytes, cost.pool_gmac, cost.process_bytes, bool(spec.localizers or spec.features), spec.passes
    )
    layout = plan_layout(
        work, cpus=cpus, gpus=gpus, workers=config.cluster.workers, block_members=config.block_members, memory_bytes=memory_bytes
    )
    return replace(layout, labels=config.cluster.labels)


def memory_of(config: ScoreConfig, spec: ScoringSpec, layout: ScoringLayout, nodes: int, node_bytes: int | None) -> NodeMemory:
    """What the processes of such a layout take on each of `nodes` nodes, the smallest of which has `node_bytes` of memory."""
    decode_bytes = config.cluster.decode_bytes or (budget_of(node_bytes) if node_bytes else None)
    encoded = None if decode_bytes is None else file_bytes(decode_bytes, config.limits)
    return NodeMemory(math.ceil(layout.workers / nodes), ResourceEstimate.of(spec).process_bytes, decode_bytes, encoded)


def check_detectors(resolved: Resolved) -> None:
    """Whether every detector may and can be used here; fetches weights. Raises ConfigError, and DetectorError for licence or weights."""
    cards = {card.name: card for card in resolved.cards}
    for card in cards.values():
        require_accepted(card, resolved.config.accept_licences)
        resolve_weights(card)
    for part in (part for profiling in profile_cards(resolved.ensemble, cards) if profiling is not None for part in profiling.parts):
        resolve_part(part)


def spec_for(config: ScoreConfig, gpus: float) -> ScoringSpec:
    """What a new run of this config scores with, on a cluster with so many GPUs. Raises ConfigError."""
    return resolve(config).spec(gpus)
