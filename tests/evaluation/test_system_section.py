"""Intervals of a document's figures: of what they are, and that they are of the images that they
say.
"""

import math

import numpy as np
import pyarrow as pa
import pytest

from ray_app.evaluation import interval_sample
from ray_app.evaluation.interval_sample import Intervals
from ray_app.evaluation.systems import System
from ray_app.metrics.detection import detection_of
from tests.metrics.drawn import images as scored_images

SYSTEM = System("one", "detector", "One", 0.0, True)


def drawn(n, seed=0, makers=1, apart=0.0, sources=1):
    """By (kind, generator) the scores: n fakes of some makers, and n reals."""
    rng = np.random.default_rng(seed)
    fakes = {
        ("whole", f"maker-{one}"): rng.normal(1 + rng.normal(0, apart), 1.5, n // makers)
        for one in range(makers)
    }
    return fakes | {
        ("real", f"real:{one}" if sources > 1 else "real"): rng.normal(-1, 1.5, n // sources)
        for one in range(sources)
    }


def images_of(scores):
    classes = [
        np.concatenate([one for (kind, _), one in scores.items() if (kind != "real") is fake])
        for fake in (True, False)
    ]
    return scored_images(*classes)


def figures_of(scores):
    return detection_of(images_of(scores))


def sample_of(scores, count=None, **columns):
    rng = np.random.default_rng(1)
    rows = [(kind, maker, score) for (kind, maker), some in scores.items() for score in some]
    rows = [rows[place] for place in rng.permutation(len(rows))[:count]]
    kinds, makers, values = zip(*rows, strict=True)
    return pa.table(
        {"kind": list(kinds), "generator": list(makers), "score:one": list(values), **columns}
    )


def given(intervals, scores, kinds=("whole", "local")):
    images = images_of(scores)
    return detection_of(images, intervals.resample(images, SYSTEM, kinds))


def test_a_sample_tells_the_spread_of_all():
    scores = drawn(100_000)
    figures = figures_of(scores)
    found = given(Intervals("images", sample_of(scores, 8_000)), scores)
    assert found["tpr"] == figures["tpr"]
    for name in ("auc", "brier", "eer", "average_precision"):
        few = given(Intervals("images", sample_of(drawn(8_000))), drawn(8_000))[name].interval
        low, high = found[name].interval
        assert low < figures[name].value < high
        assert (high - low) / (few[1] - few[0]) == pytest.approx(math.sqrt(8 / 100), rel=0.5), name


def test_named_generators_are_what_is_drawn_anew():
    scores = drawn(600, makers=12, apart=1.0)
    intervals = Intervals("generators", sample_of(scores))
    found, images = given(intervals, scores), given(Intervals("images", sample_of(scores)), scores)
    assert (
        intervals.facts.words
        == "95 % intervals are for further generators like these 12 and further real images of the same source."
    )
    assert Intervals("images", sample_of(scores)).facts.of_images
    wider = {
        name: np.ptp(found[name].interval) / np.ptp(images[name].interval)
        for name in ("tpr", "auc", "balanced_accuracy", "log_loss")
    }
    assert min(wider.values()) > 1.5, wider
    assert {found[name].method for name in ("auc", "average_precision")} == {"jackknife"}
    assert found["tnr"] == figures_of(scores)["tnr"], (
        "real images of no named source are independent"
    )
    assert {name: one.value for name, one in found.items()} == {
        name: one.value for name, one in figures_of(scores).items()
    }


def test_seven_generators_say_nothing_of_further_ones():
    scores = drawn(600, makers=7, apart=1.0)
    intervals = Intervals("generators", sample_of(scores))
    assert given(intervals, scores) == given(Intervals("images", sample_of(scores)), scores)
    assert intervals.facts.words.endswith(
        "Fewer than eight generators say nothing of further ones."
    )


def test_sources_of_real_images_are_the_labels_own_where_they_have_any():
    scores = drawn(600)
    sample = sample_of(scores)
    bare = Intervals("generators", sample)
    named = Intervals(
        "generators",
        sample.append_column(
            "source", pa.array([f"camera-{one % 9}" for one in range(len(sample))])
        ),
    )
    assert (bare.facts.sources, bare.facts.reals) == (1, "images")
    assert (named.facts.sources, named.facts.reals, named.facts.fakes) == (9, "sources", "images")
    assert given(named, scores)["tnr"] != given(bare, scores)["tnr"]
    assert named.facts.words.startswith(
        "95 % intervals are for further fakes of the same generators and further sources of real images like these 9."
    )


def test_a_view_of_many_images_has_no_jackknife(monkeypatch):
    scores = drawn(300)
    images = images_of(scores)
    intervals = Intervals("images", sample_of(scores))
    assert intervals.resample_view(images) is not None
    monkeypatch.setattr(interval_sample, "MAX_IN_VIEW", 100)
    assert intervals.resample_view(images) is None
