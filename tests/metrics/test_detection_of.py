import json

import numpy as np
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn import metrics as sk

from ray_app.detectors.card import Platt
from ray_app.metrics.detection import detection_of
from ray_app.metrics.registry import DETECTION, Resampled
from tests.metrics.drawn import BOTH, images, joined

CALIBRATION = Platt(slope=0.7, intercept=-0.4)
CASES = pytest.mark.parametrize("case", BOTH)


def chances(scores, calibration=None):
    return 1 / (
        1
        + np.exp(
            -(scores if calibration is None else calibration.slope * scores + calibration.intercept)
        )
    )


def measured(fakes, reals, **cut):
    every = images(np.asarray(fakes), np.asarray(reals), **cut)
    return detection_of(every, Resampled.in_blocks(every))


def values(found):
    return {name: figure.value for name, figure in found.items()}


@CASES
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.25, 1e9])
def test_at_a_threshold_the_figures_are_scikit_learns(case, threshold, strict):
    labels, scores = joined(*BOTH[case])
    flagged = (scores > threshold if strict else scores >= threshold).astype(int)
    found = values(detection_of(images(*BOTH[case], threshold=threshold, strict=strict)))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, flagged, labels=[0, 1], zero_division=0
    )
    assert found["precision"] == (pytest.approx(precision[1], abs=1e-9) if flagged.any() else None)
    wanted = {
        "tpr": recall[1],
        "tnr": recall[0],
        "balanced_accuracy": recall.mean(),
        "f1": f1[1],
        "accuracy": (labels == flagged).mean(),
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)


@CASES
@pytest.mark.parametrize("calibration", [None, CALIBRATION])
def test_over_all_thresholds_and_as_chances_they_are_scikit_learns(case, calibration):
    labels, scores = joined(*BOTH[case])
    found = values(detection_of(images(*BOTH[case], calibration=calibration)))
    wanted = {
        "auc": sk.roc_auc_score(labels, scores),
        "average_precision": sk.average_precision_score(labels, scores),
        "brier": sk.brier_score_loss(labels, chances(scores, calibration)),
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    wrong = np.where(labels == 1, -1, 1) * (
        scores if calibration is None else calibration.slope * scores + calibration.intercept
    )
    assert found["log_loss"] == pytest.approx(np.logaddexp(0, wrong).mean(), abs=1e-9)
    # beyond, 1 − p, by which scikit-learn goes, has lost too many digits
    if np.abs(scores).max() < 15:
        assert found["log_loss"] == pytest.approx(
            sk.log_loss(labels, chances(scores, calibration)), abs=1e-9
        )


@CASES
def test_the_equal_error_rate_is_where_the_joined_roc_curve_crosses(case):
    labels, scores = joined(*BOTH[case])
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    way = np.arange(len(fpr))  # along the points, as FPR alone has vertical steps
    gap = interp1d(way, fpr - (1 - tpr))
    crossing = brentq(gap, 0, way[-1], xtol=1e-13)
    found = detection_of(images(*BOTH[case]))["eer"].value
    assert found == pytest.approx(float(interp1d(way, fpr)(crossing)), abs=1e-9)


@CASES
@pytest.mark.parametrize(
    ("name", "one_in"), [("tpr_at_fpr_5", 20), ("tpr_at_fpr_1", 100), ("tpr_at_fpr_01", 1000)]
)
def test_no_more_reals_are_flagged_than_the_rate_allows(case, name, one_in):
    fakes, reals = BOTH[case]
    found = detection_of(images(fakes, reals))[name]
    if len(reals) < one_in:
        assert found.value is None
        assert (
            found.why
            == f"a false alarm in {one_in:,} needs {one_in:,} reals or more; there are {len(reals):,}"
        )
        return
    thresholds = np.concatenate([[-np.inf], fakes, reals])
    allowed = [
        (fakes > threshold).mean()
        for threshold in thresholds
        if (reals > threshold).sum() * one_in <= len(reals)
    ]
    assert found.value == pytest.approx(max(allowed), abs=1e-12)


@CASES
@pytest.mark.parametrize(
    ("name", "prior"),
    [
        ("precision_at_prior_01", 0.001),
        ("precision_at_prior_1", 0.01),
        ("precision_at_prior_10", 0.1),
    ],
)
def test_precision_at_a_prior_is_that_of_images_weighted_to_it(case, name, prior):
    labels, scores = joined(*BOTH[case])
    found = measured(*BOTH[case])[name]
    if not (scores > 0).any():
        assert found.why == "no image is flagged as fake"
        return
    weights = np.where(labels == 1, prior / (labels == 1).sum(), (1 - prior) / (labels == 0).sum())
    assert found.value == pytest.approx(
        sk.precision_score(labels, scores > 0, sample_weight=weights), abs=1e-9
    )
    low, high = found.interval
    assert 0 <= low <= found.value <= high <= 1


def test_no_false_alarm_among_few_reals_does_not_pass_for_certainty():
    figure = measured(np.ones(50), -np.ones(50))["precision_at_prior_01"]
    assert figure.value == 1
    assert figure.interval[0] < 0.02
    assert figure.interval[1] == 1


DEGENERATE = [
    *BOTH.values(),
    ([], []),
    *(pair for one in ([1.0], [1e300, -1e300]) for pair in ((one, []), ([], one), (one, one))),
]


@pytest.mark.parametrize("scores", DEGENERATE)
@pytest.mark.parametrize("calibration", [None, Platt(slope=1e300, intercept=5)])
def test_whatever_the_scores_each_figure_has_a_value_or_a_reason(scores, calibration):
    with np.errstate(all="raise", under="ignore"):
        found = measured(*scores, calibration=calibration)
    assert list(found) == list(DETECTION)
    rows = json.loads(
        json.dumps({name: figure.to_dict() for name, figure in found.items()}, allow_nan=False)
    )
    assert all(row["value"] is not None or row["why"] for row in rows.values())


def test_one_class_has_only_its_own_rate_and_what_is_of_single_images():
    fakes = detection_of(images([2.0, -1.0], []))
    assert [name for name, figure in fakes.items() if figure.value is not None] == [
        "tpr",
        "accuracy",
        "log_loss",
        "brier",
    ]
    assert fakes["tnr"].why == "there are no reals"
    assert fakes["auc"].why == "it needs real and fake images"
    assert values(detection_of(images([], [2.0, -1.0])))["tnr"] == 0.5
    assert set(values(detection_of(images([], []))).values()) == {None}


RANKING = ("auc", "average_precision", "eer", "tpr_at_fpr_5", "tpr_at_fpr_1", "tpr_at_fpr_01")


def test_yes_and_no_rank_nothing_and_are_chances_only_where_calibrated():
    found = detection_of(images(*BOTH["few values"]), continuous=False)
    without = {name: figure.why for name, figure in found.items() if figure.value is None}
    no_ranking = "binary replies have no ranking; see balanced accuracy"
    no_chances = "binary replies give no chances: their scores are two agreed numbers"
    assert without == dict.fromkeys(RANKING, no_ranking) | dict.fromkeys(
        ("log_loss", "brier", "ece"), no_chances
    )
    assert list(found) == list(DETECTION)
    calibrated = detection_of(
        images(*BOTH["few values"], calibration=CALIBRATION), continuous=False
    )
    assert {name for name, figure in calibrated.items() if figure.value is None} == set(RANKING)
