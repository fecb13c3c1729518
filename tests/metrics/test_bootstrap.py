import numpy as np
import pytest

from ray_app.metrics.bootstrap import bootstrap_intervals, rates_interval, replicates_for
from ray_app.metrics.histograms import ScoreHistogram

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
    for seed in range(120):
        fakes, reals = ScoreHistogram.of(scores(seed, 60, 1)), ScoreHistogram.of(scores(seed + 1_000, 60, 0))
        low, high, _ = bootstrap_interval(mean_gap, fakes, reals, replicates=150, seed=seed)
        covered += low <= 1 <= high
    assert 106 <= covered <= 119


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
