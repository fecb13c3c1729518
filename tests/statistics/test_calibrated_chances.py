"""Chances of every calibration are right on held-out images, off balance too, and isotonic regression finds as many fakes as Platt's."""

import numpy as np
import pytest

from ray_app.evaluation.calibrate.thresholds import fit
from ray_app.metrics.arrays import ScoreHistogram
from ray_app.metrics.calibration import debiased_ece

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEEDS, N, HELD_OUT = 1_000, 4_000, 10_000
MOST_ECE, MOST_LOST = 0.02, 0.05
METHODS = ("platt", "temperature", "isotonic")
CHANCES = "6. the ECE of held-out images is over 0.02 with one of the methods"
ORDER = "6. isotonic finds over 5 points fewer fakes than Platt at 0.1 % false positives"


def images(rng, n, share, shift=0.0, digits=None, apart=3.0, stray=0.0):
    """float32 scores (n,), two normal distributions `apart`, and their labels; `digits`: rounded to so many, which makes ties; `stray`: the
    share of reals that score as fakes do.
    """
    fake = np.arange(n) < round(share * n)
    scores = rng.normal(np.where(fake | (rng.random(n) < stray), apart / 2, -apart / 2) + shift, 1.5)
    return np.asarray(scores if digits is None else np.round(scores, digits), np.float32), fake


def ece(log_odds, fake):
    return debiased_ece(ScoreHistogram.of(log_odds[fake]), ScoreHistogram.of(log_odds[~fake])).value


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
        wrong.append(any(ece(fit(*seen, method)(scores.astype(np.float64)), fake) > MOST_ECE for method in METHODS))
    simulated(CHANCES, words, 0.05, wrong)


@pytest.mark.parametrize(
    ("words", "share", "how"),
    [
        ("4,000 labelled, 0.2 % fake", 0.002, {}),
        ("4,000 labelled, 1 to 50, ties (one digit), 0.3 % of reals score as fakes", 1 / 51, {"digits": 1, "apart": 8.0, "stray": 0.003}),
    ],
)
def test_fakes_found_where_few_reals_may_be_flagged(simulated, words, share, how):
    wrong = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        seen, (reals, _), (fakes, _) = images(rng, N, share, **how), images(rng, 20_000, 0, **how), images(rng, 5_000, 1, **how)
        found = {}
        for method in ("platt", "isotonic"):
            calibrated = fit(*seen, method)
            beaten = np.sort(calibrated(reals.astype(np.float64)))[-1 - len(reals) // 1_000]
            found[method] = (calibrated(fakes.astype(np.float64)) > beaten).mean()
        wrong.append(found["isotonic"] < found["platt"] - MOST_LOST)
    simulated(ORDER, words, 0.05, wrong)
