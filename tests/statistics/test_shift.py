"""The comparison of an archive with a calibration accepts the labelled mixture and notices shifts."""

import numpy as np
import pytest

from ray_app.ensembles import PopulationTally, compute_properties, measure_population
from ray_app.ensembles.population import LabelledPart
from ray_app.metrics.drift import find_shifts
from tests.statistics.labelled import calibrated, images_of, independent, scored

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

UNLIKE = "2. an archive of the labelled sources and generators is called unlike"
MISSED = "2. an archive with a large shift is not called unlike"
PART = LabelledPart(name="fit", n_real=1, n_fake=1, groups=1, sha256="0" * 64)
GENERATORS = 6


def described(rng, scores, raw, maker):
    """The properties of images by their makers (n,), 0 for reals: each generator has a size and a
    JPEG quality of its own.
    """
    quality = np.clip(rng.normal(np.where(maker, 70 + 4 * maker, 85), 6).round(), 1, 100)
    side = np.where(maker > 3, 512.0 + 128 * maker, rng.choice([640.0, 800.0, 1024.0], len(maker)))
    files = {"formats": np.where(maker == 2, "PNG", "JPEG").tolist(), "width": side, "height": side}
    files["quality"] = np.where(maker == 2, np.nan, quality)
    return compute_properties(score=scores, scores={"a": raw}, **files)


def carded(rng, draw, seed):
    """A calibrated card with its population, its calibration, the reals' population and the fakes'
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
    properties = described(rng, found.fitted.scores(images), raw, maker)
    population = measure_population("p", images.fake, properties, parts=[PART], prevalence=0.2)
    card = found.card.model_copy(update={"population": population})
    return card, found, reals, means


def archived(rng, made, n, fraction, *, rise=0.0, worse=0):
    """The bins of an archive of `n` images, this fraction of them fake.

    `rise`: of the reals' raw scores; `worse`: by how much the JPEG quality of all is lower.
    """
    card, found, reals, means = made
    fakes = rng.binomial(n, fraction)
    maker = np.concatenate([np.zeros(n - fakes, int), rng.integers(1, GENERATORS + 1, fakes)])
    of_reals = reals.more(rng, n - fakes) + rise
    of_fakes = rng.normal(means[maker[n - fakes :] - 1], 1)
    raw = np.concatenate([of_reals, of_fakes]).astype(np.float32)
    properties = described(rng, found.fitted.scores(scored(raw)), raw.astype(float), maker)
    properties["jpeg_quality"] = properties["jpeg_quality"] - worse
    tally = PopulationTally(card.population.features)
    tally.add(properties)
    return tally.bins()


@pytest.mark.parametrize(
    ("n", "fraction"), [(5_000, 0.0), (5_000, 0.2), (5_000, 0.8), (5_000, 0.99), (200, 0.1)]
)
def test_an_archive_of_the_labelled_mixture_is_not_unlike(n, fraction, simulated):
    wrong = []
    for seed in range(1_000):
        rng = np.random.default_rng(seed)
        bins = archived(rng, carded(rng, independent, seed), n, fraction)
        wrong.append(any(shift.is_noticed for shift in find_shifts(bins).values()))
    simulated(UNLIKE, f"six generators, {100 * fraction:g} % of {n:,} images fake", 0.01, wrong)


SHIFTS = {
    "all JPEG qualities lower by 10": (500, {"worse": 10}),
    "the reals' scores higher by 1 sd": (5_000, {"rise": 1.0}),
}


@pytest.mark.parametrize("setting", SHIFTS)
def test_an_archive_with_a_large_shift_is_unlike(setting, simulated):
    n, shift = SHIFTS[setting]
    missed = []
    for seed in range(1_000):
        rng = np.random.default_rng(seed)
        bins = archived(rng, carded(rng, independent, seed), n, 0.1, **shift)
        missed.append(not any(found.is_noticed for found in find_shifts(bins).values()))
    simulated(MISSED, f"{setting}, 10 % of {n:,} images fake", 0.01, missed)
