import numpy as np
import pytest
from scipy.stats import binomtest, hypergeom

from ray_app.metrics.survey_sampling import (
    LabelledStratum,
    archive_figures,
    shares,
    unsure_bounds,
)


def test_points_weigh_strata_by_their_size_and_are_unbiased():
    sizes, there, labels = (
        np.array([500, 500, 400, 3000, 1500, 500]),
        np.array([490, 350, 160, 30, 75, 100]),
        np.full(6, 60),
    )
    found = np.random.default_rng(0).hypergeometric(
        there, sizes - there, labels, size=(2000, len(sizes))
    )
    points = shares(sizes * found / labels, sizes, np.arange(len(sizes)) < 2)
    assert points["prevalence"].mean() == pytest.approx(there.sum() / sizes.sum(), rel=0.005)
    assert points["precision"].mean() == pytest.approx(there[:2].sum() / sizes[:2].sum(), rel=0.005)
    assert points["false_positive_rate"].mean() == pytest.approx(
        (1000 - 840) / (sizes.sum() - there.sum()), rel=0.02
    )
    figures = archive_figures(
        [
            LabelledStratum(100, True, fakes=9, reals=1),
            LabelledStratum(900, False, fakes=1, reals=29),
        ]
    )
    assert figures["prevalence"].value == pytest.approx((90 + 30) / 1000)
    assert figures["precision"].value == pytest.approx(0.9)
    assert figures["false_positive_rate"].value == pytest.approx(10 / 880)
    assert "%" in figures["recall"].why
    assert figures["recall"].n == 40


@pytest.mark.parametrize(("fakes", "reals"), [(0, 10), (1, 9), (6, 4), (10, 0)])
def test_interval_of_one_large_stratum_is_clopper_and_pearsons(fakes, reals):
    figure = archive_figures([LabelledStratum(10**9, True, fakes=fakes, reals=reals)])["precision"]
    exact = binomtest(fakes, 10).proportion_ci(0.95, method="exact")
    assert figure.interval == pytest.approx((exact.low, exact.high), abs=1e-6)


@pytest.mark.parametrize(("fakes", "reals"), [(0, 20), (1, 19), (12, 8), (20, 0)])
def test_interval_of_one_small_stratum_is_near_the_hypergeometric_one(fakes, reals):
    """Compare with the numbers of fakes in 40 images at which labels like these are not rarer than
    2.5 %.
    """
    figure = archive_figures([LabelledStratum(40, True, fakes=fakes, reals=reals)])["precision"]
    there = np.arange(fakes, 41 - reals)
    seen = hypergeom(40, there, 20)
    kept = there[(seen.cdf(fakes) >= 0.025) & (seen.sf(fakes - 1) >= 0.025)]
    # one image to either side
    assert figure.interval == pytest.approx((kept.min() / 40, kept.max() / 40), abs=0.026)


def test_interval_of_strata_adds_the_squares_of_their_distances():
    strata = [
        LabelledStratum(10**7, False, fakes=2, reals=38),
        LabelledStratum(3 * 10**7, False, fakes=0, reals=60),
    ]
    low, high = archive_figures(strata)["prevalence"].interval
    first, second = (
        binomtest(one.fakes, one.labelled).proportion_ci(0.95, method="exact") for one in strata
    )
    assert low == pytest.approx(0.25 * 0.05 - 0.25 * (0.05 - first.low), abs=1e-6)
    assert high == pytest.approx(
        0.25 * 0.05 + np.hypot(0.25 * (first.high - 0.05), 0.75 * second.high), abs=1e-6
    )


def test_interval_of_strata_that_are_labelled_whole_is_the_truth():
    figures = archive_figures(
        [LabelledStratum(10, True, fakes=8, reals=2), LabelledStratum(90, False, fakes=2, reals=88)]
    )
    assert figures["prevalence"].interval == pytest.approx((0.1, 0.1))
    assert figures["recall"].interval == pytest.approx((0.8, 0.8))
    assert figures["false_positive_rate"].interval == pytest.approx((2 / 90, 2 / 90))


def test_interval_contains_its_estimate():
    strata = [
        LabelledStratum(1000, True, fakes=0, reals=30),
        LabelledStratum(9000, False, fakes=0, reals=50),
    ]
    figures = archive_figures(strata)
    assert figures["prevalence"].value == figures["prevalence"].interval[0] == 0
    assert figures["prevalence"].interval[1] < 0.12
    assert figures["recall"].why == "no labelled image is fake"
    assert (
        figures["false_positive_rate"].interval[0]
        < 0.1
        < figures["false_positive_rate"].interval[1]
    )


def test_unsure_images_widen_what_is_said_either_way():
    strata = [
        LabelledStratum(200, True, fakes=40, reals=5, unsure=5),
        LabelledStratum(2000, False, fakes=5, reals=85, unsure=10),
    ]
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


def test_a_recall_that_may_be_nearly_anything_is_not_stated():
    strata = [
        LabelledStratum(500, True, fakes=30, reals=2),
        LabelledStratum(100_000, False, fakes=0, reals=100),
    ]
    recall = archive_figures(strata)["recall"]
    assert (recall.value, recall.interval) == (None, None)
    assert recall.why.startswith("the labels allow anything from ")
    assert recall.why.endswith(" to 100 %")
    assert (
        archive_figures([*strata[:1], LabelledStratum(10_000, False, fakes=0, reals=3000)])[
            "recall"
        ].value
        == 1
    )
