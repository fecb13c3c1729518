"""Intervals of a document's figures: of what they are, and that they are of the images that they
say.
"""

import math

import numpy as np
import pyarrow as pa
import pytest

from ray_app.evaluation.interval_sample import Intervals
from ray_app.evaluation.systems import System
from ray_app.metrics.detection import measure_detection
from tests.metrics.drawn import images as scored_images

SYSTEM = System("one", "detector", "One", 0.0, True)


def drawn(n, makers=1, apart=0.0):
    """Scores by (kind, generator): n fakes of some generators, and n reals."""
    rng = np.random.default_rng(0)
    fakes = {
        ("whole", f"maker-{one}"): rng.normal(1 + rng.normal(0, apart), 1.5, n // makers)
        for one in range(makers)
    }
    return fakes | {("real", "real"): rng.normal(-1, 1.5, n)}


def images_of(scores):
    *fakes, reals = scores.values()
    return scored_images(np.concatenate(fakes), reals)


def sample_of(scores, count=None):
    rows = [(kind, maker, score) for (kind, maker), some in scores.items() for score in some]
    order = np.random.default_rng(1).permutation(len(rows))[:count]
    columns = zip(*(rows[place] for place in order), strict=True)
    return pa.table(list(map(list, columns)), ["kind", "generator", "score:one"])


def given(intervals, scores):
    images = images_of(scores)
    return measure_detection(images, intervals.resample(images, SYSTEM, ("whole", "local")))


def test_a_sample_tells_the_spread_of_all():
    scores, few = drawn(100_000), drawn(8_000)
    figures = measure_detection(images_of(scores))
    found = given(Intervals("images", sample_of(scores, 8_000)), scores)
    of_few = given(Intervals("images", sample_of(few)), few)
    assert found["tpr"] == figures["tpr"]
    for name in ("auc", "brier", "eer", "average_precision"):
        low, high = found[name].interval
        assert low < figures[name].value < high
        narrower = (high - low) / np.ptp(of_few[name].interval)
        assert narrower == pytest.approx(math.sqrt(8 / 100), rel=0.5), name


def test_intervals_of_named_generators_are_wider():
    scores = drawn(600, makers=12, apart=1.0)
    intervals = Intervals("generators", sample_of(scores))
    found, images = given(intervals, scores), given(Intervals("images", sample_of(scores)), scores)
    words = "further generators like these 12 and further real images of the same source."
    assert intervals.facts.words.endswith(words)
    assert Intervals("images", sample_of(scores)).facts.is_for_images
    wider = {
        name: np.ptp(found[name].interval) / np.ptp(images[name].interval)
        for name in ("tpr", "auc", "balanced_accuracy", "log_loss")
    }
    assert min(wider.values()) > 1.5, wider
    assert {found[name].method for name in ("auc", "average_precision")} == {"jackknife"}
    figures = measure_detection(images_of(scores))
    assert found["tnr"] == figures["tnr"]  # Real images without source are independent.
    assert [one.value for one in found.values()] == [one.value for one in figures.values()]


def test_seven_generators_are_treated_as_images():
    scores = drawn(600, makers=7, apart=1.0)
    intervals = Intervals("generators", sample_of(scores))
    assert given(intervals, scores) == given(Intervals("images", sample_of(scores)), scores)
    assert "Fewer than eight generators" in intervals.facts.words
