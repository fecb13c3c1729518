import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.detectors.cards import Calibration
from ray_app.ensembles import EnsembleCard, Member, Thresholds, combine, decide, ensemble_of, sigmoid

NAN = float("nan")


def card(*names, rule="mean-logit", weights=None, **thresholds):
    members = tuple(Member(detector=name, weight=weight) for name, weight in zip(names, weights or [1.0] * len(names), strict=True))
    return EnsembleCard(name="e", title="e", members=members, rule=rule, thresholds=Thresholds(**thresholds))


def columns(**values):
    return {name: np.array(column, np.float32) for name, column in values.items()}


def uncalibrated(scores):
    return dict.fromkeys(scores)


def test_mean_logit_is_the_mean():
    scores = columns(a=[1.0, -2.0], b=[3.0, -4.0])
    assert combine(card("a", "b"), scores, uncalibrated(scores)).tolist() == [2.0, -3.0]


def test_weighted_is_a_weighted_sum_with_bias():
    scores = columns(a=[1.0], b=[3.0])
    weighted = card("a", "b", rule="weighted", weights=[2.0, -0.5]).model_copy(update={"bias": 0.25})
    assert combine(weighted, scores, uncalibrated(scores)).tolist() == [0.75]


def test_calibration_comes_before_the_rule():
    scores = columns(a=[1.0], b=[3.0])
    assert combine(card("a", "b"), scores, {"a": Calibration(slope=2.0, intercept=1.0), "b": None}).tolist() == [3.0]


def test_verdicts_and_the_abstain_band():
    scores = columns(a=[-1.0, -0.5, 0.0, 1.9, 2.0])
    decided = decide(card("a", real_below=-0.5, fake_above=2.0), scores, calibrations=uncalibrated(scores))
    assert decided.verdict == ["real", "real", "abstain", "abstain", "fake"]
    assert decided.reason[2] == "inside the abstain band"
    assert not decided.calibrated


def test_calibrated_only_when_every_member_is():
    scores = columns(a=[1.0], b=[1.0])
    both = {"a": Calibration(slope=1, intercept=0), "b": Calibration(slope=1, intercept=0)}
    assert decide(card("a", "b"), scores, calibrations=both).calibrated
    assert not decide(card("a", "b"), scores, calibrations={**both, "b": None}).calibrated


def test_a_missing_member_abstains_and_nothing_is_renormalised():
    scores = columns(a=[5.0, 5.0], b=[NAN, 5.0])
    decided = decide(card("a", "b"), scores, calibrations=uncalibrated(scores))
    assert decided.verdict == ["abstain", "fake"]
    assert decided.reason[0] == "b: no score"
    assert np.isnan(decided.score[0])


def test_an_image_outside_a_member_s_range_abstains_but_keeps_its_score():
    scores = columns(a=[5.0])
    decided = decide(card("a"), scores, calibrations=uncalibrated(scores), out_of_range={"a": ["outside its valid range"]})
    assert (decided.verdict, decided.reason, decided.score.tolist()) == (["abstain"], ["a: outside its valid range"], [5.0])


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=6), st.randoms())
def test_mean_logit_does_not_depend_on_the_order_of_detectors(values, random):
    names = [f"d{index}" for index in range(len(values))]
    shuffled = list(zip(names, values, strict=True))
    random.shuffle(shuffled)
    left, right = columns(**{n: [v] for n, v in zip(names, values, strict=True)}), columns(**{n: [v] for n, v in shuffled})
    assert combine(card(*left), left, uncalibrated(left)) == pytest.approx(combine(card(*right), right, uncalibrated(right)), abs=1e-6)


@pytest.mark.parametrize(("score", "probability"), [(0, 0.5), (800, 1.0), (-800, 0.0), (1, 0.7310585786300049)])
def test_sigmoid_is_safe_at_both_ends(score, probability):
    assert sigmoid(np.array([float(score)]))[0] == pytest.approx(probability)


def test_detectors_from_the_command_line_split_at_zero():
    ensemble = ensemble_of(["a", "/some/where/b.yaml"])
    assert (ensemble.name, ensemble.thresholds.real_below, ensemble.thresholds.fake_above) == ("a+b", 0.0, 0.0)
