"""Runs to be compared: real manifests and rows of files with labels, whose scores the test says."""

import csv
import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np

from ray_app.archives import BlockPlan, list_members, open_source, read_block, read_blocks
from ray_app.ensembles import EnsembleCard, EnsembleMember, Thresholds, get_decision_settings
from ray_app.errors import Status
from ray_app.images import ImageFileFacts, ImageLimits
from ray_app.inference import DecodeResult, DetectorOutputs, judge, make_spec
from ray_app.runs import RunDirectory, result_rows
from ray_app.scoring.report import write_summary
from ray_app.scoring.session import ScoringSession

TINY, OTHER = "touchstone-tiny", "cnndetection"
PLAN = BlockPlan(batch_slots=64, max_block_members=500)
# The facts of a run of TINY that `calibrate` and `decide` need.
RUN_SETTINGS = {
    "detectors": {TINY: {}},
    "limits": ImageLimits().model_dump(mode="json"),
    "precision": {TINY: "fp32"},
    "resize": "exact",
}
NOW = datetime(2026, 11, 1, tzinfo=UTC)


@cache
def spec_of(detectors=(TINY, OTHER), thresholds=(-1.0, 1.0)):
    cut = Thresholds(real_below=thresholds[0], fake_above=thresholds[1])
    members = tuple(EnsembleMember(detector=name) for name in detectors)
    card = EnsembleCard(name="both", title="Both", members=members, thresholds=cut)
    return make_spec(card, limits=ImageLimits(), precision="fp32")


def make_run(
    folder, names, scores, *, spec=None, labels=None, fails=None, settings=None, list_in=None
):
    """A run of files with these names. `scores`: detector → log-odds (n,); `labels`: (label,
    generator) of each; `fails`: name → status.
    """
    spec = spec or spec_of(tuple(scores))
    folder, where = Path(folder), Path(list_in or folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    where.mkdir(parents=True, exist_ok=True)
    with open(folder / "list.csv", "w", newline="", encoding="utf-8") as file:
        written = csv.writer(file)
        written.writerow(["uri", *(["label", "generator"] if labels else [])])
        written.writerows(
            [f"{where}/{name}", *(labels[place] if labels else [])]
            for place, name in enumerate(names)
        )
    run = RunDirectory.open(str(folder / "run"))
    identity = {
        "detectors": {name: {"weights": "1"} for name in spec.cards},
        "decision": get_decision_settings(spec.ensemble),
        **(settings or {}),
    }
    run.claim(identity, list(spec.cards), spec.ensemble.model_dump(mode="json"))
    list_members(run.store, open_source([f"list::{folder}/list.csv"]), PLAN)
    place_of = {f"{where}/{name}": place for place, name in enumerate(names)}
    for ref in read_blocks(run.store, 0):
        members = read_block(run.store, ref)
        places = [place_of[uri] for uri in members["uri"].to_pylist()]
        outcomes = [_outcome(names[place], fails or {}) for place in places]
        there = np.array([outcome.status is Status.OK for outcome in outcomes])
        values = {
            name: np.where(there, np.asarray(column)[places], np.nan).astype(np.float32)
            for name, column in scores.items()
        }
        scored = judge(spec, outcomes, DetectorOutputs.clean(scores=values))
        rows = result_rows(members, scored, attempt=1, scored_at=NOW)
        run.write_part(0, ref.block, rows)
    run.publish(0)
    write_summary(run, spec, ScoringSession(run, {}, 0.0))
    return run.store.url


def _outcome(name, fails):
    if name in fails:
        return DecodeResult(fails[name], "no", None)
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return DecodeResult(Status.OK, None, ImageFileFacts(sha256, "JPEG", 300, 200))


def names_of(n, prefix="photo"):
    return [f"{prefix}-{number:05d}.jpg" for number in range(n)]


def log_odds(seed, n, fakes=None):
    """Scores as a fair detector gives them: fakes two higher than real images."""
    draw = np.random.default_rng(seed)
    fake = draw.random(n) < 0.3 if fakes is None else np.asarray(fakes)
    return (draw.normal(np.where(fake, 1.0, -1.5), 1.2)).astype(np.float32)
