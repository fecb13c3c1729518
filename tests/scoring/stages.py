"""The stages of both layouts, one block after another in this process: what workers do on Ray, without Ray."""

from contextlib import closing

from ray_app.archives import BlockPlan, fetcher_of, list_members, open_source, read_blocks
from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring import ScoreConfig
from ray_app.scoring.identity import identity_of, resolve
from ray_app.scoring.messages import PendingBlock, report_of, table_of
from ray_app.scoring.session import ScoringSession
from ray_app.scoring.workers import BlockCommitter, BlockDecoder, BlockDescriber, BlockScorer, ScoringJob, TensorScorer


def run_stages(out, source, kind, *, block_members=8, **settings):
    """(facts of the session, rows by uri, the spec) of a run of these settings; `kind`: fused or split."""
    config = ScoreConfig(source=(str(source),), out=str(out), **settings)
    spec = resolve(config).spec(gpus=0)
    run = RunDirectory.open(str(out))
    run.claim(identity_of(config, spec), list(spec.cards), spec.ensemble.model_dump(mode="json"))
    list_members(run.store, open_source([str(source)]), BlockPlan(batch_slots=spec.slots, max_block_members=block_members))
    session = ScoringSession(run, {}, 0.0)
    job = ScoringJob(run, spec, fetcher_of(config.source, config.retry), session.number, run_crumbs(out), None)
    stages = [BlockScorer(job)] if kind == "fused" else [BlockDecoder(job), *_scorers(job), BlockCommitter(job)]
    for ref in read_blocks(run.store, 0):
        table = table_of(PendingBlock(ref))
        for stage in stages:
            table = stage(table)
        session.committed(report_of(table))
    for stage in stages[:1]:
        with closing(stage._reading):
            run.publish(0)
    return session.facts().written(), {row["uri"]: row for row in current_rows(run)}, spec


def run_crumbs(out):
    return out.with_name(f"{out.name}-crumbs")


def _scorers(job):
    return [(TensorScorer if pool in job.spec.pools else BlockDescriber)(job, pool) for pool in job.spec.all_pools]
