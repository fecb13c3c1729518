import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ray_app.metrics.label_quality import class_differences, confident_learning, crossed_probabilities

RNG = np.random.default_rng(0)
FAKES = np.arange(600) % 3 == 0


def only(name, column):
    [found] = class_differences({name: column}, FAKES)
    return found


def test_numbers_are_compared_as_scipy_does():
    column = np.where(FAKES, RNG.normal(0.5, 1, 600), RNG.normal(0, 1, 600))
    found, expected = only("x", column), stats.ks_2samp(column[~FAKES], column[FAKES])
    assert found.effect == pytest.approx(expected.statistic)
    assert (found.n_real, found.n_fake) == (400, 200)
    assert abs(found.fake - found.real) == pytest.approx(expected.statistic)
    assert found.medians == pytest.approx((np.median(column[~FAKES]), np.median(column[FAKES])), abs=0.05)


def test_words_are_compared_by_their_shares():
    column = np.where(FAKES, "PNG", "JPEG").astype(object)
    column[~FAKES] = np.where(np.arange(400) < 100, "PNG", "JPEG")
    found = only("format", column)
    assert (found.value, found.fake, found.real, found.effect) == ("PNG", 1.0, 0.25, 0.75)
    table = [[100, 300], [200, 0]]
    assert found.p == pytest.approx(stats.chi2_contingency(table).pvalue)
    assert found.strength == "strong"


def test_the_strongest_comes_first_and_of_equals_the_first_given():
    exact = np.where(FAKES, "PNG", "JPEG").astype(object)
    columns = {"weak": RNG.normal(0, 1, 600), "first": exact, "second": np.where(FAKES, 1.0, 0.0), "none": np.full(600, 3.0)}
    found = class_differences(columns, FAKES)
    assert [one.name for one in found] == ["first", "second", "weak", "none"]
    assert [one.strength for one in found] == ["strong", "strong", "none", "none"]
    assert found[-1].effect == 0
    assert all(one.p_holm >= one.p for one in found)


def test_what_is_not_known_is_left_out():
    few = np.full(600, np.nan)
    few[:30] = 1.0  # ten fakes
    assert class_differences({"few": few, "none": np.full(600, None, object)}, FAKES) == []
    some = np.where(np.arange(600) < 300, np.where(FAKES, 1.0, 2.0), np.nan)
    assert (only("some", some).n_real, only("some", some).n_fake) == (200, 100)


def test_noise_is_rarely_called_a_difference():
    columns = {f"{number}": RNG.normal(0, 1, 600) for number in range(100)}
    assert sum(one.strength != "none" for one in class_differences(columns, FAKES)) <= 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=40).filter(lambda rows: len({one for _, one in rows}) == 2))
def test_labels_are_doubted_as_the_paper_counts(rows):
    """Equations 1 and 2 of arXiv 1911.00068, image by image; of two classes reached the more probable one counts."""
    chances = [(1 - chance, chance) for chance, _ in rows]
    given_labels = [int(fake) for _, fake in rows]
    thresholds = [np.mean([one[label] for one, mine in zip(chances, given_labels, strict=True) if mine == label]) for label in (0, 1)]
    counts, suspicious = np.zeros((2, 2)), []
    for place, (one, mine) in enumerate(zip(chances, given_labels, strict=True)):
        reached = [label for label in (0, 1) if one[label] >= thresholds[label]]
        if reached:
            likely = max(reached, key=lambda label, one=one: one[label])
            counts[mine, likely] += 1
            suspicious += [place] if likely != mine else []
    found = confident_learning([chance for chance, _ in rows], given_labels)
    assert found.thresholds == pytest.approx(thresholds)
    assert found.suspicious(np.array(given_labels, bool)).tolist() == suspicious
    totals = np.array([given_labels.count(0), given_labels.count(1)])
    for label in (0, 1):
        expected = counts[label] / counts[label].sum() * totals[label] if counts[label].sum() else np.eye(2)[label] * totals[label]
        assert found.expected[label] == pytest.approx(expected)


def test_both_classes_are_needed():
    with pytest.raises(ValueError, match="both classes"):
        confident_learning([0.2, 0.4], [True, True])


def test_no_image_is_judged_by_its_own_group():
    """Each group has a direction of its own that tells its label; whoever saw the group would be right, whoever did not cannot be."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 6)
    fakes = rng.random(100)[groups] < 0.5
    features = rng.normal(0, 1, (100, 200))[groups] * 3 + rng.normal(0, 0.1, (600, 200))
    chances = crossed_probabilities(features, fakes, groups)
    alone = crossed_probabilities(features, fakes, np.arange(600))
    assert np.mean((chances > 0.5) == fakes) < 0.65
    assert np.mean((alone > 0.5) == fakes) > 0.95


def test_separable_classes_are_told_and_the_seed_decides():
    rng = np.random.default_rng(0)
    fakes = rng.random(400) < 0.3
    features = np.where(fakes, 2.0, -2.0)[:, None] + rng.normal(0, 1, (400, 3))
    one, again = (crossed_probabilities(features, fakes, np.arange(400), seed=4) for _ in range(2))
    assert np.array_equal(one, again)
    assert np.mean((one > 0.5) == fakes) > 0.97


def test_a_fold_that_cannot_be_learnt_has_no_probability():
    chances = crossed_probabilities(np.zeros((4, 1)), np.array([True, True, False, False]), np.array([0, 0, 1, 1]))
    assert np.isnan(chances).all()
