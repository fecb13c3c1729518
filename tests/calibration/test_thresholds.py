from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binom

from ray_app.calibration.thresholds import allowed, choose, needed, real_below
from ray_app.errors import ConfigError
from ray_app.metrics import ScoreHistogram
from ray_app.metrics.intervals import proportion_interval


@pytest.mark.parametrize(("target", "confidence", "reals"), [(0.01, 0.95, 299), (0.001, 0.95, 2_995), (0.05, 0.95, 59), (0.01, 0.99, 459)])
def test_how_many_reals_are_needed(target, confidence, reals):
    assert needed(target, confidence) == reals
    assert allowed(reals, target, confidence) == 0
    assert allowed(reals - 1, target, confidence) == -1


@pytest.mark.parametrize("n", [299, 300, 473, 1_000, 10_000, 1_234_567])
@pytest.mark.parametrize(("target", "confidence"), [(0.01, 0.95), (0.05, 0.9), (0.2, 0.99)])
def test_no_more_false_positives_are_allowed_than_the_binomial_says(n, target, confidence):
    most = allowed(n, target, confidence)
    assert binom.cdf(most, n, target) <= 1 - confidence < binom.cdf(most + 1, n, target)


@pytest.mark.parametrize("ties", [None, 2, 1, 0])
@pytest.mark.parametrize("target", [0.01, 0.1])
def test_the_threshold_is_the_smallest_double_that_few_enough_reals_reach(ties, target):
    scores = np.random.default_rng(0).normal(size=2_000)
    scores = scores if ties is None else scores.round(ties)
    found = choose(scores, target)
    most = allowed(2_000, target)
    assert (scores >= found.fake_above).sum() == found.false_positives <= most
    assert (scores >= np.nextafter(found.fake_above, -np.inf)).sum() > most
    assert found.upper_bound == proportion_interval(found.false_positives, 2_000, 0.05)[1] <= target
    assert ties is not None or found.false_positives == most
    assert choose(ScoreHistogram.of(scores), target) == found


def test_where_all_reals_score_alike_nothing_that_scores_so_is_fake():
    found = choose(np.zeros(500), 0.01)
    assert found.fake_above == np.nextafter(0, 1)
    assert found.false_positives == 0


@pytest.mark.parametrize(
    ("n", "target", "words"),
    [
        (120, 0.01, "120 reals; a 1 % target at 95 % needs 299"),
        (2_994, 0.001, "2,994 reals; a 0.1 % target at 95 % needs 2,995"),
        (0, 0.01, "0 reals"),
    ],
)
def test_too_few_reals_are_refused_with_the_number_needed(n, target, words):
    with pytest.raises(ConfigError, match=words):
        choose(np.arange(float(n)), target)


@pytest.mark.parametrize(("n", "target"), [(299, 0.01), (1_000, 0.01), (1_000, 0.05), (5_000, 0.01)])
def test_the_true_rate_exceeds_the_target_as_seldom_as_promised(n, target):
    # Of scores drawn evenly from 0 … 1, the share of all reals that reach a threshold is 1 less the threshold.
    scores = np.random.default_rng(n).random((1_000, n))
    exceeded = sum(1 - choose(row, target).fake_above > target for row in scores)
    expected = binom.cdf(allowed(n, target), n, target)
    assert expected <= 0.05
    low, high = proportion_interval(exceeded, 1_000, 0.0005)
    assert low <= expected <= high


@pytest.mark.parametrize("miss", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("ties", [None, 1, 0])
def test_no_more_fakes_than_that_are_called_real(miss, ties):
    fakes = np.random.default_rng(1).normal(2, 1, 1_000)
    fakes = fakes if ties is None else fakes.round(ties)
    found = real_below(fakes, miss, fake_above=10.0)
    assert (fakes <= found).sum() <= miss * 1_000
    assert (fakes <= np.nextafter(found, np.inf)).sum() > miss * 1_000
    assert real_below(ScoreHistogram.of(fakes), miss, fake_above=10.0) == found


def test_real_never_begins_above_fake():
    fakes = np.linspace(5, 9, 100)
    assert real_below(fakes, fake_above=3.0) == 3.0
    assert real_below(fakes, 1.0, fake_above=30.0) == 30.0
    with pytest.raises(ConfigError, match="0 fakes"):
        real_below([], fake_above=3.0)


def test_more_reals_give_a_lower_threshold_on_average():
    rng = np.random.default_rng(2)
    means = [np.mean([choose(rng.normal(size=n), 0.01).fake_above for _ in range(100)]) for n in (299, 1_000, 5_000, 20_000)]
    assert all(later < earlier for earlier, later in pairwise(means))
