"""Calibrated probabilities are right on held-out images, off balance too."""

import numpy as np
import pytest

from ray_app.evaluation.calibrate.thresholds import fit
from ray_app.metrics.registry import ScoredImages, expected_calibration_error

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEEDS, N, HELD_OUT = 1_000, 4_000, 10_000
MOST_ECE = 0.02
CHANCES = "6. the ECE of held-out images is over 0.02"


def images(rng, n, share, shift=0.0, digits=None):
    """float32 scores (n,), two normal distributions, and their labels; `digits`: rounded to so
    many, which makes ties.
    """
    fake = np.arange(n) < round(share * n)
    scores = rng.normal(np.where(fake, 1.5, -1.5) + shift, 1.5)
    return np.asarray(scores if digits is None else np.round(scores, digits), np.float32), fake


def ece(log_odds, fake):
    return expected_calibration_error(ScoredImages.from_scores(log_odds, fake))


@pytest.mark.parametrize(
    ("words", "share", "how"),
    [
        ("4,000 labelled, 1 fake to 50 reals", 1 / 51, {}),
        ("4,000 labelled, 1 to 1, all scores positive", 0.5, {"shift": 12}),
        ("4,000 labelled, 50 fakes to 1 real, ties (whole numbers)", 50 / 51, {"digits": 0}),
        ("4,000 labelled, 0.2 % fake, all scores positive", 0.002, {"shift": 12}),
    ],
)
def test_chances_of_held_out_images(simulated, words, share, how):
    wrong = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        seen, (scores, fake) = images(rng, N, share, **how), images(rng, HELD_OUT, share, **how)
        wrong.append(ece(fit(*seen)(scores.astype(np.float64)), fake) > MOST_ECE)
    simulated(CHANCES, words, 0.05, wrong)
