"""Metrics against scikit-learn, their reasons, and intervals of grouped images."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk

from ray_app.metrics import uncertainty
from ray_app.metrics.registry import (
    DETECTION,
    METRICS,
    Resampled,
    ScoredImages,
    compute_replicates,
    descending_order,
    measure,
    measure_difference,
)
from tests.metrics import drawn
from tests.metrics.drawn import BOTH, joined


def test_curve_equals_scikit_learn():
    for case, (fakes, reals) in BOTH.items():
        truth, scores = joined(fakes, reals)
        _, alarms, _, found, thresholds = sk.confusion_matrix_at_thresholds(truth, scores)
        curve = ScoredImages.from_scores(scores, truth == 1).curve
        for mine, theirs in zip(curve, (found, alarms, thresholds), strict=True):
            assert np.array_equal(mine, theirs), case


def test_weighted_metrics_equal_scikit_learn():
    fakes, reals = BOTH["ties"]
    truth, scores = joined(fakes, reals)
    weights = np.where(truth == 1, 1.0, len(fakes) / len(reals))
    images = drawn.images(fakes, reals)
    assert METRICS["f1_even"].compute(images) == pytest.approx(
        sk.f1_score(truth, scores > 0, sample_weight=weights)
    )
    assert METRICS["average_precision_even"].compute(images) == pytest.approx(
        sk.average_precision_score(truth, scores, sample_weight=weights)
    )


@pytest.mark.parametrize(
    ("name", "fakes", "reals", "why"),
    [
        ("tpr", [], [1.0], "there are no fakes"),
        ("tnr", [1.0], [], "there are no reals"),
        ("auc", [1.0], [], "it needs real and fake images"),
        ("precision", [-1.0], [-1.0], "no image is flagged as fake"),
        ("tpr_at_fpr_1", [1.0], [0.0] * 99, "needs 100 reals or more; there are 99"),
        ("ece", [1.0], [0.0], "needs 100 images or more; there are 2"),
        ("accuracy", [], [], "there are no images"),
    ],
)
def test_metric_without_value_has_a_reason(name, fakes, reals, why):
    found = measure(METRICS[name], drawn.images(fakes, reals))
    assert found.value is None
    assert why in found.why


def grouped(k, n=800, apart=0.8, seed=0):
    """Scores (n,) of k generators and k sources with effects of their own."""
    rng = np.random.default_rng(seed)
    fake, group = np.arange(n) % 2 == 0, np.arange(n) // 2 % k
    effects = rng.normal(0, apart, (2, k))
    scores = np.where(fake, 1 + effects[0][group], -1 + effects[1][group]) + rng.normal(size=n)
    return scores, fake, group.astype(str).astype(object)


def width(name, scores, fake, names):
    sample = Resampled.in_groups(scores, fake, names)
    found = measure(METRICS[name], sample.images, sample)
    assert found.low <= found.value <= found.high
    return found.high - found.low


def test_interval_of_further_groups_is_wider():
    scores, fake, names = grouped(12, n=4_000)
    for name in DETECTION:
        further, same = (width(name, scores, fake, groups) for groups in (names, None))
        assert further > 1.2 * same, name


def test_fewer_than_eight_groups_are_taken_for_images():
    scores, fake, names = grouped(7)
    assert not Resampled.in_groups(scores, fake, names).is_grouped
    assert Resampled.in_groups(*grouped(8)).is_grouped


def test_interval_needs_eight_images_of_each_class():
    sample = Resampled.in_groups(np.arange(20.0), np.arange(20) >= 13, None)
    found = measure(METRICS["auc"], sample.images, sample)
    assert found.low is None
    assert found.why == "an interval needs 8 images of each class; there are 7"


def test_perfect_auc_has_the_exact_interval_of_the_smaller_class():
    sample = Resampled.in_blocks(drawn.images(*BOTH["apart"]))
    found = measure(METRICS["auc"], sample.images, sample)
    assert (found.low, found.high) == uncertainty.proportion_interval(300, 300)
    assert found.method == "clopper-pearson"


def test_difference_of_equal_systems_is_not_significant():
    scores, fake, names = grouped(12)
    first = Resampled.in_groups(scores, fake, names)
    same, p = measure_difference(METRICS["auc"], first, first)
    assert (same.value, p) == (0, 1)
    better = Resampled.in_groups(scores + fake, fake, names)
    found, p = measure_difference(METRICS["auc"], first, better)
    assert 0 < found.low < found.value < found.high
    assert p < 0.05


@pytest.mark.parametrize("names", [True, False])
def test_auc_without_groups_equals_the_auc_of_the_rest(names):
    scores, fake, owners = grouped(12)
    sample = Resampled.in_groups(np.round(scores, 1), fake, owners if names else None)
    fast = compute_replicates(METRICS["auc"], sample)
    slow = compute_replicates(replace(METRICS["auc"], leave_out=None), sample)
    for mine, theirs in zip(fast, slow, strict=True):
        assert mine.values == pytest.approx(theirs.values, abs=1e-12)
        assert np.array_equal(mine.fractions, theirs.fractions)


def test_interval_of_a_difference_ends_at_one():
    _, fake, names = grouped(12)
    right = np.where(fake, 9.0, -9.0)
    few_errors = np.where(np.arange(len(fake)) % 40 == 0, -right, right)
    worse, better = (Resampled.in_groups(scores, fake, names) for scores in (-right, few_errors))
    found, _ = measure_difference(METRICS["accuracy"], worse, better)
    assert found.low < found.value < found.high == 1.0
    found, _ = measure_difference(METRICS["accuracy"], better, worse)
    assert -1.0 == found.low < found.value < found.high


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_order_of_scores_is_stable_and_descends(kind):
    draw = np.random.default_rng(7)
    scores = np.round(draw.normal(0, 3, 5000), 1).astype(kind)
    scores[[3, 8, 21]] = -0.0, 0.0, -0.0
    scores[[40, 41, 42, 43]] = np.inf, -np.inf, np.finfo(kind).max, np.finfo(kind).tiny
    for given in (scores, scores[:1], scores[:0], np.append(scores, kind(np.nan))):
        order = descending_order(given)
        assert order.dtype == np.int64
        assert order.tolist() == np.argsort(-given, kind="stable").tolist()
