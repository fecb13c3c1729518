"""One scoring session: claim the directory, list, plan, score what is pending, check that nothing is lost, summarise.

Every step can be interrupted anywhere; the same command goes on from the facts on disk.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

from ray_app.archives import manifests
from ray_app.detectors import load_card, resolve_weights
from ray_app.detectors.licences import require_accepted
from ray_app.detectors.weights import resolve_part
from ray_app.ensembles import EnsembleCard, ensemble_of, load_ensemble_card
from ray_app.errors import ClusterError, ConfigError, ExitCode, resumable
from ray_app.images.perceptual import require_perceptual_hash
from ray_app.inference import ScoringSpec, make_spec
from ray_app.inference.identified import require_embeddings
from ray_app.inference.spec import profile_cards
from ray_app.perturbations import load_perturbations
from ray_app.runs import RunDirectory, check_conservation
from ray_app.scoring.cluster import cluster, resources
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.costs import require_prices
from ray_app.scoring.embedding import kept_by
from ray_app.scoring.guarantee import settle_guarantee
from ray_app.scoring.listing import archive_of, bring_up_to_date, has_nothing_new, is_complete
from ray_app.scoring.passes import Pass
from ray_app.scoring.plan import Layout, Work, plan_layout
from ray_app.scoring.preparing import identity_of
from ray_app.scoring.redeciding import decided
from ray_app.scoring.references import keep_references, references_beside
from ray_app.scoring.reporting import bad_fraction, renew_summary, write_report, write_summary
from ray_app.scoring.retrying import check_retry, finish_begun, retry_members
from ray_app.scoring.reusing import check_reuse
from ray_app.scoring.session import Session
from ray_app.scoring.stability import stability_of
from ray_app.scoring.tasks import on_ray
from ray_app.storage import Lease


@dataclass(frozen=True)
class Finished:
    """How a run ended: `exit_code` is DONE or TOO_MANY_BAD, `summary` the content of `summary.json`."""

    exit_code: ExitCode
    summary: dict[str, Any]


def score_archive(config: ScoreConfig) -> Finished:
    """Score `config.source` into `config.out`, from wherever an earlier session of the same command stopped.

    Raises ConfigError, IdentityError (the directory is another command's or in use), DetectorError, StorageError, ClusterError,
    and KeyboardInterrupt when it was asked to stop. Those that the same call resumes from carry the note RESUMABLE.
    """
    if not config.source or not config.out:
        raise ConfigError(
            "nothing to score" if not config.source else "no run directory: --out DIR is missing", hint="touchstone score SOURCE --out DIR"
        )
    require_prices(config)
    start = time.monotonic()
    run = RunDirectory.open(config.out)
    with Lease(run.store, unguarded=config.unguarded) as lease, resumable(KeyboardInterrupt):
        _check(config, run)
        with resumable(ClusterError):
            finished = _unchanged(config, run, start)
        if finished is not None:
            return finished
        with cluster(config.cluster):
            return _score(config, run, lease, start)


def _check(config: ScoreConfig, run: RunDirectory) -> None:
    """What can be refused before a cluster is started: an unknown card, a licence, missing weights, a trust list, an empty source,
    a perturbation that nobody knows, settings that an ensemble was not calibrated under, a guarantee without the scores that it rests on.
    """
    check_detectors(config)
    spec_for(config, gpus=0)
    check_retry(config, run)
    ensemble = _ensemble(config)
    check_reuse(config, [load_card(member.detector) for member in ensemble.members], profiled=ensemble.profile is not None)
    if config.perceptual_hash:
        require_perceptual_hash()
    config.provenance.policy()
    _references(config)
    if not run.exists():
        next(iter(archive_of(config)), None)


def _unchanged(config: ScoreConfig, run: RunDirectory, start: float) -> Finished | None:
    """The end of a finished run whose source is as it was, for which no cluster is started; None where there may be something to do."""
    if config.rescore or not run.exists() or not is_complete(run):
        return None
    # Whether the run was one on GPUs only its identity tells.
    if not any(not run.differing(identity_of(config, spec_for(config, gpus))) for gpus in (0, 1)):
        return None
    listing = time.monotonic()
    if not has_nothing_new(config, run):
        return None
    session = Session(run, config.model_dump(mode="json"), start)
    session.listed(time.monotonic() - listing)
    return _told(config, run, session, renew_summary(run, session))


def _score(config: ScoreConfig, run: RunDirectory, lease: Lease, start: float) -> Finished:
    cpus, gpus, memory_bytes = resources(config.cluster)
    spec = spec_for(config, gpus)
    references = _references(config)
    run.claim(identity_of(config, spec), list(spec.cards), spec.ensemble.model_dump(mode="json"))
    keep_references(run, references)
    with resumable(ClusterError):
        return _claimed(config, run, lease, spec, layout_for(config, spec, cpus, gpus, memory_bytes), start)


def _claimed(config: ScoreConfig, run: RunDirectory, lease: Lease, spec: ScoringSpec, layout: Layout, start: float) -> Finished:
    was_complete = not config.rescore and is_complete(run)
    session = Session(run, config.model_dump(mode="json"), start)
    session.planned(layout)
    scoring = Pass(config, lease, session, spec, layout, lambda: layout_for(config, spec, *resources(config.cluster)), run)
    plan = layout.block_plan(spec.slots)
    finish_begun(run, session, scoring.score)
    if config.rescore:
        retry_members(config, run, session, plan, scoring.score)
    else:
        work = bring_up_to_date(run, config, plan, each=on_ray)
        session.listed(work.listing_s)
        if work.pending:
            scoring.score(run, work)
        elif was_complete and not work.is_new:
            return _told(config, run, session, renew_summary(run, session))
    return _finish(config, run, session, spec)


def _finish(config: ScoreConfig, run: RunDirectory, session: Session, spec: ScoringSpec) -> Finished:
    for manifest in manifests(run.store):
        run.publish(manifest, each=on_ray)
    check_conservation(run, each=on_ray)
    guarantee = settle_guarantee(run, spec, decided, each=on_ray)
    return _told(config, run, session, write_summary(run, spec, session, guarantee))


def _told(config: ScoreConfig, run: RunDirectory, session: Session, summary: dict[str, Any]) -> Finished:
    write_report(run, prior=config.prior, thumbnails=config.thumbnails)
    session.log("finished")
    too_many = config.max_bad_fraction is not None and bad_fraction(summary) > config.max_bad_fraction
    return Finished(ExitCode.TOO_MANY_BAD if too_many else ExitCode.DONE, summary)


def layout_for(config: ScoreConfig, spec: ScoringSpec, cpus: float, gpus: float, memory_bytes: float) -> Layout:
    """The processes that a run of this config uses on such a cluster. Raises ClusterError when nothing fits."""
    work = Work(spec.slots, spec.tensor_bytes, spec.pool_gmac, spec.process_bytes, bool(spec.localizers or spec.features), spec.passes)
    layout = plan_layout(
        work, cpus=cpus, gpus=gpus, workers=config.cluster.workers, block_members=config.block_members, memory_bytes=memory_bytes
    )
    return replace(layout, labels=config.cluster.labels)


def check_detectors(config: ScoreConfig) -> None:
    """Whether every detector may and can be used here; fetches weights. Raises ConfigError, and DetectorError for licence or weights."""
    ensemble = _ensemble(config)
    cards = {card.name: card for card in (load_card(member.detector) for member in ensemble.members)}
    for card in cards.values():
        require_accepted(card, config.accept_licences)
        resolve_weights(card)
    for part in (part for profiling in profile_cards(ensemble, cards) if profiling is not None for part in profiling.parts):
        resolve_part(part)


def spec_for(config: ScoreConfig, gpus: float) -> ScoringSpec:
    """The config's cards and settings, resolved for a cluster with so many GPUs. Raises ConfigError."""
    spec = make_spec(
        _ensemble(config),
        limits=config.limits,
        device=config.device if config.device != "auto" else "cuda" if gpus else "cpu",
        precision=config.precision,
        resize=config.resize,
        slots=config.batch_slots,
        perceptual_hash=config.perceptual_hash,
        provenance=config.provenance.policy(),
        views=load_perturbations(config.perturb),
        stability=stability_of(config),
        waive_guarantee=config.waive_guarantee,
    )
    require_embeddings(spec)
    return replace(spec, features=kept_by(spec, config.features))


def _references(config: ScoreConfig) -> bytes | None:
    return None if config.detectors else references_beside(config.ensemble)


def _ensemble(config: ScoreConfig) -> EnsembleCard:
    return ensemble_of(list(config.detectors)) if config.detectors else load_ensemble_card(config.ensemble)
