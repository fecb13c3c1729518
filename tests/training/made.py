"""Small networks as a training leaves them, with figures of made-up scores: what the tests of
exporting hand out.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ray_app.detectors.card import DetectorCard, Platt
from ray_app.metrics.detection import detection_figures
from ray_app.reports.training import DataFindings, Figures, TrainingFacts
from ray_app.training.config import Recipe
from ray_app.training.networks import build_training_network, make_deployable, training_card
from tests.training.small_recipes import recipe

FINDINGS = {
    "splits": {
        "train": {
            "real": 1200,
            "fake": 1300,
            "generators": {"real:cam": 1200, "sdxl": 800, "flux": 500},
        }
    }
}


def figures(seed, generators=("sdxl", "flux")):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], 20)
    names = ["real"] * 20 + [generators[index % len(generators)] for index in range(20)]
    return detection_figures(rng.normal(size=40) + labels, labels, names)


class Made(NamedTuple):
    """What `export` is given."""

    recipe: Recipe
    card: DetectorCard
    network: torch.nn.Module
    facts: TrainingFacts


def made(kind="vit", *, test=True, calibration=True, **sections):
    """A training whose network has values of its own in every tensor, so that nothing that is lost
    can pass for its default.
    """
    trained = recipe(kind, **sections)
    card = training_card(trained)
    network = make_deployable(build_training_network(trained, card), card)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    facts = TrainingFacts(
        calibration=Platt(slope=1.5, intercept=-0.25) if calibration else None, validation=Figures.from_dict(figures(1)),
        test=Figures.from_dict(figures(2)) if test else None, data=DataFindings.from_dict(FINDINGS), steps=50, seconds=12.5,
        environment={"torch": torch.__version__, "device": "cpu"}, best_step=40,
    )  # fmt: skip
    return Made(trained, card, network, facts)


def picture(seed=0, width=90, height=70):
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
