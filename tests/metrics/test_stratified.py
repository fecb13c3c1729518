from math import comb

import numpy as np
import pytest

from ray_app.metrics.survey_sampling import LabelledStratum, archive_figures, drawn_fakes, shares, unsure_bounds

# Sizes, shares of fakes and numbers of labels of six strata; the first two are flagged.
ARCHIVES = {
    "many fakes": ([500, 500, 400, 3000, 1500, 500], [0.98, 0.7, 0.4, 0.01, 0.05, 0.2], [60, 60, 60, 80, 70, 70]),
    "rare fakes": ([5000, 5000, 4000, 300_000, 150_000, 50_000], [0.98, 0.7, 0.4, 0.001, 0.005, 0.03], [60, 60, 60, 80, 70, 70]),
    "few labels": ([500, 500, 400, 3000, 1500, 500], [0.98, 0.7, 0.4, 0.01, 0.05, 0.2], [30, 30, 30, 40, 35, 35]),
    "poor detector": ([500, 500, 400, 3000, 1500, 500], [0.9, 0.5, 0.4, 0.1, 0.2, 0.4], [60, 60, 60, 80, 70, 70]),
}
REPETITIONS = 400


@pytest.mark.parametrize("name", ARCHIVES)
def test_intervals_cover_the_truth_as_often_as_they_say(name):
    sizes, rates, labels = (np.array(column) for column in ARCHIVES[name])
    flagged = np.arange(len(sizes)) < 2
    rng = np.random.default_rng(8)
    there = np.round(sizes * rates).astype(np.int64)
    found = rng.hypergeometric(there, sizes - there, labels, size=(REPETITIONS, len(sizes)))
    drawn = drawn_fakes(sizes, flagged, found, np.broadcast_to(labels, found.shape), draws=400, rng=rng)
    truth = shares(there, sizes, flagged)
    for figure, values in shares(drawn, sizes, flagged).items():
        low, high = np.quantile(values, [0.025, 0.975], axis=0)
        covered = ((low <= truth[figure]) & (truth[figure] <= high)).mean()
        print(f"{name}: {figure} {covered:.1%} of {REPETITIONS}")
        assert 0.925 <= covered <= 0.98, figure


def test_points_weigh_strata_by_their_size_and_are_unbiased():
    sizes, rates, labels = (np.array(column) for column in ARCHIVES["many fakes"])
    there = np.round(sizes * rates).astype(np.int64)
    found = np.random.default_rng(0).hypergeometric(there, sizes - there, labels, size=(2000, len(sizes)))
    points = shares(sizes * found / labels, sizes, np.arange(len(sizes)) < 2)
    assert points["prevalence"].mean() == pytest.approx(there.sum() / sizes.sum(), rel=0.005)
    assert points["precision"].mean() == pytest.approx(there[:2].sum() / sizes[:2].sum(), rel=0.005)
    figures = archive_figures([LabelledStratum(100, True, fakes=9, reals=1), LabelledStratum(900, False, fakes=1, reals=29)])
    assert figures["prevalence"].value == pytest.approx((90 + 30) / 1000)
    assert figures["precision"].value == pytest.approx(0.9)
    assert figures["recall"].value == pytest.approx(90 / 120)
    assert figures["recall"].n == 40


def test_one_stratum_is_the_beta_binomial_of_jeffreys():
    figure = archive_figures([LabelledStratum(40, True, fakes=6, reals=4)], draws=200_000)["precision"]
    beta = [_beta_binomial(unseen, 30, 6.5, 4.5) for unseen in range(31)]
    upto = np.cumsum(beta)
    expected = [(6 + int(np.searchsorted(upto, end))) / 40 for end in (0.025, 0.975)]
    assert figure.interval == pytest.approx(tuple(expected), abs=1e-12)


def _beta_binomial(k, n, a, b):
    from scipy.special import betaln

    return comb(n, k) * float(np.exp(betaln(k + a, n - k + b) - betaln(a, b)))


def test_strata_that_are_labelled_whole_are_certain():
    figures = archive_figures([LabelledStratum(10, True, fakes=9, reals=1), LabelledStratum(20, False, fakes=3, reals=17)])
    for figure, value in zip(figures.values(), (12 / 30, 0.9, 0.75), strict=True):
        assert figure.value == pytest.approx(value)
        assert figure.interval == pytest.approx((value, value))


def test_an_interval_has_its_point_within_and_is_the_same_every_time():
    strata = [LabelledStratum(1000, True, fakes=0, reals=30), LabelledStratum(9000, False, fakes=0, reals=50)]
    figures = archive_figures(strata, seed=3)
    assert figures["prevalence"].value == figures["prevalence"].interval[0] == 0
    assert figures["prevalence"].interval[1] < 0.12
    assert figures["recall"].why == "no labelled image is fake"
    assert archive_figures(strata, seed=3) == figures


def test_unsure_images_widen_what_is_said_either_way():
    strata = [LabelledStratum(200, True, fakes=40, reals=5, unsure=5), LabelledStratum(2000, False, fakes=5, reals=85, unsure=10)]
    figures, widest = archive_figures(strata), unsure_bounds(strata)
    for name, (low, high) in widest.items():
        assert low < figures[name].interval[0] < figures[name].interval[1] < high, name
    sure = [LabelledStratum(one.size, one.flagged, one.fakes, one.reals) for one in strata]
    assert archive_figures(sure) == figures
    assert unsure_bounds(sure) == {name: figure.interval for name, figure in figures.items()}


def test_what_is_not_defined_says_why():
    nothing = [LabelledStratum(10, False, reals=2, name="1"), LabelledStratum(5, False, name="2")]
    figures = archive_figures(nothing)
    assert figures["precision"].why == "no image is flagged as fake"
    assert figures["prevalence"].why == "no image of stratum 2 is labelled"
    assert unsure_bounds(nothing) == {}
