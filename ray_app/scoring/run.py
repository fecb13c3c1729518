"""One scoring session: claim the directory, list, plan, score what is pending, check that nothing is lost, summarise.

Every step can be interrupted anywhere; the same command goes on from the facts on disk.
"""

import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray_app.archives import open_source
from ray_app.detectors import load_card, resolve_weights
from ray_app.detectors.licences import require_accepted
from ray_app.ensembles import EnsembleCard, ensemble_of, load_ensemble_card
from ray_app.errors import ConfigError, ExitCode, StorageError
from ray_app.inference import ScoringSpec, make_spec
from ray_app.runs import RunDirectory, check_conservation
from ray_app.scoring.cluster import cluster, has_other_nodes, resources
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.listing import Listing, bring_up_to_date
from ray_app.scoring.plan import Layout, Work, plan_layout
from ray_app.scoring.preparing import identity_of, share_weights
from ray_app.scoring.progress import Progress
from ray_app.scoring.reporting import bad_fraction, write_report, write_summary
from ray_app.scoring.session import Session
from ray_app.scoring.workers import Job
from ray_app.storage import Lease

STALL_S = 900.0


@dataclass(frozen=True)
class Finished:
    """How a run ended: `exit_code` is DONE or TOO_MANY_BAD, `summary` the content of `summary.json`."""

    exit_code: ExitCode
    summary: dict[str, Any]


def score_archive(config: ScoreConfig) -> Finished:
    """Score `config.source` into `config.out`, from wherever an earlier session of the same command stopped.

    Raises ConfigError, IdentityError (the directory is another command's or in use), DetectorError, StorageError, ClusterError,
    and KeyboardInterrupt after saying how to resume.
    """
    if not config.source or not config.out:
        raise ConfigError(
            "nothing to score" if not config.source else "no run directory: --out DIR is missing", hint="touchstone score SOURCE --out DIR"
        )
    start = time.monotonic()
    run = RunDirectory.open(config.out)
    with Lease(run.store) as lease, _resumable(run):
        _check(config, run)
        with cluster(config.cluster):
            return _score(config, run, lease, start)


def _check(config: ScoreConfig, run: RunDirectory) -> None:
    """What can be refused before a cluster is started: an unknown card, a licence, missing weights, an empty source."""
    check_detectors(config)
    if not run.exists():
        next(iter(open_source(config.source, config.include, config.exclude, skip=[run.store.url])), None)


def _score(config: ScoreConfig, run: RunDirectory, lease: Lease, start: float) -> Finished:
    cpus, gpus, memory_bytes = resources(config.cluster)
    spec = spec_for(config, gpus)
    run.claim(identity_of(config, spec), list(spec.cards), spec.ensemble.model_dump(mode="json"))
    session = Session(run, config.model_dump(mode="json"), start)
    layout = layout_for(config, spec, cpus, gpus, memory_bytes)
    session.planned(layout)
    work = bring_up_to_date(run, config, layout.block_plan(spec.slots))
    session.listed(work.listing_s)
    if work.pending:
        _work(config, run, lease, session, spec, layout, work)
    return _finish(config, run, session, work, spec)


def _work(config: ScoreConfig, run: RunDirectory, lease: Lease, session: Session, spec: ScoringSpec, layout: Layout, work: Listing) -> None:
    from ray_app.scoring.pipeline import score_blocks

    done = work.members - sum(ref.members for ref in work.pending)
    progress = Progress(work.members, done=done)
    progress.say(
        f"{work.members:,} members in {len(work.blocks):,} block{'s' * (len(work.blocks) != 1)}, {done:,} done before; {layout.described}"
    )
    crumbs = Path(tempfile.gettempdir()) / f"touchstone-{uuid.uuid4().hex}"
    mirror = share_weights(spec, run) if has_other_nodes() else None
    job = Job(run, spec, config.retry, config.source, session.number, crumbs, mirror)

    def tick() -> None:
        progress.redraw()
        if lease.lost.is_set():
            raise StorageError(f"{run.store.url}: another run took this directory over", hint="only one may write it; see lease.json there")
        if config.max_hours is not None and session.elapsed_s() > config.max_hours * 3600:
            progress.say(f"--max-hours {config.max_hours:g} is over")
            raise KeyboardInterrupt

    try:
        patience_s = config.cluster.stall_timeout_s or max(STALL_S, layout.slowest_block_s(spec.worst_gmac))
        for report in score_blocks(work.pending, job, layout, stall_timeout_s=patience_s, tick=tick):
            session.committed(report)
            progress.advance(report["members"], report["bad"])
    except BaseException:
        session.log("interrupted")
        raise
    finally:
        progress.close()
        shutil.rmtree(crumbs, ignore_errors=True)


def _finish(config: ScoreConfig, run: RunDirectory, session: Session, work: Listing, spec: ScoringSpec) -> Finished:
    for manifest in work.manifests:
        run.publish(manifest)
    check_conservation(run)
    summary = write_summary(run, spec, session)
    write_report(run, prior=config.prior, thumbnails=config.thumbnails)
    session.log("finished")
    too_many = config.max_bad_fraction is not None and bad_fraction(summary) > config.max_bad_fraction
    return Finished(ExitCode.TOO_MANY_BAD if too_many else ExitCode.DONE, summary)


@contextmanager
def _resumable(run: RunDirectory) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; what is committed is kept. The same command resumes {run.store.url}", file=sys.stderr)
        raise


def layout_for(config: ScoreConfig, spec: ScoringSpec, cpus: float, gpus: float, memory_bytes: float) -> Layout:
    """The processes that a run of this config uses on such a cluster. Raises ClusterError when nothing fits."""
    work = Work(spec.slots, spec.tensor_bytes, spec.pool_gmac, spec.process_bytes, bool(spec.localizers))
    layout = plan_layout(
        work, cpus=cpus, gpus=gpus, workers=config.cluster.workers, block_members=config.block_members, memory_bytes=memory_bytes
    )
    return replace(layout, labels=config.cluster.labels)


def check_detectors(config: ScoreConfig) -> None:
    """Whether every detector may and can be used here; fetches weights. Raises ConfigError, and DetectorError for licence or weights."""
    for member in _ensemble(config).members:
        card = load_card(member.detector)
        require_accepted(card, config.accept_licences)
        resolve_weights(card)


def spec_for(config: ScoreConfig, gpus: float) -> ScoringSpec:
    """The config's cards and settings, resolved for a cluster with so many GPUs. Raises ConfigError."""
    return make_spec(
        _ensemble(config),
        limits=config.limits,
        device=config.device if config.device != "auto" else "cuda" if gpus else "cpu",
        precision=config.precision,
        resize=config.resize,
        slots=config.batch_slots,
    )


def _ensemble(config: ScoreConfig) -> EnsembleCard:
    return ensemble_of(list(config.detectors)) if config.detectors else load_ensemble_card(config.ensemble)
