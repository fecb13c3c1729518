"""Intervals of figures hold for further generators and sources, or for these ones alone, as they
say; and so do tests of two systems.

Of each setting the row is of that figure of which the interval missed most often.
"""

import numpy as np
import pytest

from ray_app.metrics.arrays import ScoreHistogram
from ray_app.metrics.clusters import ClassSample
from ray_app.metrics.detection import detection_of
from ray_app.metrics.detection_intervals import ScoredClass, with_intervals
from ray_app.metrics.significance import delong, mcnemar
from tests.statistics.drawn_generators import Setting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEEDS = 1_000
ALPHA = 0.01
FURTHER = "5. a 95 % interval misses further generators and sources (of all figures, the one that missed most)"
SETTINGS = {
    "10 generators × 50, 500 reals": Setting(),
    "10 generators × 50, 10 sources × 50": Setting(sources=(50,) * 10),
    "25 generators of 8 to 150, 500 reals": Setting(
        sizes=tuple(np.geomspace(8, 150, 25).astype(int).tolist())
    ),
    "6 generators × 60, 400 reals": Setting(sizes=(60,) * 6, sources=(400,)),
    "3 generators × 60, 400 reals": Setting(sizes=(60,) * 3, sources=(400,)),
    "10 × 50, 10 sources × 50, scores rounded to 0.5": Setting(sources=(50,) * 10, ties=0.5),
    "10 generators, two with 30 % of the fakes each, 500 reals": Setting(
        sizes=(150, 150, *(25,) * 8)
    ),
    "10 fakes of 10 generators, 9,990 reals (0.1 %)": Setting(sizes=(1,) * 10, sources=(9_990,)),
}


def missed(setting, seeds, *, effects=None, images=False):
    """By figure whether its interval missed the truth, bool (seeds,)."""
    truth, found = setting.truth(effects), {}
    for seed in range(seeds):
        fakes, reals = setting.classes(np.random.default_rng([seed, 22]), effects, images=images)
        figures = detection_of(fakes.scores, reals.scores)
        for name, figure in with_intervals(figures, fakes, reals, seed=seed).items():
            if figure.ends and truth[name] is not None:
                low, high = figure.interval
                found.setdefault(name, []).append(not low - 1e-12 <= truth[name] <= high + 1e-12)
    return {name: np.array(wrong) for name, wrong in found.items()}


def worst(wrong):
    """Of all figures that had an interval on every seed the one that missed most often, with its
    name.
    """
    name = max(wrong, key=lambda one: (wrong[one].sum(), one))
    return name, wrong[name]


@pytest.mark.parametrize("words", SETTINGS)
def test_intervals_hold_for_further_generators(words, simulated):
    name, wrong = worst(missed(SETTINGS[words], SEEDS))
    simulated(FURTHER, f"{words}: {name}", 0.05, wrong)


def test_intervals_of_these_generators_only(simulated):
    setting = Setting(sources=(50,) * 10)
    name, wrong = worst(
        missed(setting, SEEDS, effects=setting.effects(np.random.default_rng(11)), images=True)
    )
    simulated(
        "5. with `--intervals images` it misses further images of these generators",
        f"10 × 50, 10 sources × 50: {name}",
        0.05,
        wrong,
    )


CHANCES = {
    "right chances": lambda logits: logits,
    "three times too sure": lambda logits: 3 * logits,
    "three times too unsure": lambda logits: logits / 3,
    "too high by 1.5": lambda logits: logits + 1.5,
}


def of_chances(rng, n, stated):
    """Scores (n,) and whether each is fake, with odds that are stated otherwise."""
    logits = rng.normal(0, 2, n)
    return stated(logits), rng.random(n) < 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("name", ["ece", "log_loss"])
def test_chances_of_few_images(name, simulated):
    wrong = {}
    for words, stated in CHANCES.items():
        scores, fake = of_chances(np.random.default_rng(1), 1_000_000, stated)
        truth = detection_of(ScoreHistogram.of(scores[fake]), ScoreHistogram.of(scores[~fake]))[
            name
        ].value
        for n in (100, 200, 500):
            wrong[f"{n} images, {words}"] = found = np.zeros(SEEDS, bool)
            for seed in range(SEEDS):
                scores, fake = of_chances(np.random.default_rng([seed, n]), n, stated)
                fakes, reals = (
                    ScoredClass(ScoreHistogram.of(scores[mine]), ClassSample.of(scores[mine]))
                    for mine in (fake, ~fake)
                )
                figures = detection_of(fakes.scores, reals.scores)
                low, high = with_intervals({name: figures[name]}, fakes, reals)[name].interval
                found[seed] = not low - 1e-12 <= truth <= high + 1e-12
    words, found = worst(wrong)
    what = {"ece": "calibration error", "log_loss": "log-loss"}[name]
    simulated(
        f"5. a 95 % interval of the {what} misses it (100, 200, 500 images; four kinds of chances; the worst)",
        words,
        0.05,
        found,
    )


PAIRED = {
    "10 generators × 50, 500 reals": Setting(),
    "10 generators × 50, 10 sources × 50": Setting(sources=(50,) * 10),
    "6 generators × 60, 400 reals": Setting(sizes=(60,) * 6, sources=(400,)),
    "two with 30 % of the fakes each": Setting(sizes=(150, 150, *(25,) * 8)),
    "scores rounded to 0.5": Setting(ties=0.5),
}


def pair_of(setting, rng, lead=0.0):
    """Scores (n,) of two systems that share half of what they make of an image, whether it is fake,
    and whose; b leads by so much.
    """
    fake = np.arange(sum(setting.sizes) + sum(setting.sources)) < sum(setting.sizes)
    shared, scores = rng.normal(0, 0.7, len(fake)), []
    for shift in (0.0, lead):
        (fakes, makers), (reals, sources) = Setting(**{**vars(setting), "ties": 0.0}).drawn(rng)
        mine = 0.7 * np.concatenate([fakes, reals]) + shared + shift * fake
        scores.append(np.round(mine / setting.ties) * setting.ties if setting.ties else mine)
    names = np.concatenate(
        [makers, sources if setting.named else np.full(len(sources), "real", object)]
    )
    return *scores, fake, names


def rejected(setting, seeds, lead=0.0):
    """Whether the test of AUCs, and that of shares judged correctly, finds a difference: bool (2,
    seeds).
    """
    found = np.zeros((2, seeds), bool)
    for seed in range(seeds):
        a, b, fake, names = pair_of(setting, np.random.default_rng([seed, 5]), lead)
        tests = delong(a, b, fake, names), mcnemar((a > 0) == fake, (b > 0) == fake, fake, names)
        found[:, seed] = [test.p < ALPHA for test in tests]
    return found


def test_equal_systems_are_not_told_apart(simulated):
    found = {f"{words}, {what}": wrong for words, setting in PAIRED.items()
             for what, wrong in zip(("AUC", "share judged correctly"), rejected(setting, SEEDS), strict=True)}  # fmt: skip
    name, wrong = worst(found)
    simulated(
        "5. systems equal over generators are told apart at p < 0.01 (five settings, two tests; the worst)",
        name,
        ALPHA,
        wrong,
    )


def test_a_clear_lead_is_found():
    assert rejected(Setting(apart=0.3), 200, lead=1.0).mean(axis=1).min() > 0.9
