"""Estimates of stratified samples: unbiased values, and intervals of as many labels as they are worth."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from ray_app.metrics.survey_sampling import (
    LabelledStratum,
    archive_figures,
    effective_labels,
    estimate_fraction,
)


def test_values_weigh_strata_by_their_size_and_are_unbiased():
    sizes, fakes = [500, 500, 400, 3000], [490, 350, 160, 30]
    rng, found = np.random.default_rng(0), []
    for _ in range(500):
        hits = rng.hypergeometric(fakes, np.subtract(sizes, fakes), 60).tolist()
        figures = archive_figures(
            [
                LabelledStratum(size, place < 2, hit, 60 - hit)
                for place, (size, hit) in enumerate(zip(sizes, hits, strict=True))
            ]
        )
        found.append([figures[name].value for name in ("prevalence", "precision")])
    truth = [sum(fakes) / sum(sizes), sum(fakes[:2]) / sum(sizes[:2])]
    assert np.mean(found, axis=0) == pytest.approx(truth, rel=0.01)
    flagged, rest = (100, True, 9, 1), (900, False, 1, 29)
    figures = archive_figures([LabelledStratum(*flagged), LabelledStratum(*rest)])
    assert figures["prevalence"].value == pytest.approx((90 + 30) / 1000)
    assert figures["precision"].value == pytest.approx(0.9)
    assert figures["recall"].value == pytest.approx(90 / 120)
    assert figures["false_positive_rate"].value == pytest.approx(10 / 880)


@pytest.mark.parametrize(("fakes", "reals"), [(0, 10), (1, 9), (6, 4), (10, 0)])
def test_interval_of_one_stratum_is_clopper_and_pearsons(fakes, reals):
    figure = estimate_fraction([LabelledStratum(10**9, True, fakes=fakes, reals=reals)])
    # The variance of a share of 10 labels divides by 9.
    n = 10 if fakes in (0, 10) else 9
    exact = binomtest(fakes, 10).proportion_ci(0.95, method="exact")
    low, high = figure.interval
    assert low <= exact.low + 1e-6
    assert high >= exact.high - 1e-6
    assert effective_labels([LabelledStratum(10**9, True, fakes, reals)], fakes / 10) == (
        pytest.approx(n, rel=1e-6)
    )


def test_strata_without_a_labelled_fake_are_not_certain():
    strata = [
        LabelledStratum(1_000, True, fakes=60, reals=40),
        LabelledStratum(99_000, False, fakes=0, reals=100),
    ]
    figure = estimate_fraction(strata)
    assert figure.value == pytest.approx(0.006)
    # 100 labels of nearly all images bound their fakes at about 3 %.
    assert figure.interval[1] > 0.03


def test_interval_of_strata_that_are_labelled_whole_is_the_truth():
    strata = [
        LabelledStratum(10, True, fakes=8, reals=2),
        LabelledStratum(90, False, fakes=2, reals=88),
    ]
    assert math.isinf(effective_labels(strata, 0.1))
    figures = archive_figures(strata)
    assert figures["prevalence"].interval == pytest.approx((0.1, 0.1))
    assert figures["recall"].interval == pytest.approx((0.8, 0.8))
    assert figures["false_positive_rate"].interval == pytest.approx((2 / 90, 2 / 90))


def test_interval_holds_the_labels_themselves():
    figure = estimate_fraction([LabelledStratum(40, False, fakes=1, reals=38)])
    low, high = figure.interval
    assert low >= 1 / 40
    assert high <= 2 / 40


def test_interval_contains_its_estimate():
    strata = [
        LabelledStratum(1000, True, fakes=0, reals=30),
        LabelledStratum(9000, False, fakes=0, reals=50),
    ]
    figures = archive_figures(strata)
    assert figures["prevalence"].value == figures["prevalence"].interval[0] == 0
    assert figures["prevalence"].interval[1] < 0.12
    assert figures["recall"].why == "no labelled image is fake"
    low, high = figures["false_positive_rate"].interval
    assert low < 0.1 < high


def test_undefined_figure_has_its_reason():
    strata = [LabelledStratum(10, False, reals=2, name="1"), LabelledStratum(5, False, name="2")]
    figures = archive_figures(strata)
    assert figures["precision"].why == "no image is flagged as fake"
    assert figures["prevalence"].why == "no image of stratum 2 is labelled"
    flagged = [LabelledStratum(10, True, fakes=5, reals=1), LabelledStratum(90, False)]
    figures = archive_figures(flagged)
    assert figures["precision"].interval is not None
    assert figures["recall"].why == "only images flagged as fake are labelled"
