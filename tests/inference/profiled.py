"""A profile of two small detectors that was made for a test: who names generators, and who predicts prompts by each of two means."""

import numpy as np

from ray_app.detectors import load_card
from ray_app.detectors.linear_head import embedding_facts
from ray_app.ensembles import EnsembleProfile, Thresholds, ensemble_of
from ray_app.images import ImageLimits
from ray_app.inference import make_spec
from tests.attribution.made import make_identifier, make_retrieval
from tests.attribution.tiny_speakers import card_of
from tests.inference.two_detectors import write_two

CLASSES = ("sd-1.5", "sdxl", "midjourney-6")
PROMPTS = ("a red fox", "an old harbour at dawn", "a bowl of plums", "two chairs")


def write_profile(folder, *, own_pool=False):
    """Two detectors as cards in FOLDER, an identifier and describers that read the first one's embeddings, or pixels of their own size."""
    cheap, slow = write_two(folder, own_pool=own_pool)
    facts = embedding_facts(load_card(cheap), precision="fp32", resize="exact")
    rng, width = np.random.default_rng(0), facts["width"]
    captioner = folder / "captioner"
    captioner.mkdir()
    card_of(captioner, "git", beams=1)
    return {
        "detectors": [cheap, slow],
        "identifier": str(make_identifier(folder / "identifier", CLASSES, rng.normal(size=(len(CLASSES), width)), "cheap", facts)),
        "retrieval": str(make_retrieval(folder / "retrieval", rng.normal(size=(len(PROMPTS), width)), PROMPTS, "cheap", facts)),
        "captioner": str(captioner / "describer.yaml"),
    }


def spec_of(written, describer="retrieval", *, fake_above=0.0, describe="flagged", views=(), stability=None, detectors=2, **changes):
    """The spec of an ensemble with such a profile; verdicts are fake above a score."""
    profile = EnsembleProfile(identifier=written["identifier"], describer=describer and written[describer], describe=describe)
    thresholds = Thresholds(real_below=fake_above, fake_above=fake_above)
    ensemble = ensemble_of(written["detectors"][:detectors]).model_copy(update={"profile": profile, "thresholds": thresholds} | changes)
    return make_spec(ensemble, limits=ImageLimits(), precision="fp32", slots=4, views=views, stability=stability)
