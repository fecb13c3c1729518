import numpy as np
import pytest
from sklearn import metrics as sk

from ray_app.metrics.arrays import ScoreHistogram
from ray_app.metrics.operating_points import averages, curve_points, precision_recall_points
from ray_app.metrics.uncertainty import proportion_interval
from tests.metrics.drawn import BOTH, EMPTY, histograms, joined


@pytest.mark.parametrize("case", BOTH)
def test_every_point_is_exact_the_ends_are_there_and_what_is_left_out_lies_near_the_line(case):
    fakes, reals = BOTH[case]
    labels, scores = joined(fakes, reals)
    points = curve_points(*histograms(fakes, reals))
    assert points[0][:2] == (0, 0)
    assert points[-1][:2] == (1, 1)
    assert 2 <= len(points) <= 256
    assert np.isfinite(points).all()
    for fpr, tpr, threshold in points:
        assert (fpr, tpr) == pytest.approx(
            ((reals >= threshold).mean(), (fakes >= threshold).mean()), abs=1e-12
        )
    assert len({(fpr, tpr) for fpr, tpr, _ in points}) == len(points)
    few = len(np.unique(scores)) < 256
    x, y, _ = zip(*points, strict=True)
    assert sk.auc(x, y) == pytest.approx(
        sk.roc_auc_score(labels, scores), abs=1e-9 if few else 2e-3
    )


@pytest.mark.parametrize("case", BOTH)
def test_precision_and_recall_are_exact(case):
    labels, scores = joined(*BOTH[case])
    points = precision_recall_points(*histograms(*BOTH[case]))
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    every = np.column_stack([recall, precision])
    assert all(np.abs(every - point).max(1).min() < 1e-12 for point in points)
    assert points[-1] == (1, pytest.approx(labels.mean()))
    assert [recall for recall, _ in points] == sorted(recall for recall, _ in points)
    assert len(points) < 256


def test_one_class_has_no_curve():
    one = ScoreHistogram.of([1.0, 2.0])
    assert (
        curve_points(one, EMPTY)
        == curve_points(EMPTY, one)
        == precision_recall_points(one, EMPTY)
        == []
    )


def test_the_two_averages_of_generators_have_two_names():
    found = averages({"sd15": (90, 100), "flux": (1, 2), "none left": (0, 0)})
    assert found["tpr_mean"].value == pytest.approx(0.7)
    assert found["tpr_weighted"].value == pytest.approx(91 / 102)
    assert found["tpr_weighted"].interval == proportion_interval(91, 102)
    assert (found["tpr_mean"].n, found["tpr_weighted"].n) == (102, 102)
    assert {
        figure.why for rates in ({}, {"sd15": (0, 0)}) for figure in averages(rates).values()
    } == {"there are no fakes"}
