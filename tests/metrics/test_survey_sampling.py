import numpy as np
import pytest
from scipy.stats import false_discovery_control, hypergeom

from ray_app.metrics.survey_sampling import (
    LabelledStratum,
    References,
    archive_figures,
    discoveries,
    fewest_listed,
    shares,
    unsure_bounds,
)


def test_points_weigh_strata_by_their_size_and_are_unbiased():
    sizes, there, labels = np.array([500, 500, 400, 3000, 1500, 500]), np.array([490, 350, 160, 30, 75, 100]), np.full(6, 60)
    found = np.random.default_rng(0).hypergeometric(there, sizes - there, labels, size=(2000, len(sizes)))
    points = shares(sizes * found / labels, sizes, np.arange(len(sizes)) < 2)
    assert points["prevalence"].mean() == pytest.approx(there.sum() / sizes.sum(), rel=0.005)
    assert points["precision"].mean() == pytest.approx(there[:2].sum() / sizes[:2].sum(), rel=0.005)
    assert points["false_positive_rate"].mean() == pytest.approx((1000 - 840) / (sizes.sum() - there.sum()), rel=0.02)
    figures = archive_figures([LabelledStratum(100, True, fakes=9, reals=1), LabelledStratum(900, False, fakes=1, reals=29)])
    assert figures["prevalence"].value == pytest.approx((90 + 30) / 1000)
    assert figures["precision"].value == pytest.approx(0.9)
    assert figures["false_positive_rate"].value == pytest.approx(10 / 880)
    assert "%" in figures["recall"].why
    assert figures["recall"].n == 40


@pytest.mark.parametrize(("fakes", "reals"), [(0, 10), (1, 9), (6, 4), (10, 0)])
def test_one_stratum_has_the_mid_p_interval_of_a_finite_population(fakes, reals):
    """The numbers of fakes in 40 images at which labels like these, and half of the chance of these, are not rarer than 2.5 %."""
    figure = archive_figures([LabelledStratum(40, True, fakes=fakes, reals=reals)], draws=400_000)["precision"]
    there = np.arange(fakes, 41 - reals)
    seen = hypergeom(40, there, 10)
    below, above = seen.cdf(fakes) - seen.pmf(fakes) / 2, seen.sf(fakes) + seen.pmf(fakes) / 2
    kept = there[(below >= 0.025) & (above >= 0.025)]
    assert figure.interval == pytest.approx((kept.min() / 40, kept.max() / 40), abs=0.026)  # one image to either side
    if not fakes or not reals:
        assert figure.interval == pytest.approx((kept.min() / 40, kept.max() / 40), abs=1e-12)


def test_strata_without_a_fake_are_no_less_sure_together_than_the_largest_alone():
    """A bound on fakes where none was found: that of the stratum in which most could hide, not one for each added up."""
    reals = [LabelledStratum(size, False, reals=90) for size in (100_000, 90_000, 80_000, 70_000)]
    alone = archive_figures(reals[:1])["prevalence"].interval[1] * 100_000
    together = archive_figures(reals)["prevalence"].interval[1] * 340_000
    assert together == pytest.approx(alone, rel=0.05)
    assert alone == pytest.approx(3.0 / 90 * 100_000, rel=0.05)  # half the chance of no fake is 2.5 %: e⁻³


def test_an_interval_has_its_point_within_and_is_the_same_every_time():
    strata = [LabelledStratum(1000, True, fakes=0, reals=30), LabelledStratum(9000, False, fakes=0, reals=50)]
    figures = archive_figures(strata, seed=3)
    assert figures["prevalence"].value == figures["prevalence"].interval[0] == 0
    assert figures["prevalence"].interval[1] < 0.12
    assert figures["recall"].why == "no labelled image is fake"
    assert figures["false_positive_rate"].interval[0] < 0.1 < figures["false_positive_rate"].interval[1]
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


def test_a_recall_that_may_be_nearly_anything_is_not_stated():
    strata = [LabelledStratum(500, True, fakes=30, reals=2), LabelledStratum(100_000, False, fakes=0, reals=100)]
    recall = archive_figures(strata)["recall"]
    assert (recall.value, recall.ends) == (None, None)
    assert recall.why.startswith("the labels allow anything from ")
    assert recall.why.endswith(" to 100 %")
    assert archive_figures([*strata[:1], LabelledStratum(10_000, False, fakes=0, reals=3000)])["recall"].value == 1


def test_the_list_is_scipys():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        reals, scores = np.round(rng.normal(0, 1, 120), 1), np.round(rng.normal(rng.choice([0, 3.5], 80), 1), 1)
        references = References.of(reals)
        found = discoveries(references, references.counted(scores), rate=0.2)
        p = np.array([(1 + sum(real >= score for real in reals)) / 121 for score in scores])
        listed = scores > found.above
        assert listed.tolist() == (false_discovery_control(p) <= 0.2 + 1e-12).tolist()
        assert (found.count, found.tested) == (listed.sum(), 80)
        assert found.p_value is None if not found.count else found.p_value == pytest.approx(p[listed].max())


def test_pieces_add_up_and_the_rate_is_exact():
    references = References.of(np.arange(19.0))
    counts = references.counted(np.array([20.0])) + references.counted(np.array([-1.0, 30.0]))
    assert counts.tolist() == [2, *[0] * 18, 1]
    assert discoveries(references, counts, 0.075).count == 2  # 1/20 = .075 × 2/3, no more
    assert discoveries(references, counts, 0.0749).count == 0
    everything = discoveries(references, references.counted(np.full(7, 20.0)), 0.05)
    assert (everything.count, everything.above, everything.p_value) == (7, 18.0, 0.05)


def test_too_few_references_list_nothing_however_high_the_scores():
    references = References.of(np.zeros(100))
    assert fewest_listed(references, 1000, 0.05) == 199
    few = references.counted(np.concatenate([np.full(198, 9.0), np.full(802, -1.0)]))
    enough = references.counted(np.concatenate([np.full(199, 9.0), np.full(801, -1.0)]))
    assert discoveries(references, few, 0.05).count == 0
    assert discoveries(references, enough, 0.05).count == 199


def test_no_scores_and_no_references():
    references = References.of([1.0])
    assert discoveries(references, references.counted(np.empty(0)), 0.05).count == 0
    for bad in ([], [np.nan], [np.inf]):
        with pytest.raises(ValueError, match="finite"):
            References.of(bad)
