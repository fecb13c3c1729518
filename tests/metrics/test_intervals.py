import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest

from ray_app.metrics import proportion_interval
from ray_app.metrics.arrays import MetricEstimate, ScoreHistogram, undefined
from ray_app.metrics.intervals import auc_of, bootstrap_intervals, mean_figure, rates_interval, ratio_figure, replicates_for, resampled
from tests.metrics.drawn import auc_interval

REPLICATES = 400


def bootstrap_interval(statistic, fakes, reals, **how):
    """The interval of one statistic."""
    return bootstrap_intervals(lambda *drawn: {"it": statistic(*drawn)}, fakes, reals, **how)["it"]


def mean_gap(fakes, reals):
    return float(fakes.counts @ fakes.values / fakes.n - reals.counts @ reals.values / reals.n)


def share_found(fakes, reals):
    return fakes.above(0) / fakes.n


def scores(seed, n, centre, decimals=9):
    return np.random.default_rng(seed).normal(centre, 1, n).round(decimals)


def test_the_interval_of_a_mean_is_the_normal_one():
    fakes, reals = scores(0, 900, 1), scores(1, 400, 0)
    low, high, method = bootstrap_interval(mean_gap, ScoreHistogram.of(fakes), ScoreHistogram.of(reals), replicates=2_000)
    error = np.sqrt(fakes.var() / len(fakes) + reals.var() / len(reals))
    middle = fakes.mean() - reals.mean()
    assert method == "bootstrap"
    assert [low, high] == pytest.approx([middle - 1.96 * error, middle + 1.96 * error], abs=0.15 * error)


def test_ties_are_drawn_as_the_images_that_they_are():
    fakes, reals = scores(0, 2_000, 0.5, decimals=0), scores(1, 50, 0)
    low, high, _ = bootstrap_interval(share_found, ScoreHistogram.of(fakes), ScoreHistogram.of(reals), replicates=2_000)
    share = (fakes > 0).mean()
    half = 1.96 * np.sqrt(share * (1 - share) / len(fakes))
    assert [low, high] == pytest.approx([share - half, share + half], abs=0.15 * half)


def test_the_intervals_cover_as_often_as_they_say():
    covered = 0
    for seed in range(60):
        fakes, reals = ScoreHistogram.of(scores(seed, 60, 1)), ScoreHistogram.of(scores(seed + 1_000, 60, 0))
        low, high, _ = bootstrap_interval(mean_gap, fakes, reals, replicates=100, seed=seed)
        covered += low <= 1 <= high
    assert 52 <= covered <= 59


def test_generators_are_drawn_whole_from_ten_on():
    centres = np.random.default_rng(3).normal(1, 2, 12)
    pieces = [ScoreHistogram.of(scores(seed, 300, centre)) for seed, centre in enumerate(centres)]
    reals = ScoreHistogram.of(scores(99, 300, 0))
    wide = bootstrap_interval(mean_gap, pieces, reals, replicates=REPLICATES)
    few = bootstrap_interval(mean_gap, pieces[:9], reals, replicates=REPLICATES)
    one = bootstrap_interval(mean_gap, ScoreHistogram.merged(pieces[:9]), reals, replicates=REPLICATES)
    assert wide.method == "cluster bootstrap"
    assert few == one
    assert few.method == "bootstrap"
    means = np.array([piece.counts @ piece.values / piece.n for piece in pieces])
    assert (wide.high - wide.low) / 2 == pytest.approx(1.96 * means.std() / np.sqrt(12), rel=0.2)
    assert wide.high - wide.low > 4 * (few.high - few.low)


def test_the_same_seed_gives_the_same_ends_and_another_others():
    fakes, reals = ScoreHistogram.of(scores(0, 50, 1)), ScoreHistogram.of(scores(1, 50, 0))
    ends = [bootstrap_interval(mean_gap, fakes, reals, seed=seed) for seed in (5, 5, 6)]
    assert ends[0] == ends[1] != ends[2]


def test_all_statistics_come_from_the_same_replicates():
    fakes, reals = ScoreHistogram.of(scores(0, 50, 1)), ScoreHistogram.of(scores(1, 50, 0))
    both = bootstrap_intervals(lambda a, b: {"gap": mean_gap(a, b), "half": mean_gap(a, b) / 2}, fakes, reals)
    assert both["gap"].low == pytest.approx(2 * both["half"].low)
    assert both["gap"] == bootstrap_interval(mean_gap, fakes, reals)


def test_a_class_never_vanishes_and_every_replicate_has_the_size_of_the_data():
    sizes = set()

    def seen(fakes, reals):
        sizes.add((fakes.n, reals.n))
        assert (fakes.counts > 0).all()
        assert (np.diff(fakes.values) > 0).all()
        return fakes.values[0]

    bootstrap_interval(seen, ScoreHistogram.of([1, 2, 2]), ScoreHistogram.of([0]))
    assert sizes == {(3, 1)}


def test_no_interval_where_resampling_can_say_nothing():
    fakes, reals = ScoreHistogram.of([3, 4, 5]), ScoreHistogram.of([0, 1])
    assert bootstrap_interval(share_found, fakes, reals) is None
    assert bootstrap_interval(lambda a, b: None, fakes, reals) is None
    rare = iter(range(10_000))
    assert bootstrap_interval(lambda a, b: None if next(rare) % 10 == 0 else mean_gap(a, b), fakes, reals) is None
    rare = iter(range(10_000))
    assert bootstrap_interval(lambda a, b: None if next(rare) % 100 == 0 else mean_gap(a, b), fakes, reals)
    assert rates_interval([]) is None
    assert rates_interval([(0, 0), (1, 2)]) is None
    assert rates_interval([(5, 5), (7, 7)]) is None


def test_an_average_of_few_rates_varies_by_its_images():
    rates = [(80, 100), (10, 40), (300, 900)]
    low, high, method = rates_interval(rates)
    middle = np.mean([hits / n for hits, n in rates])
    half = 1.96 * np.sqrt(sum(hits / n * (1 - hits / n) / n for hits, n in rates)) / 3
    assert method == "bootstrap"
    assert [low, high] == pytest.approx([middle - half, middle + half], abs=0.15 * half)
    weighted = rates_interval(rates, weighted=True)
    assert weighted.low < 390 / 1_040 < weighted.high < low


def test_an_average_of_many_rates_varies_by_its_generators():
    hits = np.random.default_rng(0).integers(0, 1_000, 20)
    low, high, method = rates_interval([(int(one), 1_000) for one in hits])
    half = 1.96 * (hits / 1_000).std() / np.sqrt(20)
    assert method == "cluster bootstrap"
    assert [low, high] == pytest.approx([hits.mean() / 1_000 - half, hits.mean() / 1_000 + half], abs=0.15 * half)


def test_replicates_become_fewer_as_images_become_many():
    assert [replicates_for(n) for n in (10, 2_001, 100_000)] == [1_000, 500, 200]


def delong_by_pairs(fakes, reals):
    """DeLong (1988) as it is written down: a matrix of all pairs, its row and column means, their variances."""
    pairs = (fakes[:, None] > reals) + 0.5 * (fakes[:, None] == reals)
    return pairs.mean(), pairs.mean(1).var(ddof=1) / len(fakes) + pairs.mean(0).var(ddof=1) / len(reals)


@pytest.mark.parametrize("digits", [8, 1, 0])
@pytest.mark.parametrize(("m", "n"), [(2, 3), (40, 7), (31, 200)])
def test_the_interval_is_delongs_over_all_pairs(m, n, digits):
    rng = np.random.default_rng([m, n])
    fakes, reals = rng.normal(1, 1, m).round(digits), rng.normal(0, 2, n).round(digits)
    auc, variance = delong_by_pairs(fakes, reals)
    assert 0 < auc < 1
    logit, half = np.log(auc / (1 - auc)), 1.959964 * np.sqrt(variance) / (auc * (1 - auc))
    found = auc_of(ScoreHistogram.of(fakes), ScoreHistogram.of(reals))
    assert found.value == pytest.approx(auc, abs=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(1 / (1 + np.exp(-np.array([logit - half, logit + half])))), abs=1e-6)


def test_the_interval_is_about_a_bootstraps():
    rng = np.random.default_rng(5)
    fakes, reals = rng.normal(1.2, 1, 300), rng.normal(0, 1, 400)
    labels = np.repeat([1, 0], [300, 400])
    ranked = [np.searchsorted(np.sort(rng.choice(reals, len(reals))), rng.choice(fakes, len(fakes))) for _ in range(600)]
    drawn = [one.mean() / len(reals) for one in ranked]
    assert auc_interval(np.concatenate([fakes, reals]), labels) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.006)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(6)
    truth = 0.921350  # Φ(2 / √2), for normals two apart
    found = [auc_of(ScoreHistogram.of(rng.normal(2, 1, 40)), ScoreHistogram.of(rng.normal(0, 1, 40))) for _ in range(500)]
    assert 0.935 <= np.mean([auc.low <= truth <= auc.high for auc in found]) <= 0.985


def test_a_perfect_auc_is_not_certain():
    low, high = auc_interval(np.arange(40), np.repeat([0, 1], [10, 30]))
    assert high == 1
    assert low == pytest.approx(0.025 ** (1 / 10))
    assert auc_interval(-np.arange(40), np.repeat([0, 1], [10, 30])) == pytest.approx((0, 1 - low))


@pytest.mark.parametrize(("fakes", "reals"), [([1.0], [0.0, 2.0, 3.0]), ([0.0, 5.0], [1.0]), ([2.0, 2.0, 2.0], [2.0, 2.0])])
def test_where_there_is_no_variance_the_interval_is_wide_and_holds_the_auc(fakes, reals):
    auc = auc_of(ScoreHistogram.of(fakes), ScoreHistogram.of(reals))
    assert auc.low < auc.value < auc.high
    assert auc.high - auc.low > 0.8


def test_an_auc_of_one_class_is_refused():
    with pytest.raises(ValueError, match="real and fake"):
        auc_interval([1.0, 2.0], [1, 1])


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 40), (40, 40), (3, 17), (999, 1000), (1, 10_000)])
def test_proportions_have_clopper_and_pearsons_interval(successes, n):
    exact = binomtest(successes, n).proportion_ci(0.95, method="exact")
    assert proportion_interval(successes, n) == pytest.approx((exact.low, exact.high), abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_what_is_no_proportion_is_refused(successes, n):
    with pytest.raises(ValueError, match="no proportion"):
        proportion_interval(successes, n)


def test_the_interval_is_student_s():
    values = np.random.default_rng(0).random(12) * 0.2 + 0.4
    found = mean_figure(values, "none")
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (found.value, *found.interval) == pytest.approx((values.mean(), low, high), abs=1e-12)
    assert (found.n, found.method) == (12, "student")


def test_the_interval_ends_where_values_do():
    assert mean_figure([0.0, 0.0, 1.0], "none").interval == (0.0, 1.0)
    assert mean_figure([-1.0, 1.0], "none", bounds=(-1, 1)).interval == (-1, 1)


def test_images_without_a_value_do_not_count():
    assert mean_figure([np.nan, 0.5, np.nan], "none") == MetricEstimate(0.5, n=1)
    assert mean_figure([np.nan], "no image has one") == undefined("no image has one")
    assert mean_figure([], "no image has one") == undefined("no image has one")


def test_values_all_alike_have_no_interval():
    assert mean_figure([0.7] * 3, "none").interval is None


def test_a_ratio_is_that_of_the_means():
    rng = np.random.default_rng(0)
    over, under = rng.random(50), rng.random(50) + 0.5
    found = ratio_figure(over, under, "none")
    assert found.value == pytest.approx(over.mean() / under.mean(), abs=1e-12)
    assert found.interval[0] < found.value < found.interval[1]
    assert ratio_figure([1.0], [2.0], "none") == MetricEstimate(0.5, n=1)
    assert ratio_figure([1.0], [0.0], "none") == undefined("what it is divided by is 0 on average", 1)
    assert ratio_figure([], [], "none") == undefined("none")


def test_replicates_that_agree_say_nothing_of_the_spread():
    assert resampled(0.5, [0.5, 0.5], 2) == MetricEstimate(0.5, n=2)
    assert resampled(0.5, np.linspace(0, 1, 1001), 9).interval == pytest.approx((0.025, 0.975))
