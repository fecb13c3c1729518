import numpy as np
import pytest

from ray_app.metrics import shortcut
from ray_app.metrics.shortcut import confounded, finding, harmless, shortcut_auc
from ray_app.metrics.values import MetricValue

N = 600


@pytest.fixture
def draw():
    return np.random.default_rng(0)


@pytest.fixture
def fakes(draw):
    return draw.random(N) < 0.4


def test_metadata_that_say_nothing_are_no_shortcut(draw, fakes):
    features = {
        "width": draw.integers(200, 4_000, N),
        "format": draw.choice(["JPEG", "PNG", "WEBP"], N),
        "icc": draw.random(N) < 0.5,
    }
    found = shortcut_auc(features, fakes)
    assert found.value < shortcut.MAX_HARMLESS_AUC
    assert found.interval[0] < 0.5 < found.interval[1] + 0.02
    assert (found.method, found.n) == ("delong, cross-validated", N)
    assert harmless(found)
    assert not confounded(found)


def test_a_format_of_its_own_is_found(draw, fakes):
    formats = np.where(fakes & (draw.random(N) < 0.8), "PNG", "JPEG").astype(object)
    formats[draw.random(N) < 0.05] = None
    found = shortcut_auc({"format": formats, "width": draw.integers(200, 4_000, N)}, fakes)
    assert found.value > 0.8
    assert found.interval[0] > shortcut.MAX_HARMLESS_AUC


def test_the_auc_is_of_scores_out_of_fold(draw, fakes):
    """Numbers of their own for each image are learned by heart in fold, and worth nothing out of
    it.
    """
    features = {"serial": draw.permutation(N), "other": draw.permutation(N)}
    found = shortcut_auc(features, fakes)
    assert 0.4 < found.value < 0.6
    assert shortcut_auc(dict(reversed(features.items())), fakes) == found, "the same in any order"


def test_why_there_is_no_figure(fakes):
    few = np.arange(N) < 9
    of_few = shortcut_auc({"width": np.arange(N)}, few)
    assert of_few.why == "a classifier on metadata needs 10 images of each class; one class has 9"
    alike = shortcut_auc({"width": np.full(N, 5), "format": np.full(N, "PNG")}, fakes)
    assert alike.why == "all files have equal metadata"
    assert shortcut_auc({}, fakes).value is None
    with pytest.raises(ValueError, match="one value for each"):
        shortcut_auc({"width": np.arange(3)}, fakes)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.499, 0.743, "too few images to say whether there is a shortcut"),
        (0.501, 0.743, "a shortcut, since the interval lies above 0.5"),
        (0.45, 0.6, "no shortcut was found"),
    ],
)
def test_words_say_what_the_interval_supports_and_no_more(low, high, words):
    auc = MetricValue((low + high) / 2, low, high, 100, "x")
    assert finding(auc) == words
    assert confounded(auc) == ("a shortcut" in words and "whether" not in words)
    assert harmless(auc) == words.startswith("no shortcut")


def test_a_perfect_shortcut_of_few_images_is_one():
    fake = np.arange(40) < 20
    found = shortcut_auc({"format": np.where(fake, "PNG", "JPEG")}, fake)
    assert (found.value, found.interval[1]) == (1, 1)
    assert confounded(found)
