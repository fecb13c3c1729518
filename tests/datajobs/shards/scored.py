"""Finished runs made without a detector: a real listing of a real archive, with scores and statuses that the test says."""

from datetime import UTC, datetime

import numpy as np

from ray_app.archives import BlockPlan, MemberReader, list_members, member_rows, open_source, read_block, read_blocks
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import InputError, Status
from ray_app.images import ImageFileFacts, ImageLimits
from ray_app.inference import DecodeResult, DetectorOutputs, judge, make_spec
from ray_app.runs import RunDirectory, result_rows
from ray_app.storage import Fetcher
from tests.datajobs.shards.archives import sha256

SPEC = make_spec(load_ensemble_card("tiny"), limits=ImageLimits(), precision="fp32")
NAME = next(iter(SPEC.cards))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def scored_run(folder, source, score_of):
    """`score_of(member)` gives log-odds, or the status of a member that has none."""
    run = RunDirectory.open(str(folder))
    run.claim({"detectors": {NAME: {}}, "source": [str(source)]}, [NAME], SPEC.ensemble.model_dump(mode="json"))
    list_members(run.store, open_source([str(source)]), BlockPlan(batch_slots=4, max_block_members=8))
    finish(run, 0, score_of)
    return run


def finish(run, manifest, score_of, attempt=1):
    """Score the blocks of a manifest and end the run."""
    reader = MemberReader(Fetcher(), max_bytes=2**20)
    for ref in read_blocks(run.store, manifest):
        table = read_block(run.store, ref)
        outcomes, values = [], []
        for member, data in reader.read(member_rows(table)):
            said = data.status if isinstance(data, InputError) else score_of(member)
            facts = None if isinstance(data, InputError) else ImageFileFacts(sha256(data), "JPEG", 300, 200)
            is_scored = not isinstance(said, Status)
            outcomes.append(DecodeResult(Status.OK if is_scored else said, None if is_scored else "by the test", facts))
            values.append(said if is_scored else np.nan)
        scored = judge(SPEC, outcomes, DetectorOutputs.clean(scores={NAME: np.array(values, np.float32)}))
        run.write_part(manifest, ref.block, result_rows(table, scored, attempt=attempt, scored_at=NOW))
    run.publish(manifest)
    run.write_json("summary.json", {"listing": manifest})
