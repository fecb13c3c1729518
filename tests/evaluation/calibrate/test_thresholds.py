import re

import numpy as np
import pytest
from scipy.stats import beta, binom

from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.thresholds import (
    choose_band,
    choose_real_below,
    choose_threshold,
    false_positives_allowed,
    fit,
    fraction_at,
    lowest_threshold,
    reals_needed,
)
from ray_app.metrics.registry import ScoredImages, expected_calibration_error
from ray_app.metrics.uncertainty import proportion_interval


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("prevalence", [0.5, 0.01])
def test_band_uses_its_share_within_the_exact_bound(share, prevalence):
    rng, fake = np.random.default_rng(0), np.arange(4_000) % 2 == 1
    early = rng.normal(np.where(fake, 1.5, -1.5), 1)
    band = choose_band(early, fake, fraction=share, prevalence=prevalence, target=0.01)
    inside = (early >= band.low) & (early <= band.high)
    counts = [int(inside[fake == kind].sum()) for kind in (False, True)]
    assert band.fraction == pytest.approx(
        (1 - prevalence) * counts[0] / 2_000 + prevalence * counts[1] / 2_000
    )
    assert band.fraction == pytest.approx(fraction_at(inside, fake, prevalence))
    bounds = [beta.ppf(0.975, count + 1, 2_000 - count) for count in counts]
    assert band.upper_bound == pytest.approx((1 - prevalence) * bounds[0] + prevalence * bounds[1])
    assert band.upper_bound <= share
    assert band.fraction > share - 0.03
    assert (early[~fake] > band.high).mean() == 0.005  # Half of the target.


@pytest.mark.parametrize("fakes", [60, 1_500, 3_000 - 60])
def test_probabilities_of_unbalanced_images_are_calibrated(fakes):
    def images(seed, n):
        fake = np.arange(n) < fakes * n // 3_000
        return np.random.default_rng(seed).normal(np.where(fake, 1.5, -1.5), 1.5) + 12, fake

    (scores, fake), found = images(0, 30_000), fit(*images(1, 3_000))
    assert (
        expected_calibration_error(ScoredImages.from_scores(scores, fake, calibration=found)) < 0.02
    )


@pytest.mark.parametrize(
    ("target", "confidence", "reals"), [(0.01, 0.95, 299), (0.001, 0.95, 2_995), (0.01, 0.99, 459)]
)
def test_reals_needed_for_a_bound(target, confidence, reals):
    assert reals_needed(target, confidence) == reals
    assert false_positives_allowed(reals, target, confidence) == 0
    assert false_positives_allowed(reals - 1, target, confidence) == -1


@pytest.mark.parametrize("n", [299, 473, 1_234_567])
@pytest.mark.parametrize(("target", "confidence"), [(0.01, 0.95), (0.05, 0.9), (0.2, 0.99)])
def test_allowed_false_positives_follow_the_binomial(n, target, confidence):
    most = false_positives_allowed(n, target, confidence)
    assert binom.cdf(most, n, target) <= 1 - confidence < binom.cdf(most + 1, n, target)


@pytest.mark.parametrize("ties", [12, 1])
@pytest.mark.parametrize("target", [0.01, 0.1])
def test_threshold_is_the_smallest_that_keeps_the_bound(ties, target):
    scores = np.random.default_rng(0).normal(size=2_000).round(ties)
    found = choose_threshold(scores, target)
    most = false_positives_allowed(2_000, target)
    assert (scores >= found.fake_above).sum() == found.false_positives <= most
    assert (scores >= np.nextafter(found.fake_above, -np.inf)).sum() > most
    assert found.upper_bound == proportion_interval(found.false_positives, 2_000, 0.05)[1] <= target
    assert ties == 1 or found.false_positives == most
    assert choose_threshold(np.zeros(500), target).fake_above == np.nextafter(0, 1), (
        "where all reals score alike, what scores so is not fake"
    )


@pytest.mark.parametrize("miss", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("ties", [9, 0])
def test_real_below_misses_no_more_fakes_than_allowed(miss, ties):
    fakes = np.random.default_rng(1).normal(2, 1, 1_000).round(ties)
    found = choose_real_below(fakes, miss, fake_above=10.0)
    assert (fakes <= found).sum() <= miss * 1_000
    assert (fakes <= np.nextafter(found, np.inf)).sum() > miss * 1_000


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("ties", [9, 1])
def test_measured_threshold_is_the_lowest_that_keeps_the_rate(rate, ties):
    reals = np.random.default_rng(1).normal(size=500).round(ties)
    found = lowest_threshold(reals, rate)
    assert (reals >= found).mean() <= rate < (reals >= np.nextafter(found, -np.inf)).mean()


@pytest.mark.parametrize("n", [10, 23, 298])
def test_hint_for_few_reals_names_a_rate_that_works(n):
    with pytest.raises(ConfigError) as refused:
        choose_threshold(np.arange(n), 0.01)
    rate = float(re.search(r"--fpr (\S+) or more", refused.value.hint)[1])
    assert choose_threshold(np.arange(n), rate).upper_bound <= rate
    with pytest.raises(ConfigError):
        choose_threshold(np.arange(n), rate - 0.001)


def test_hint_for_very_few_reals_asks_for_labels_only():
    with pytest.raises(ConfigError) as refused:
        choose_threshold(np.arange(3), 0.01)
    assert refused.value.hint == "label more real images"
