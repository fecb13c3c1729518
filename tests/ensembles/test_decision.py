import numpy as np
import pytest

from ray_app.detectors.card import Platt
from ray_app.ensembles import EnsembleCard, EnsembleMember, Thresholds, combine, decide, sigmoid
from ray_app.ensembles.card import Stacking
from ray_app.ensembles.decision import IMAGE, SYMMETRIC
from ray_app.errors import Reason

NAN = float("nan")
PLATT = Platt(slope=2.0, intercept=-1.0)


def card(
    *names, rule="mean-logit", weights=None, bias=0.0, stacking=None, calibration=None, **thresholds
):
    members = tuple(
        EnsembleMember(detector=name, weight=weight)
        for name, weight in zip(names, weights or [1.0] * len(names), strict=True)
    )
    return EnsembleCard(
        name="e", title="e", members=members, rule=rule, bias=bias, stacking=stacking, calibration=calibration,
        thresholds=Thresholds(**thresholds),
    )  # fmt: skip


def columns(**values):
    return {name: np.array(column, np.float32) for name, column in values.items()}


def uncalibrated(scores):
    return dict.fromkeys(scores)


def test_weighted_is_a_weighted_sum_with_bias():
    scores = columns(a=[1.0], b=[3.0])
    weighted = card("a", "b", rule="weighted", weights=[2.0, -0.5], bias=0.25)
    assert combine(weighted, scores, uncalibrated(scores)).tolist() == [0.75]


@pytest.mark.parametrize("rule", SYMMETRIC)
def test_the_card_s_rule_is_the_one_applied(rule):
    scores = columns(a=[1.0, -3.0], b=[-2.0, 4.0], c=[0.5, 0.25])
    expected = SYMMETRIC[rule](np.array([[1.0, -2.0, 0.5], [-3.0, 4.0, 0.25]])) + 0.5
    found = combine(card("a", "b", "c", rule=rule, bias=0.5), scores, uncalibrated(scores))
    assert found.tolist() == expected.tolist()


def test_stacked_is_a_logistic_regression_on_standardised_scores():
    scores = columns(a=[1.0], b=[3.0])
    stacking = Stacking(mean=(0.5, 1.0), scale=(0.25, 2.0), coefficients=(3.0, -1.0), intercept=0.5)
    stacked = card("a", "b", rule="stacked", stacking=stacking)
    assert combine(stacked, scores, uncalibrated(scores)).tolist() == [3 * 2.0 - 1 * 1.0 + 0.5]


def test_calibrations_come_before_rule_and_thresholds():
    own = {"a": Platt(slope=2.0, intercept=1.0), "b": None}
    assert combine(card("a", "b"), columns(a=[1.0], b=[3.0]), own).tolist() == [3.0]
    scores = columns(a=[0.0, 1.0], b=[1.0, 2.0])
    whole = card("a", "b", bias=0.25, calibration=PLATT, real_below=1, fake_above=2)
    decided = decide(whole, scores, calibrations=uncalibrated(scores))
    assert decided.score.tolist() == [2 * 0.75 - 1, 2 * 1.75 - 1]
    assert decided.probability == pytest.approx(sigmoid(np.array([0.5, 2.5])))
    assert decided.verdict == ["real", "fake"]


def test_verdicts_and_the_abstain_band():
    scores = columns(a=[-1.0, -0.5, 0.0, 1.9, 2.0])
    banded = card("a", real_below=-0.5, fake_above=2.0)
    decided = decide(banded, scores, calibrations=uncalibrated(scores))
    assert decided.verdict == ["real", "real", "abstain", "abstain", "fake"]
    assert decided.reason == [None, None, Reason.INSIDE_BAND, Reason.INSIDE_BAND, None]
    assert decided.detail == [None] * 5
    assert not decided.calibrated


def test_calibrated_is_said_of_the_ensemble_s_own_score_only():
    one, two = columns(a=[1.0]), columns(a=[1.0], b=[1.0])
    stacking = Stacking(mean=(0.0,), scale=(1.0,), coefficients=(1.0,), intercept=0.0)

    def calibrated(described, scores, **given):
        return decide(described, scores, calibrations=uncalibrated(scores) | given).calibrated

    assert calibrated(card("a", "b", calibration=PLATT), two)
    assert not calibrated(card("a", "b"), two, a=PLATT, b=PLATT)
    assert not calibrated(card("a"), one)
    assert not calibrated(card("a", rule="weighted", weights=[2.0]), one, a=PLATT)
    assert not calibrated(card("a", bias=0.5), one, a=PLATT)
    assert not calibrated(card("a", rule="stacked", stacking=stacking), one, a=PLATT)
    for rule in (*SYMMETRIC, "weighted"):
        assert calibrated(card("a", rule=rule), one, a=PLATT)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rule", [*SYMMETRIC, "weighted", "stacked", "gated-mean"])
def test_missing_score_abstains_and_nothing_is_renormalised(rule):
    infinity = float("inf")
    scores = columns(a=[5.0] * 4, b=[NAN, 5.0, infinity, -infinity], c=[4.0, 5.0, 4.0, 4.0])
    stacking = Stacking(mean=(0, 0, 0), scale=(1, 1, 1), coefficients=(1, 0, 1), intercept=0)
    keys = {"stacking": stacking} if rule == "stacked" else {}
    decided = decide(card(*"abc", rule=rule, **keys), scores, calibrations=uncalibrated(scores))
    assert decided.verdict == ["abstain", "fake", "abstain", "abstain"]
    assert decided.reason == [Reason.NO_SCORE, None, Reason.NO_SCORE, Reason.NO_SCORE]
    assert decided.detail == ["b: no score", None, "b: no score", "b: no score"]
    assert np.isnan(decided.score).tolist() == [True, False, True, True]
    assert np.isnan(decided.probability).tolist() == [True, False, True, True]


def test_each_detector_in_doubt_is_named_with_its_reason():
    """The rows: all in doubt, none, out of range, without a score, and out of range once more."""
    scores = columns(
        a=[NAN, 1.0, 1.0, NAN, 1.0], b=[NAN, 2.0, NAN, 2.0, 2.0], c=[3.0, 3.0, 3.0, 3.0, 3.0]
    )
    small = ["too small", None, "too small", None, "too small"]
    doubts = {"b": [None, None, "too large", None, None], "c": small}
    remarks = {"a": ["replied 'maybe'", "replied 'real'", None, None, None]}
    given = {"calibrations": uncalibrated(scores), "remarks": remarks, "out_of_range": doubts}
    decided = decide(card("a", "b", "c"), scores, **given)
    none, outside = Reason.NO_SCORE, Reason.OUT_OF_RANGE
    assert decided.reason == [none, None, outside, none, outside]
    assert decided.detail == [
        "a: no score (replied 'maybe'); b: no score; c: too small",
        None,
        "b: no score (too large); c: too small",
        "a: no score",
        "c: too small",
    ]
    assert decided.verdict == ["abstain", "fake", "abstain", "abstain", "abstain"]
    assert np.isnan(decided.score).tolist() == [True, False, True, True, False]


@pytest.mark.parametrize(
    ("score", "probability"), [(0, 0.5), (800, 1.0), (-800, 0.0), (1, 0.7310585786300049)]
)
def test_sigmoid_is_safe_at_both_ends(score, probability):
    assert sigmoid(np.array([float(score)]))[0] == pytest.approx(probability)


def test_image_without_content_abstains():
    scores = columns(a=[5.0, -5.0, NAN, 0.0, 5.0])
    doubts = {
        IMAGE: ["outside what the calibration saw: format GIF"] + [None] * 4,
        "a": [None, "too small", None, None, None],
    }
    given = {"calibrations": uncalibrated(scores), "blank": [True] * 4 + [False]}
    banded = card("a", real_below=-1, fake_above=1)
    decided = decide(banded, scores, out_of_range=doubts, **given)
    assert decided.verdict == ["abstain"] * 4 + ["fake"]
    assert decided.reason == [Reason.NO_CONTENT] * 4 + [None]
    assert decided.detail == [None] * 5
    assert decided.score.tolist()[:2] == [5.0, -5.0], "the score stays what the detectors said"


def test_first_of_several_reasons_is_named():
    scores = columns(a=[1.0, 1.0], b=[1.0, NAN])
    doubts = {IMAGE: ["format GIF", "format GIF"], "a": [None, "too small"]}
    decided = decide(card("a", "b"), scores, calibrations=uncalibrated(scores), out_of_range=doubts)
    assert decided.reason == [Reason.UNLIKE_CALIBRATION, Reason.NO_SCORE]
    assert decided.detail == ["format GIF", "format GIF; a: too small; b: no score"]
