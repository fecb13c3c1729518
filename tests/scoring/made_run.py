"""Runs made without a detector whose rows have the properties that a test says: real manifests,
rows and identities.
"""

import hashlib
from datetime import UTC, datetime
from glob import glob

import numpy as np

from ray_app.archives import BlockPlan, list_members, open_source, read_block, read_blocks
from ray_app.ensembles import compute_properties, get_decision_settings
from ray_app.errors import Status
from ray_app.images import ImageFileFacts, ImageLimits
from ray_app.inference import DecodeResult, DetectorOutputs, judge, make_spec
from ray_app.runs import RunDirectory, result_rows
from ray_app.scoring.report import write_summary
from ray_app.scoring.session import ScoringSession
from tests.make.small_run import NAME

PLAN = BlockPlan(batch_slots=4, max_block_members=64)
DECODER = "pillow of the test"


def drawn(seed, count, *, fakes=0.5, quality=(75, 90, 95), lossless="PNG"):
    """Facts and scores of so many images: fakes score 3, reals −3 on average; the odd ones are the
    fakes where half of all are.
    """
    rng = np.random.default_rng([4, seed])
    fake = np.arange(count) % 2 == 1 if fakes == 0.5 else rng.random(count) < fakes
    side = rng.choice([512, 640, 1024], count)
    jpeg = rng.random(count) < 0.8
    formats = ["JPEG" if one else lossless for one in jpeg]
    qualities = np.where(jpeg, rng.choice(quality, count), 0)
    scores = rng.normal(np.where(fake, 3.0, -3.0), 1.5).astype(np.float32)
    return formats, side, qualities, scores


def properties_made(seed, count, **options):
    """The properties of the same images."""
    formats, side, quality, scores = drawn(seed, count, **options)
    size = {"width": side + 128, "height": side}
    known = np.where(quality > 0, quality, np.nan)
    return compute_properties(
        score=scores, scores={NAME: scores}, formats=formats, quality=known, **size
    )


def spec_of(card):
    return make_spec(card, limits=ImageLimits(), precision="fp32")


def made_run(folder, card, seed, count, *, identity=None, **options):
    """A run of such images, on whose scores all detectors of its card agree, decided and published."""
    run, spec = RunDirectory.open(str(folder)), spec_of(card)
    names = list(spec.cards)
    facts = {"detectors": {name: {} for name in names}, "precision": dict(spec.precision)}
    facts |= {"resize": "exact", "limits": spec.limits.model_dump(mode="json")}
    facts |= {"decision": get_decision_settings(spec.ensemble)} | (identity or {})
    run.claim(facts, names, card.model_dump(mode="json"))
    more_rows(run, card, seed, count, **options)
    return run


def summary_of(run, card):
    """Finish the manifests of a run that were made since the last call, and return its summary."""
    return write_summary(run, spec_of(card), ScoringSession(run, {}, 0.0))


def more_rows(run, card, seed, count, *, decoder=DECODER, **options):
    """List and publish so many images more, after those listed before."""
    spec = spec_of(card)
    uris = [f"file:///nowhere/{seed}/{number:06}.jpg" for number in range(count)]
    with open(run.store.url + f"-files-{seed}.csv", "w") as stream:
        stream.write("\n".join(["uri", *uris, ""]))
    list_members(run.store, open_source(sorted(glob(f"{run.store.url}-files-*.csv"))), PLAN)
    formats, side, quality, scores = drawn(seed, count, **options)
    number, start = max(int(name) for name in run.store.folders("manifest")), 0
    when = datetime(2026, 1, 1, seed % 24, tzinfo=UTC)
    for ref in read_blocks(run.store, number):
        members, outcomes = read_block(run.store, ref), []
        places = list(range(start, start + len(members)))
        start += len(members)
        for place in places:
            digest = hashlib.sha256(f"{seed}/{place}".encode()).hexdigest()
            size = (int(side[place]) + 128, int(side[place]))
            known = {"decoder": decoder, "quality": int(quality[place]) or None}
            facts = ImageFileFacts(digest, formats[place], *size, **known)
            outcomes.append(DecodeResult(Status.OK, None, facts))
        outputs = DetectorOutputs.clean(scores={name: scores[places] for name in spec.cards})
        scored = judge(spec, outcomes, outputs)
        run.write_part(number, ref.block, result_rows(members, scored, attempt=1, scored_at=when))
    assert start == count
    run.publish(number)
