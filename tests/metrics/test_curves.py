import numpy as np
import pytest
from sklearn import metrics as sk

from ray_app.metrics.curves import precision_recall_points, roc_points
from tests.metrics.drawn import BOTH, images, joined


@pytest.mark.parametrize("case", BOTH)
def test_points_of_roc_curve_are_exact_and_keep_its_area(case):
    fakes, reals = BOTH[case]
    labels, scores = joined(fakes, reals)
    points = roc_points(images(fakes, reals))
    assert points[0][:2] == (0, 0)
    assert points[-1][:2] == (1, 1)
    assert 2 <= len(points) <= 256
    assert np.isfinite(points).all()
    for fpr, tpr, threshold in points:
        rates = (reals >= threshold).mean(), (fakes >= threshold).mean()
        assert (fpr, tpr) == pytest.approx(rates, abs=1e-12)
    assert len({(fpr, tpr) for fpr, tpr, _ in points}) == len(points)
    slack = 1e-9 if len(np.unique(scores)) < 256 else 2e-3
    x, y, _ = zip(*points, strict=True)
    assert sk.auc(x, y) == pytest.approx(sk.roc_auc_score(labels, scores), abs=slack)


@pytest.mark.parametrize("case", BOTH)
def test_points_of_precision_and_recall_are_exact(case):
    labels, scores = joined(*BOTH[case])
    points = precision_recall_points(images(*BOTH[case]))
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    every = np.column_stack([recall, precision])
    assert all(np.abs(every - point).max(1).min() < 1e-12 for point in points)
    assert points[-1] == (1, pytest.approx(labels.mean()))
    assert [recall for recall, _ in points] == sorted(recall for recall, _ in points)
    assert len(points) < 256


def test_one_class_has_no_curve():
    fakes, reals = images([1.0, 2.0], []), images([], [1.0, 2.0])
    assert roc_points(fakes) == roc_points(reals) == precision_recall_points(fakes) == []


def test_curves_reject_too_few_points_and_name_the_number():
    scores = images([1.0], [0.0])
    for points, minimum in ((roc_points, 17), (precision_recall_points, 16)):
        with pytest.raises(ValueError, match=f"at least {minimum}, got {minimum - 1}"):
            points(scores, max_points=minimum - 1)
