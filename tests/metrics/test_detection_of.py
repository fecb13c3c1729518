import json

import numpy as np
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from scipy.special import expit
from sklearn import metrics as sk

from ray_app.detectors.card import Platt
from ray_app.metrics.detection import measure_detection
from ray_app.metrics.registry import DETECTION, Resampled
from tests.metrics.drawn import BOTH, images, joined

CALIBRATION = Platt(slope=0.7, intercept=-0.4)
CASES = pytest.mark.parametrize("case", BOTH)


def measured(fakes, reals, **cut):
    every = images(np.asarray(fakes), np.asarray(reals), **cut)
    return measure_detection(every, Resampled.in_blocks(every))


def values(found):
    return {name: figure.value for name, figure in found.items()}


@CASES
def test_metrics_at_a_threshold_equal_scikit_learn(case):
    labels, scores = joined(*BOTH[case])
    for threshold, strict in ((0.0, True), (0.25, False), (1e9, True)):
        flagged = (scores > threshold if strict else scores >= threshold).astype(int)
        found = values(measure_detection(images(*BOTH[case], threshold=threshold, strict=strict)))
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            labels, flagged, labels=[0, 1], zero_division=0
        )
        wanted = {"tpr": recall[1], "tnr": recall[0], "f1": f1[1]}
        wanted |= {"balanced_accuracy": recall.mean(), "accuracy": (labels == flagged).mean()}
        wanted["precision"] = precision[1] if flagged.any() else None
        assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)


@CASES
@pytest.mark.parametrize("calibration", [None, CALIBRATION])
def test_metrics_of_ranks_and_chances_equal_scikit_learn(case, calibration):
    labels, scores = joined(*BOTH[case])
    found = values(measure_detection(images(*BOTH[case], calibration=calibration)))
    log_odds = scores if calibration is None else 0.7 * scores - 0.4
    wanted = {
        "auc": sk.roc_auc_score(labels, scores),
        "average_precision": sk.average_precision_score(labels, scores),
        "accuracy": ((scores > 0) == labels).mean(),
        "brier": sk.brier_score_loss(labels, expit(log_odds)),
        "log_loss": np.logaddexp(0, np.where(labels == 1, -1, 1) * log_odds).mean(),
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    if np.abs(scores).max() < 15:  # beyond, scikit-learn's 1 − p has lost too many digits
        loss = sk.log_loss(labels, expit(log_odds))
        assert found["log_loss"] == pytest.approx(loss, abs=1e-9)


@CASES
def test_equal_error_rate_is_where_the_roc_curve_crosses(case):
    labels, scores = joined(*BOTH[case])
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    way = np.arange(len(fpr))  # along the points, as FPR alone has vertical steps
    gap = interp1d(way, fpr - (1 - tpr))
    crossing = brentq(gap, 0, way[-1], xtol=1e-13)
    found = measure_detection(images(*BOTH[case]))["eer"].value
    assert found == pytest.approx(float(interp1d(way, fpr)(crossing)), abs=1e-9)


@CASES
def test_tpr_at_a_rate_flags_no_more_reals_than_allowed(case):
    fakes, reals = BOTH[case]
    figures = measure_detection(images(fakes, reals))
    for name, one_in in (("tpr_at_fpr_5", 20), ("tpr_at_fpr_1", 100), ("tpr_at_fpr_01", 1000)):
        found = figures[name]
        if len(reals) < one_in:
            assert found.value is None
            assert f"{one_in:,} reals or more; there are {len(reals):,}" in found.why
            continue
        thresholds = np.concatenate([[-np.inf], fakes, reals])
        allowed = [
            (fakes > threshold).mean()
            for threshold in thresholds
            if (reals > threshold).sum() * one_in <= len(reals)
        ]
        assert found.value == pytest.approx(max(allowed), abs=1e-12)


PRIORS = {
    "precision_at_prior_01": 0.001,
    "precision_at_prior_1": 0.01,
    "precision_at_prior_10": 0.1,
}


@CASES
def test_precision_at_a_prior_is_that_of_weighted_images(case):
    labels, scores = joined(*BOTH[case])
    figures = measured(*BOTH[case])
    for name, prior in PRIORS.items():
        found = figures[name]
        if not (scores > 0).any():
            assert found.why == "no image is flagged as fake"
            continue
        weights = np.where(labels, prior / (labels == 1).sum(), (1 - prior) / (labels == 0).sum())
        expected = sk.precision_score(labels, scores > 0, sample_weight=weights)
        assert found.value == pytest.approx(expected, abs=1e-9)
        low, high = found.interval
        assert 0 <= low <= found.value <= high <= 1


def test_few_reals_without_false_alarm_are_not_certain():
    figure = measured(np.ones(50), -np.ones(50))["precision_at_prior_01"]
    assert figure.value == 1
    assert figure.interval[0] < 0.02
    assert figure.interval[1] == 1


DEGENERATE = [
    *BOTH.values(),
    ([], []),
    *(pair for one in ([1.0], [1e300, -1e300]) for pair in ((one, []), ([], one), (one, one))),
]


@pytest.mark.parametrize("calibration", [None, Platt(slope=1e300, intercept=5)])
def test_each_metric_of_any_scores_has_a_value_or_a_reason(calibration):
    for scores in DEGENERATE:
        with np.errstate(all="raise", under="ignore"):
            found = measured(*scores, calibration=calibration)
        assert list(found) == list(DETECTION)
        for name, figure in found.items():
            row = json.loads(json.dumps(figure.to_dict(), allow_nan=False))
            assert row["value"] is not None or row["why"], (scores, name)


def test_one_class_has_no_metric_of_both():
    fakes = measure_detection(images([2.0, -1.0], []))
    defined = [name for name, figure in fakes.items() if figure.value is not None]
    assert defined == ["tpr", "accuracy", "log_loss", "brier"]
    assert values(measure_detection(images([], [2.0, -1.0])))["tnr"] == 0.5
    assert set(values(measure_detection(images([], []))).values()) == {None}


RANKING = ("auc", "average_precision", "eer", "tpr_at_fpr_5", "tpr_at_fpr_1", "tpr_at_fpr_01")


def test_binary_replies_have_no_ranking_and_no_chances():
    found = measure_detection(images(*BOTH["few values"]), continuous=False)
    without = {name: figure.why for name, figure in found.items() if figure.value is None}
    no_ranking = "binary replies have no ranking; see balanced accuracy"
    no_chances = "binary replies have no probabilities: their scores are two fixed values"
    assert without == dict.fromkeys(RANKING, no_ranking) | dict.fromkeys(
        ("log_loss", "brier", "ece"), no_chances
    )
    assert list(found) == list(DETECTION)
    given = images(*BOTH["few values"], calibration=CALIBRATION)
    calibrated = measure_detection(given, continuous=False)
    assert {name for name, figure in calibrated.items() if figure.value is None} == set(RANKING)
