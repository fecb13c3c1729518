import json

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    roc_auc_score,
    roc_curve,
)

from ray_app.metrics import FIGURES, detection_figures
from ray_app.metrics.detection import ranks_backwards
from ray_app.metrics.uncertainty import proportion_interval
from ray_app.metrics.values import MetricValue


def drawn(seed=0, n=900, digits=2):
    """Scores with ties, labels, and generators of which `hard` is hardly found."""
    rng = np.random.default_rng(seed)
    names = np.array(["real:camera", "real:scan", "easy", "hard"])[rng.integers(0, 4, n)]
    labels = np.isin(names, ["easy", "hard"]).astype(int)
    middle = np.select([names == "easy", names == "hard"], [3.0, 0.3], -1.0)
    return (middle + rng.normal(0, 1.5, n)).round(digits), labels, names.tolist()


def test_figures_equal_scikit_learn():
    scores, labels, generators = drawn()
    found = detection_figures(scores, labels, generators)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert {key: found[key] for key in FIGURES if key in found} == pytest.approx(
        {
            "auc": roc_auc_score(labels, scores),
            "average_precision": average_precision_score(labels, scores),
            "mean_generator_auc": (generator_auc("easy") + generator_auc("hard")) / 2,
            "worst_generator_auc": generator_auc("hard"),
            "tpr_at_fpr_1": true[false <= 0.01].max(),
            "balanced_accuracy": balanced_accuracy_score(labels, scores > 0),
            "f1": f1_score(labels, scores > 0),
            "loss": log_loss(labels, 1 / (1 + np.exp(-scores))),
        }
    )
    assert (found["n_real"], found["n_fake"]) == ((labels == 0).sum(), labels.sum())
    low, high = found["auc_interval"]
    assert low < found["auc"] < high < low + 0.1
    flagged = round(found["tpr_at_fpr_1"] * found["n_fake"])
    assert found["tpr_at_fpr_1_interval"] == [*proportion_interval(flagged, found["n_fake"])]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def generator_auc(name):
    scores, labels, generators = drawn()
    chosen = (labels == 0) | (np.array(generators) == name)
    return roc_auc_score(labels[chosen], scores[chosen])


def test_each_generator_stands_against_all_of_the_other_class():
    scores, labels, generators = drawn()
    found = detection_figures(scores, labels, generators)["generators"]
    assert list(found) == ["easy", "hard", "real:camera", "real:scan"]
    for name, figures in found.items():
        mine = np.array(generators) == name
        fake = figures["label"] == "fake"
        assert fake == (not name.startswith("real"))
        against = mine | (labels == (0 if fake else 1))
        assert figures["n"] == mine.sum()
        assert figures["auc"] == pytest.approx(roc_auc_score(labels[against], scores[against]))
        low, high = figures["auc_interval"]
        assert low < figures["auc"] < high
        right = int(((scores[mine] > 0) == fake).sum())
        assert figures["tpr" if fake else "tnr"] == pytest.approx(right / mine.sum())
        assert figures["interval"] == list(proportion_interval(right, int(mine.sum())))


def test_one_class_alone_has_no_auc_but_a_loss():
    found = detection_figures([-1.0, 2.0], [0, 0], ["real", "real"])
    assert found["auc"] is found["average_precision"] is found["balanced_accuracy"] is None
    assert found["loss"] == pytest.approx((np.log1p(np.exp(-1)) + np.log1p(np.exp(2))) / 2)
    assert found["generators"]["real"]["tnr"] == 0.5
    assert found["generators"]["real"]["auc"] is None
    both = detection_figures([-1.0, 2.0], [0, 1], ["real", "x"])
    assert set(found) == set(both)
    assert [key for key in both if both[key] is None] == ["auc_interval"]


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        ([1.0, float("nan")], [0, 1], "1 of 2 scores are not finite, the first at position 1"),
        ([1.0, 2.0], [0, 2], "labels must be 0"),
        ([], [], "no scores"),
    ],
)
def test_scores_without_metrics_are_refused(scores, labels, words):
    with pytest.raises(ValueError, match=words):
        detection_figures(scores, labels, ["x"] * len(scores))
    with pytest.raises(ValueError, match="2 scores but 1 generators"):
        detection_figures([1.0, 2.0], [0, 1], ["x"])


@pytest.mark.parametrize(
    ("value", "ends", "n", "expected"),
    [
        (0.02, (0.0, 0.1), 50, True),
        (0.0, (), 50, True),
        (0.3, (0.1, 0.55), 50, False),
        (0.4, (0.35, 0.45), 5000, False),
        (0.98, (0.97, 0.99), 50, False),
        (0.0, (0.0, 0.3), 3, False),
        (None, (), 50, False),
    ],
)
def test_roc_auc_far_below_half_is_told_from_a_weak_detector(value, ends, n, expected):
    assert ranks_backwards(MetricValue(value, *(ends or (None, None))), n, n) is expected
