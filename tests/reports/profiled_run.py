"""A run with a profile, scored for real in this process: pictures with known words, an identifier,
a retrieval of prompts.
"""

import csv
import io
from dataclasses import replace

import numpy as np
import yaml
from PIL import Image

from ray_app.detectors import load_card
from ray_app.detectors.linear_head import embedding_facts
from ray_app.ensembles import Thresholds, build_ensemble
from ray_app.ensembles.card import EnsembleProfile
from ray_app.identification.identifier import energy
from ray_app.images import ImageLimits
from ray_app.inference import BatchDecoder, StageClock, make_spec
from ray_app.inference.scorer import EnsembleScorer
from ray_app.runs import RunDirectory
from ray_app.scoring import ScoreConfig
from ray_app.scoring.run import score_archive
from tests.make.images import photo
from tests.make.profiles import make_identifier, make_retrieval
from tests.make.stages import without_ray

TINY = "touchstone-tiny"
CLASSES = ["sd-1.5", "sdxl", "midjourney-6"]
PROMPTS = [
    "a harbour at sunrise, <b>golden</b> light",
    "two gulls on a pier, oil painting, " + "impasto, thick strokes, " * 20,
    "a grey wall",
]


def profiled_card(folder, pictures, *, abstains=True):
    """An ensemble of the shipped detector with a profile made of encoded `pictures`: it takes about
    half of them for fakes.

    `abstains`: its identifier takes about half of them for none that it knows.
    """
    facts = embedding_facts(load_card(TINY), precision="fp32", resize="exact")
    vectors, scores = _read(pictures, facts)
    weight = np.random.default_rng(3).normal(size=(3, facts["width"])).astype(np.float32)
    bias = -(weight @ vectors.mean(axis=0))
    cut = float(np.median(energy(vectors @ weight.T + bias)))
    rule = (
        {"open_set": {"method": "energy", "threshold": cut, "abstains": 0.05, "n": 100}}
        if abstains
        else {}
    )
    identifier = make_identifier(folder / "identifier", CLASSES, weight, TINY, facts, bias, **rule)
    describer = make_retrieval(folder / "describer", vectors[: len(PROMPTS)], PROMPTS, TINY, facts)
    profile = EnsembleProfile(
        identifier=str(identifier), describer=str(describer), describe="flagged"
    )
    middle = float(np.median(scores))
    cuts = {"real_below": middle - 0.05, "fake_above": middle}
    return build_ensemble([TINY]).model_copy(
        update={"profile": profile, "name": "profiled", "thresholds": Thresholds(**cuts)}
    )


def _read(pictures, facts):
    """Embeddings (n, d) and scores (n,) of encoded pictures."""
    spec = replace(
        make_spec(build_ensemble([TINY]), limits=ImageLimits(), precision="fp32", slots=4),
        features={TINY: facts},
    )
    clock = StageClock()
    decoder = BatchDecoder(spec, clock)
    read = EnsembleScorer(spec, clock).score([decoder.decode([(0, data)]) for data in pictures])
    decoder.close()
    return read.get("embeddings")[TINY], read.scores[TINY]


def write_archive(folder, count=9):
    """Pictures of several shapes with a list of their known words, a file that ends early, and one
    that is no picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(count):
        picture = photo(*[(320, 240), (200, 300), (480, 160)][seed % 3], seed)
        picture.save(folder / f"photo-{seed}.jpg", quality=70 + seed)
        words = {
            "prompt": PROMPTS[seed % 3] if seed % 4 else "",
            "generator": CLASSES[seed % 3] if seed % 4 else "",
        }
        rows.append({"uri": f"photo-{seed}.jpg", "label": "fake" if seed % 4 else "real", **words})
    written = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(written, "JPEG")
    (folder / "cut.jpg").write_bytes(written.getvalue()[:300])
    (folder / "notes.txt").write_text("no picture")
    rows += [
        {"uri": name, "label": "real", "prompt": "", "generator": ""}
        for name in ("cut.jpg", "notes.txt")
    ]
    with (folder / "list.csv").open("w", newline="") as file:
        lines = csv.DictWriter(file, list(rows[0]))
        lines.writeheader()
        lines.writerows(rows)
    return folder / "list.csv"


def score_profiled(card, source, out):
    """Score a list with an ensemble's card; words are predicted of what was flagged. Returns the
    run's URL.
    """
    path = out.parent / f"{out.name}-card.yaml"
    path.write_text(yaml.safe_dump(card.model_dump(mode="json", exclude_none=True)))
    with without_ray():
        score_archive(
            ScoreConfig(
                source=(str(source),),
                ensemble=str(path),
                out=str(out),
                precision="fp32",
                batch_slots=4,
                block_members=8,
            )
        )
    return RunDirectory.open(str(out)).store.url
