import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import beta, binom
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from ray_app.evaluation.calibrate import thresholds
from ray_app.evaluation.calibrate.thresholds import (
    choose_band,
    choose_threshold,
    false_positives_allowed,
    fit,
    fit_isotonic,
    real_below,
    reals_needed,
    share_at,
)
from ray_app.metrics.arrays import ScoreHistogram
from ray_app.metrics.calibration import debiased_ece, fit_temperature
from ray_app.metrics.intervals import proportion_interval


def two_stages(n, seed=0):
    """Scores of a coarse and of a fine detector; half of the images are fake."""
    rng = np.random.default_rng(seed)
    fake = np.arange(n) % 2 == 1
    return rng.normal(np.where(fake, 1.5, -1.5), 1), rng.normal(np.where(fake, 4, -4), 1), fake


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("prevalence", [0.5, 0.01])
def test_the_share_is_kept_by_its_exact_bound_and_used_up(share, prevalence):
    early, late, fake = two_stages(4_000)
    band = choose_band(early, late, fake, share=share, prevalence=prevalence, target=0.01)
    inside = (early >= band.low) & (early <= band.high)
    counts = [int(inside[fake == kind].sum()) for kind in (False, True)]
    assert band.share == pytest.approx((1 - prevalence) * counts[0] / 2_000 + prevalence * counts[1] / 2_000)
    assert band.share == pytest.approx(share_at(inside, fake, prevalence))
    bounds = [beta.ppf(0.975, count + 1, 2_000 - count) for count in counts]
    assert band.upper_bound == pytest.approx((1 - prevalence) * bounds[0] + prevalence * bounds[1])
    assert band.upper_bound <= share
    assert band.share > share - 0.03


METHODS = ("platt", "isotonic", "temperature")


def overconfident(n, seed):
    """Scores five times as sure as they should be, and their labels."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, n)
    return 5 * truth, rng.random(n) < 1 / (1 + np.exp(-truth))


def test_temperature_is_that_of_scikit_learn():
    scores, fake = overconfident(5_000, 3)
    found = fit(scores, fake, "temperature")
    assert found.intercept == 0
    # Scores as they are, from a classifier with slope 1, calibrated by scikit-learn's own method.
    asis = LogisticRegression().fit(scores[:, None], fake)
    asis.coef_[:], asis.intercept_[:] = 1, 0
    theirs = CalibratedClassifierCV(FrozenEstimator(asis), method="temperature").fit(scores[:, None], fake)
    chances = 1 / (1 + np.exp(-found(scores)))
    assert chances == pytest.approx(theirs.predict_proba(scores[:, None])[:, 1], abs=2e-3)


@pytest.mark.parametrize("fakes", [60, 1_500, 3_000 - 60])
@pytest.mark.parametrize("method", METHODS)
def test_chances_are_right_off_balance_and_of_scores_that_are_all_positive(method, fakes):
    def images(seed, n):
        fake = np.arange(n) < fakes * n // 3_000
        return np.random.default_rng(seed).normal(np.where(fake, 1.5, -1.5), 1.5) + 12, fake

    (scores, fake), found = images(0, 30_000), fit(*images(1, 3_000), method)
    assert debiased_ece(ScoreHistogram.of(scores[fake]), ScoreHistogram.of(scores[~fake]), found).value < 0.02


def test_temperature_has_an_intercept_only_where_the_labels_refute_that_there_is_none():
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 2, (80, 500))
    fitted = [fit_temperature(scores, rng.random(500) < expit(scores)) for scores in truth]
    assert np.mean([one.intercept != 0 for one in fitted]) < 0.1
    assert all(fit_temperature(scores + 3, rng.random(500) < expit(scores)).intercept < -1 for scores in truth[:8])


def test_isotonic_keeps_the_order_of_scores_beyond_its_knots_and_hardly_moves_their_chances():
    rng = np.random.default_rng(0)
    fake = np.arange(4_000) < 2_000
    scores = rng.normal(np.where(fake, 4, -4), 2)
    found = fit_isotonic(scores, fake)
    ordered = np.linspace(-30, 30, 10_000).astype(np.float32)
    assert (np.diff(found(ordered)) > 0).all()
    top, [end] = found.knots[-1][1], found(np.array([scores.max()]))
    assert 0 < end - top < 0.2


def test_isotonic_of_few_scores_by_hand():
    # Level pieces: 0 of 2 fake around 1.5, 1 of 2 around 3.5, 2 of 2 around 5.5; each drawn in to (k + 1/2) / (n + 1).
    found = fit([1, 2, 3, 4, 5, 6], [0, 0, 1, 0, 1, 1], "isotonic")
    drawn_in = np.array([0.5, 1.5, 2.5]) / 3
    assert np.array(found.knots) == pytest.approx(np.stack([[1.5, 3.5, 5.5], np.log(drawn_in / (1 - drawn_in))], axis=1))


@pytest.mark.parametrize(("target", "confidence", "reals"), [(0.01, 0.95, 299), (0.001, 0.95, 2_995), (0.01, 0.99, 459)])
def test_how_many_reals_are_needed(target, confidence, reals):
    assert reals_needed(target, confidence) == reals
    assert false_positives_allowed(reals, target, confidence) == 0
    assert false_positives_allowed(reals - 1, target, confidence) == -1


@pytest.mark.parametrize("n", [299, 473, 1_234_567])
@pytest.mark.parametrize(("target", "confidence"), [(0.01, 0.95), (0.05, 0.9), (0.2, 0.99)])
def test_no_more_false_positives_are_allowed_than_the_binomial_says(n, target, confidence):
    most = false_positives_allowed(n, target, confidence)
    assert binom.cdf(most, n, target) <= 1 - confidence < binom.cdf(most + 1, n, target)


@pytest.mark.parametrize("ties", [12, 1])
@pytest.mark.parametrize("target", [0.01, 0.1])
def test_the_threshold_is_the_smallest_double_that_few_enough_reals_reach(ties, target):
    scores = np.random.default_rng(0).normal(size=2_000).round(ties)
    found = choose_threshold(scores, target)
    most = false_positives_allowed(2_000, target)
    assert (scores >= found.fake_above).sum() == found.false_positives <= most
    assert (scores >= np.nextafter(found.fake_above, -np.inf)).sum() > most
    assert found.upper_bound == proportion_interval(found.false_positives, 2_000, 0.05)[1] <= target
    assert ties == 1 or found.false_positives == most
    assert choose_threshold(ScoreHistogram.of(scores), target) == found
    assert choose_threshold(np.zeros(500), target).fake_above == np.nextafter(0, 1), (
        "where all reals score alike, what scores so is not fake"
    )


@pytest.mark.parametrize("miss", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("ties", [9, 0])
def test_no_more_fakes_than_that_are_called_real(miss, ties):
    fakes = np.random.default_rng(1).normal(2, 1, 1_000).round(ties)
    found = real_below(fakes, miss, fake_above=10.0)
    assert (fakes <= found).sum() <= miss * 1_000
    assert (fakes <= np.nextafter(found, np.inf)).sum() > miss * 1_000
    assert real_below(ScoreHistogram.of(fakes), miss, fake_above=10.0) == found


def test_pieces_still_rise_after_small_ones_were_drawn_in():
    # 0 of 1, then 1 of 100: drawn in, the first would be 1/4 and the second 1.5/101.
    found = fit([0.0, *[1.0] * 100, 2.0, 2.5], [0, 1, *[0] * 99, 1, 1], "isotonic")
    log_odds = [knot[1] for knot in found.knots]
    assert log_odds == sorted(log_odds)
    assert len(log_odds) == 2


def test_many_pieces_are_thinned_to_nearly_the_same_curve(monkeypatch):
    monkeypatch.setattr(thresholds, "MOST_KNOTS", 50)
    scores, fake = overconfident(100_000, 0)
    found = fit_isotonic(scores, fake)
    assert len(found.knots) == 50
    truth = scores / 5
    middle = np.abs(truth) < 3
    assert np.abs(1 / (1 + np.exp(-found(scores))) - 1 / (1 + np.exp(-truth)))[middle].max() < 0.03
