"""Labelled pictures, and cards as calibrations on such pictures leave them."""

import io
from functools import cache

import numpy as np
from PIL import Image

from ray_app.ensembles import (
    CalibrationSettings,
    EnsembleCard,
    Guarantee,
    LabelledPart,
    Thresholds,
    build_ensemble,
    measure_population,
)
from tests.simulation.camera import CAMERAS
from tests.simulation.scenes import render

QUALITIES = (75, 85, 92)
SIDES = ((128, 176), (144, 144), (144, 192))
SCENES = ("leaves", "fabric")
BASE_PX = 256


@cache
def _base(scene):
    """One photograph of a scene; pictures are crops of it, since a scene of its own for each would
    take minutes.
    """
    rng = np.random.default_rng([6, *scene.encode()])
    return CAMERAS["reflex"].shoot(render(scene, rng, 2 * BASE_PX, 2 * BASE_PX), rng)


def pictures(seed, count):
    """Pixels of simulated photographs, and whether each was repainted, in no order."""
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        fake = bool(rng.random() < 0.5)
        height, width = SIDES[rng.integers(len(SIDES))]
        top, left = (int(rng.integers(BASE_PX - side)) for side in (height, width))
        real = _base(str(rng.choice(SCENES)))[top : top + height, left : left + width][
            :, :: int(rng.choice([-1, 1]))
        ].copy()
        yield (_repainted(real) if fake else real), fake


def _repainted(pixels):
    """As a decoder would paint it: from half its size."""
    image = Image.fromarray(pixels)
    small = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BILINEAR))


def encoded(pixels, number, *, qualities=QUALITIES):
    """JPEG bytes, its quality drawn by its number."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(
        stream, "JPEG", quality=int(np.random.default_rng([7, number]).choice(qualities))
    )
    return stream.getvalue()


def calibrated_card(properties, fake, *, detector="touchstone-tiny"):
    """A card as `touchstone detectors calibrate` writes it, for the population that these pictures
    are.
    """
    fake = np.asarray(fake)
    counts = {"n_real": int((~fake).sum()), "n_fake": int(fake.sum()), "groups": len(fake)}
    part = LabelledPart(name="choose", sha256="0" * 64, **counts)
    about = {"parts": [part], "prevalence": 0.5}
    return EnsembleCard(
        name="calibrated",
        title="Calibrated for a test",
        members=build_ensemble([detector]).members,
        thresholds=Thresholds(real_below=0.0, fake_above=0.0),
        guarantee=Guarantee(
            target_fpr=0.05, n_real=part.n_real, false_positives=0, upper_bound=0.04
        ),
        settings=CalibrationSettings(precision={detector: "fp32"}, resize="exact"),
        population=measure_population("simulated photographs", fake, properties, **about),
    )
