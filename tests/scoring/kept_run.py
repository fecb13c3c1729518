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
from ray_app.inference.scorer import Describing
from ray_app.runs import RunDirectory, feature_rows, result_rows, write_features
from ray_app.scoring.identity import scoring_facts
from ray_app.scoring.report import write_summary
from ray_app.scoring.session import ScoringSession
from tests.runs.small_run import relist, write_files


def facts_of(spec, detector):
    """What a run notes of its embeddings."""
    return embedding_facts(spec.cards[detector], precision="fp32", resize="exact")


def vectors_of(ids, width):
    """An embedding per id, the same whenever it is asked for."""
    return np.stack(
        [np.random.default_rng(abs(int(number))).normal(size=width) for number in ids]
    ).astype(np.float32)


def kept_run(folder, spec, detector, files, broken=()):
    """A run over new files beside it; a second call adds a listing. The ends of `broken` are those
    of names that do not decode.
    """
    run, archive = RunDirectory.open(str(folder)), folder.with_name("archive")
    about = {
        "source": [str(archive)],
        "limits": spec.limits.model_dump(mode="json"),
        "features": [detector],
    }
    if not run.exists():
        card = spec.ensemble.model_dump(mode="json")
        run.claim(about | scoring_facts(spec), list(spec.cards), card)
    # ids are of a file's time too
    write_files(archive, [name for name in files if not (archive / name).exists()])
    relist(run, archive)
    number, facts = max(map(int, run.store.folders("manifest"))), facts_of(spec, detector)
    for ref in read_blocks(run.store, number):
        members = read_block(run.store, ref)
        ids = members["image_id"].to_numpy()
        vectors = vectors_of(ids, facts["width"])
        torn = [uri.endswith(tuple(broken)) for uri in members["uri"].to_pylist()]
        vectors[torn] = np.nan
        outcomes = [
            DecodeResult(Status.CORRUPT_IMAGE, "torn", None)
            if bad
            else DecodeResult(
                Status.OK, None, ImageFileFacts(f"{abs(int(one)):064x}", "JPEG", 320, 240)
            )
            for bad, one in zip(torn, ids, strict=True)
        ]
        outputs = DetectorOutputs.clean(
            scores={name: vectors[:, 0].copy() for name in spec.cards},
            embeddings={detector: vectors},
        )
        if spec.describer is not None:
            outputs = Describing(spec, StageClock()).after(outcomes, outputs)
        scored = judge(spec, outcomes, outputs)
        write_features(
            run, number, ref.block, detector, feature_rows(ids, vectors, detector, facts)
        )
        run.write_part(
            number,
            ref.block,
            result_rows(members, scored, attempt=1, scored_at=datetime(2026, 1, 1, tzinfo=UTC)),
        )
    run.publish(number)
    write_summary(run, spec, ScoringSession(run, {}, 0.0))
    return run
