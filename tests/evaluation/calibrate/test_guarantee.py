"""The promise, through all that `touchstone detectors calibrate` does with scores: parts, fits, a threshold, and the true rate above it."""

from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from ray_app.ensembles import EnsembleMember
from ray_app.evaluation.calibrate.division import Division, divided, groups_of
from ray_app.evaluation.calibrate.files import CalibrateConfig
from ray_app.evaluation.calibrate.fit_card import fit_card, with_thresholds
from ray_app.metrics.intervals import proportion_interval
from tests.evaluation.calibrate.drawn import DETECTORS, drawn, share_above

REPETITIONS, REALS, FAKES, TARGET = 200, 20_000, 2_000, 0.01
CONFIG = CalibrateConfig(run="", out="", rule="stacked", fpr=TARGET)


def rescored(images, rng):
    """The same images, scored anew."""
    scores = {}
    for name, (of_reals, of_fakes, deviation) in DETECTORS.items():
        drawn_anew = rng.standard_normal(len(images), np.float32) * np.float32(deviation)
        scores[name] = drawn_anew + np.where(images.fake, of_fakes, of_reals).astype(np.float32)
    return replace(images, scores=scores)


def true_rate(images, groups, seed):
    """The share of all reals above the threshold that a whole calibration chooses."""
    parts, _ = divided(images, groups, seed=seed)
    division = Division.of(images, groups, parts)
    fitted = fit_card(division, [EnsembleMember(detector=name) for name in images.detectors], CONFIG)
    found = with_thresholds(fitted, division, CONFIG)
    assert found.chosen.n_real > 0.45 * REALS
    assert found.chosen.upper_bound <= TARGET
    # Every step is linear, so the ensemble's score is a weighted sum of two normal ones: as much of it as each detector adds.
    card = fitted.card
    adds = [weight / scale for weight, scale in zip(card.stacking.coefficients, card.stacking.scale, strict=True)]
    members = [member.calibration for member in card.members]
    weights = {name: card.calibration.slope * member.slope * add for name, member, add in zip(images.detectors, members, adds, strict=True)}
    offset = sum(add * (member.intercept - mean) for member, add, mean in zip(members, adds, card.stacking.mean, strict=True))
    offset = card.calibration.slope * (offset + card.stacking.intercept) + card.calibration.intercept
    sums = sum(weight * images.raw[:100, column] for column, weight in enumerate(weights.values())) + offset
    assert fitted.scores(images)[:100] == pytest.approx(sums, abs=1e-9)
    return share_above(found.card.thresholds.fake_above, weights, offset)


def true_rates(repetitions):
    images = drawn(REALS, FAKES)
    groups, rng = groups_of(images), np.random.default_rng(8)
    with threadpool_limits(1):  # threads of small sums wait for each other on a busy machine
        return np.array([true_rate(rescored(images, rng), groups, seed) for seed in range(repetitions)])


def test_thresholds_are_near_the_target_and_below_it_on_average():
    assert 0.007 < true_rates(3).mean() < TARGET


@pytest.mark.slow
def test_the_true_false_positive_rate_exceeds_the_target_in_at_most_a_twentieth_of_repetitions():
    rates = true_rates(REPETITIONS)
    exceeded = int((rates > TARGET).sum())
    low, high = proportion_interval(exceeded, REPETITIONS)
    said = f"the true rate exceeds {TARGET:.0%} in {exceeded} of {REPETITIONS} repetitions (95 % interval: {low:.1%} … {high:.1%})"
    print(said)
    assert exceeded <= 0.05 * REPETITIONS, said
    assert low <= 0.05, said
    assert 0.007 < rates.mean() < TARGET  # and is not bought by thresholds that are far too high
