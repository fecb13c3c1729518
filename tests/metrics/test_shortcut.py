import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ray_app.metrics import shortcut
from ray_app.metrics.shortcut import CONFOUNDED, shortcut_auc

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
    scores = shortcut._out_of_fold(matrix, [False, False], fakes, None, 0)
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
