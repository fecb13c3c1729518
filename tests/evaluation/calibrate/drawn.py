"""Labelled images for tests: scores drawn from normal distributions, files named by hashes,
whatever columns a test gives.
"""

import hashlib

import numpy as np

from ray_app.evaluation.calibrate.config import CalibrateConfig
from ray_app.evaluation.calibrate.data import CalibrationData
from ray_app.evaluation.calibrate.division import Division, group_images

# Two detectors, of which the second is the better one and the first is too sure of itself: mean of
# reals, mean of fakes, deviation.
DETECTORS = {"coarse": (-4.0, 3.0, 6.0), "fine": (-2.0, 1.0, 1.0)}


def labelled_of(fake, scores=None, **columns):
    """Images with these labels (n,); every column that is not given is empty."""
    n = len(fake)
    made = {
        "image_id": np.arange(n),
        "sha256": [sha256_of(place) for place in range(n)],
        "fake": np.asarray(fake, bool),
        "scores": scores or {},
        "width": np.full(n, 640),
        "height": np.full(n, 480),
        "quality": np.full(n, np.nan),
    }
    empty = {name: [None] * n for name in ("generator", "source", "phash", "part", "format")}
    return CalibrationData(**{**empty, **made, **columns})


def sha256_of(place):
    return hashlib.sha256(str(place).encode()).hexdigest()


def drawn(reals, fakes, seed=0, generators=6):
    """Reals and fakes with independent scores of DETECTORS; every fake is by one of the generators."""
    rng = np.random.default_rng(seed)
    fake = np.arange(reals + fakes) >= reals
    scores = {
        name: rng.normal(np.where(fake, of_fakes, of_reals), deviation).astype(np.float32)
        for name, (of_reals, of_fakes, deviation) in DETECTORS.items()
    }
    generator = [f"generator {rng.integers(generators)}" if is_fake else None for is_fake in fake]
    sha256 = [f"{number:016x}" * 4 for number in rng.integers(0, 2**63, len(fake)).tolist()]
    return labelled_of(fake, scores, generator=generator, sha256=sha256)


def asked(**more):
    """The settings of a calibration that writes nothing."""
    return CalibrateConfig(run="run", out="card.yaml", **more)


def divided(images, parts):
    """Images in these parts."""
    return Division.from_parts(images, group_images(images), parts)
