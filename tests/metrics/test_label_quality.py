import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from ray_app.metrics import label_quality
from ray_app.metrics.label_quality import CONFOUNDED, class_differences, confident_learning, crossed_probabilities, shortcut_auc

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


N = 600


@pytest.fixture
def draw():
    return np.random.default_rng(0)


@pytest.fixture
def fakes(draw):
    return draw.random(N) < 0.4


def test_metadata_that_say_nothing_are_no_shortcut(draw, fakes):
    features = {"width": draw.integers(200, 4_000, N), "format": draw.choice(["JPEG", "PNG", "WEBP"], N), "icc": draw.random(N) < 0.5}
    found = shortcut_auc(features, fakes)
    assert found.value < CONFOUNDED
    assert found.interval[0] < 0.5 < found.interval[1] + 0.02
    assert (found.method, found.n) == ("delong", N)


def test_a_format_of_its_own_is_found(draw, fakes):
    formats = np.where(fakes & (draw.random(N) < 0.8), "PNG", "JPEG").astype(object)
    formats[draw.random(N) < 0.05] = None
    found = shortcut_auc({"format": formats, "width": draw.integers(200, 4_000, N)}, fakes)
    assert found.value > 0.8
    assert found.interval[0] > CONFOUNDED


def test_a_size_in_between_is_found_too(draw, fakes):
    width = np.where(fakes, 1_024.0, draw.choice([900.0, 1_150.0], N))
    assert shortcut_auc({"width": width}, fakes).value > 0.99
    width[::7] = np.nan
    assert shortcut_auc({"width": width}, fakes).value > 0.9


def test_the_auc_is_of_scores_out_of_fold(draw, fakes):
    """Numbers of their own for each image are learned by heart in fold, and worth nothing out of it."""
    found = shortcut_auc({"serial": draw.permutation(N), "other": draw.permutation(N)}, fakes)
    assert 0.4 < found.value < 0.6
    matrix = draw.random((N, 2))
    scores = label_quality._out_of_fold(matrix, [False, False], fakes, None, 0)
    assert shortcut_auc({"a": matrix[:, 0], "b": matrix[:, 1]}, fakes).value == pytest.approx(roc_auc_score(fakes, scores), abs=1e-12)


def test_groups_stay_together(draw, fakes):
    """A number of its own for each group tells the class only where a group is in several folds."""
    groups = np.where(fakes, draw.integers(0, 20, N), draw.integers(20, 40, N))
    numbers = draw.permutation(40)[groups]
    assert shortcut_auc({"number": numbers}, fakes).value > 0.95
    assert shortcut_auc({"number": numbers}, fakes, groups).value < 0.75
    few = np.where(fakes, groups, 0)
    assert shortcut_auc({"number": numbers}, fakes, few).value > 0.95


def test_the_same_seed_gives_the_same_figure(draw, fakes):
    features = {"width": draw.integers(0, 9, N), "height": draw.integers(0, 9, N)}
    turned = dict(reversed(features.items()))
    assert shortcut_auc(features, fakes) == shortcut_auc(turned, fakes)


def test_why_there_is_no_figure(fakes):
    few = np.arange(N) < 9
    assert shortcut_auc({"width": np.arange(N)}, few).why == "a classifier on metadata takes 10 images of each class; one has 9"
    assert shortcut_auc({"width": np.full(N, 5), "format": np.full(N, "PNG")}, fakes).why == "all files are alike in their metadata"
    assert shortcut_auc({}, fakes).value is None
    with pytest.raises(ValueError, match="one value for each"):
        shortcut_auc({"width": np.arange(3)}, fakes)
    with pytest.raises(ValueError, match="groups"):
        shortcut_auc({"width": np.arange(N)}, fakes, np.arange(3))


def test_many_words_are_no_error(fakes):
    words = np.array([f"mode {number}" for number in range(N)], dtype=object)
    assert 0.35 < shortcut_auc({"mode": words}, fakes).value < 0.65
