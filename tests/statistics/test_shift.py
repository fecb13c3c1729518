"""The comparison of an archive with a calibration: it accepts the labelled mixture, and says how
far reals may rise unseen.
"""

import numpy as np
import pytest

from ray_app.ensembles import PopulationTally, population_of, properties_of
from ray_app.ensembles.population import LabelledPart
from ray_app.scoring.guarantee import shifts_of, unseen_shift
from tests.statistics.labelled import (
    calibrated,
    dominated,
    images_of,
    independent,
    raw_threshold,
    scored,
    tied,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

UNLIKE = "2. an archive of the labelled sources and generators is called unlike"
UNSEEN = "3. more reals are called fake than the run says could go unseen, where all score higher and nothing is noticed"
PART = LabelledPart(name="fit", n_real=1, n_fake=1, groups=1, sha256="0" * 64)
GENERATORS = 6


def described(rng, scores, raw, maker):
    """The properties of images by their makers (n,), 0 for reals: each generator has a size and a
    JPEG quality of its own.
    """
    quality = np.clip(rng.normal(np.where(maker, 70 + 4 * maker, 85), 6).round(), 1, 100)
    side = np.where(maker > 3, 512.0 + 128 * maker, rng.choice([640.0, 800.0, 1024.0], len(maker)))
    return properties_of(score=scores, scores={"a": raw}, formats=np.where(maker == 2, "PNG", "JPEG").tolist(), width=side, height=side,
                         quality=np.where(maker == 2, np.nan, quality))  # fmt: skip


def carded(rng, draw, seed):
    """A calibrated card with its population, its references, the reals' population and the fakes'
    mean raw scores by generator.
    """
    reals = draw(rng)
    images = images_of(rng, reals, fakes=600, generators=GENERATORS)
    found = calibrated(images, seed=seed)
    if found is None:
        return None
    maker = np.array([0 if name is None else int(name.split()[1]) + 1 for name in images.generator])
    raw = images.scores["a"].astype(float)
    means = np.array([raw[maker == one].mean() for one in range(1, GENERATORS + 1)])
    population = population_of(
        "p",
        images.fake,
        described(rng, found.fitted.scores(images), raw, maker),
        parts=[PART],
        prevalence=0.2,
    )
    card = found.card.model_copy(update={"population": population})
    return card, found, reals, means


def archived(rng, made, n, share, rise=0.0):
    """The tally of an archive of `n` images, `share` of them fake, its reals' raw scores risen."""
    card, found, reals, means = made
    fakes = rng.binomial(n, share)
    maker = np.concatenate([np.zeros(n - fakes, int), rng.integers(1, GENERATORS + 1, fakes)])
    raw = np.concatenate(
        [reals.more(rng, n - fakes) + rise, rng.normal(means[maker[n - fakes :] - 1], 1)]
    ).astype(np.float32)
    scores = found.fitted.scores(scored(raw))
    tally = PopulationTally(card.population.features)
    tally.add(described(rng, scores, raw.astype(float), maker))
    return tally


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.99])
def test_an_archive_of_the_labelled_mixture_is_not_unlike(share, simulated):
    wrong = []
    for seed in range(1_000):
        rng = np.random.default_rng(seed)
        made = carded(rng, independent, seed)
        tally = archived(rng, made, 5_000, share)
        wrong.append(any(shift.noticed for shift in shifts_of(made[0], tally)))
    simulated(UNLIKE, f"six generators, {100 * share:g} % of 5,000 images fake", 0.01, wrong)


ARCHIVES = {
    "5,000 images, 10 % fake": (independent, 5_000, 0.1),
    "5,000 images, 0.1 % fake": (independent, 5_000, 0.001),
    "500 images, scores in halves": (lambda rng: tied(independent(rng)), 500, 0.1),
    "one source of 20 %, lower by 0.5 sd": (lambda rng: dominated(rng, [(0.2, -0.5)]), 2_000, 0.1),
}


@pytest.mark.parametrize("setting", ARCHIVES)
def test_what_would_go_unseen_is_said(setting, simulated):
    draw, n, share = ARCHIVES[setting]
    wrong, said = [], []
    for seed in range(1_000):
        rng = np.random.default_rng(seed)
        made = carded(rng, draw, seed)
        if made is None:
            continue
        rise = rng.choice([0.0, 0.5, 1.0]) if "halves" in setting else rng.uniform(0, 1.0)
        tally = archived(rng, made, n, share, rise)
        said.append(not any(shift.noticed for shift in shifts_of(made[0], tally)))
        wrong.append(False)
        if said[-1]:
            unseen = unseen_shift(made[0], made[1].reals, tally.counts, 0)
            wrong[-1] = (
                made[2].share_above(raw_threshold(made[1]) - rise) > unseen.false_positive_rate
            )
    simulated(UNSEEN, setting, 0.05, wrong, said)
