"""Finished runs of files that are no images, with a score and an embedding of each: what new heads
and identifiers are asked about.
"""

from datetime import UTC, datetime

import numpy as np

from ray_app.archives import read_block, read_blocks
from ray_app.detectors.linear_head import embedding_facts
from ray_app.errors import Status
from ray_app.images import ImageFileFacts
from ray_app.inference import DecodeResult, DetectorOutputs, StageClock, judge
from ray_app.inference.scorer import ImageDescriber
from ray_app.runs import RunDirectory, feature_rows, result_rows, write_features
from ray_app.scoring.identity import scoring_facts
from ray_app.scoring.report import write_summary
from ray_app.scoring.session import ScoringSession
from tests.make.small_run import relist, write_files

WHEN = datetime(2026, 1, 1, tzinfo=UTC)


def facts_of(spec, detector):
    """What a run notes of its embeddings."""
    return embedding_facts(spec.cards[detector], precision="fp32", resize="exact")


def kept_run(folder, spec, detector, files, broken=()):
    """A run over new files in the folder `archive` next to it; a second call adds a listing. The
    ends of `broken` are those of names that do not decode.
    """
    run, archive = RunDirectory.open(str(folder)), folder.with_name("archive")
    if not run.exists():
        limits = spec.limits.model_dump(mode="json")
        facts = {"source": [str(archive)], "limits": limits, "features": [detector]}
        card = spec.ensemble.model_dump(mode="json")
        run.claim(facts | scoring_facts(spec), list(spec.cards), card)
    # The ids depend on a file's time, too.
    write_files(archive, [name for name in files if not (archive / name).exists()])
    relist(run, archive)
    number = max(map(int, run.store.folders("manifest")))
    for ref in read_blocks(run.store, number):
        write_block(run, spec, detector, ref, broken)
    run.publish(number)
    write_summary(run, spec, ScoringSession(run, {}, 0.0))
    return run


def write_block(run, spec, detector, ref, broken):
    members, facts = read_block(run.store, ref), facts_of(spec, detector)
    ids = members["image_id"].to_numpy()
    drawn = [np.random.default_rng(abs(one)).normal(size=facts["width"]) for one in ids.tolist()]
    vectors = np.stack(drawn).astype(np.float32)
    outcomes = []
    for place, (image_id, uri) in enumerate(zip(ids, members["uri"].to_pylist(), strict=True)):
        if uri.endswith(tuple(broken)):
            vectors[place] = np.nan
            outcomes.append(DecodeResult(Status.CORRUPT_IMAGE, "torn", None))
        else:
            file = ImageFileFacts(f"{abs(int(image_id)):064x}", "JPEG", 320, 240)
            outcomes.append(DecodeResult(Status.OK, None, file))
    outputs = DetectorOutputs.clean(
        scores={name: vectors[:, 0].copy() for name in spec.cards},
        embeddings={detector: vectors},
    )
    if spec.describer is not None:
        outputs = ImageDescriber(spec, StageClock()).add_captions(outcomes, outputs)
    rows = result_rows(members, judge(spec, outcomes, outputs), attempt=1, scored_at=WHEN)
    kept = feature_rows(ids, vectors, detector, facts)
    write_features(run, ref.manifest, ref.block, detector, kept)
    run.write_part(ref.manifest, ref.block, rows)
