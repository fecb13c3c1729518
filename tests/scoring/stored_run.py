"""Finished runs that keep embeddings, written by the writers of real runs, without any image."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from ray_app.archives import BlockPlan, ListedMember, image_id, read_block, read_blocks
from ray_app.archives.build import write_selected
from ray_app.archives.manifest import listed_rows
from ray_app.detectors.linear_head import LinearHead, embedding_facts
from ray_app.errors import Status
from ray_app.images import ImageFileFacts
from ray_app.inference import DecodeResult, DetectorOutputs, judge
from ray_app.runs import RunDirectory, feature_rows, result_rows, write_features
from ray_app.scoring.identity import scoring_facts
from ray_app.scoring.report import write_summary
from ray_app.scoring.session import ScoringSession
from tests.runs.small_run import NAME, SPEC

FACTS = embedding_facts(SPEC.cards[NAME], precision="fp32", resize="exact")
BROKEN_EVERY = 50


def list_files(count):
    """Yield the manifest rows of files that are nowhere, a bounded table at a time."""
    for start in range(0, count, 2**16):
        items = [
            ListedMember(f"s3://gone/{number:08d}.jpg", None, 0, f"v{number}", 1000)
            for number in range(start, min(start + 2**16, count))
        ]
        ids = np.array([image_id(item) for item in items], np.int64)
        yield listed_rows(ids, items)


def write_stored_run(url, count, block_members=2048):
    """A run of `count` files, of which every fiftieth is broken; the others have an embedding of
    the demonstration detector.
    """
    run, head = RunDirectory.open(str(url)), LinearHead(SPEC.cards[NAME])
    facts = {"source": ["s3://gone"], "limits": SPEC.limits.model_dump(mode="json")}
    identity = facts | {"features": [NAME]} | scoring_facts(SPEC)
    run.claim(identity, list(SPEC.cards), SPEC.ensemble.model_dump(mode="json"))
    plan = BlockPlan(batch_slots=4, max_block_members=block_members)
    write_selected(run.store, list_files(count), plan, None)
    for ref in read_blocks(run.store, 0):
        write_block(run, ref, head)
    run.publish_all()
    write_summary(run, SPEC, ScoringSession(run, {}, 0.0), thumbnails=False)
    return run


def write_block(run, ref, head):
    """Commit a block with random embeddings."""
    members: pa.Table = read_block(run.store, ref)
    ids = members["image_id"].to_numpy()
    rng = np.random.default_rng(ref.block)
    vectors = rng.normal(size=(len(ids), FACTS["width"])).astype(np.float32)
    numbers = [int(uri[-12:-4]) for uri in members["uri"].to_pylist()]
    is_broken = np.array([number % BROKEN_EVERY == 0 for number in numbers])
    vectors[is_broken] = np.nan
    outcomes = [
        DecodeResult(Status.CORRUPT_IMAGE, "torn", None)
        if broken
        else DecodeResult(
            Status.OK, None, ImageFileFacts(f"{number:064x}", "JPEG", 320 + number % 7, 240)
        )
        for broken, number in zip(is_broken, numbers, strict=True)
    ]
    outputs = DetectorOutputs.clean(scores={NAME: head.score(vectors)}, embeddings={NAME: vectors})
    rows = result_rows(
        members,
        judge(SPEC, outcomes, outputs),
        attempt=1,
        scored_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    write_features(run, 0, ref.block, NAME, feature_rows(ids, vectors, NAME, FACTS))
    run.write_part(0, ref.block, rows)
