"""Runs that are scored for real, in this process and without Ray: pictures, manifest, rows,
identity and summary.
"""

import time
from datetime import UTC, datetime

from ray_app.archives import (
    BlockPlan,
    list_members,
    open_source,
    read_block,
    read_blocks,
    rows_to_members,
)
from ray_app.images import ImageLimits
from ray_app.images.provenance import ProvenancePolicy
from ray_app.inference import BatchDecoder, BlockReader, StageClock, judge, make_spec
from ray_app.inference.scorer import EnsembleScorer
from ray_app.runs import RunDirectory, result_rows
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.identity import Settings
from ray_app.scoring.report import write_summary
from ray_app.scoring.session import ScoringSession
from ray_app.storage import Fetcher
from tests.make.images import encoded, photo

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def write_photos(folder, count=6):
    """Pictures of several sizes, a file that is no picture, and one that ends early."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        (folder / f"photo-{seed}.jpg").write_bytes(
            encoded(photo(300 + 20 * seed, 240, seed), "JPEG", quality=60 + 5 * seed)
        )
    (folder / "notes.txt").write_text("no picture")
    (folder / "cut.jpg").write_bytes(encoded(photo(), "JPEG")[:700])
    return folder


def score_photos(card, photos, out, *, provenance=None):
    """Score a folder of photographs with an ensemble card; returns the run's URL."""
    settings = {"precision": "fp32", "slots": 4, "provenance": provenance or ProvenancePolicy()}
    spec = make_spec(card, limits=ImageLimits(), **settings)
    run = RunDirectory.open(str(out))
    settings = Settings(ScoreConfig(source=(str(photos),)), card, (), (), {})
    run.claim(settings.facts(spec), list(spec.cards), card.model_dump(mode="json"))
    plan = BlockPlan(batch_slots=4, max_block_members=8)
    list_members(run.store, open_source([str(photos)]), plan)
    clock = StageClock()
    decoder = BatchDecoder(spec, clock)
    reader = BlockReader(spec, clock, fetcher=Fetcher(), decoder=decoder)
    scorer = EnsembleScorer(spec, clock)
    for ref in read_blocks(run.store, 0):
        members, outcomes = read_block(run.store, ref), []
        readings = scorer.score(_noted(reader.read(rows_to_members(members)), outcomes))
        scored = judge(spec, outcomes, readings)
        run.write_part(0, ref.block, result_rows(members, scored, attempt=1, scored_at=NOW))
    reader.close()
    run.publish(0)
    session = ScoringSession(run, {}, time.monotonic())
    write_summary(run, spec, session)
    session.log("finished")
    return run.store.url


def _noted(batches, outcomes):
    for batch in batches:
        outcomes += batch.outcomes
        yield batch
