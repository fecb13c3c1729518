import statistics
from decimal import Decimal, localcontext
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.ensembles.card import OutlierGate, Rule
from ray_app.ensembles.decision import (
    SYMMETRIC,
    fit_stacking,
    gated_mean,
    log_sum_exp,
    mean_probability,
    soft_or,
    stacked,
)
from ray_app.errors import ConfigError

# From the reference functions of GRIP's ClipBased detector.
GOLDEN_NAMES = ("mean-logit", "max", "median", "log-sum-exp", "mean-probability", "soft-or")
GOLDEN = {
    (1, -2): (-0.5, 1.0, -0.5, 1.048587351573742, -0.30174585363193374, 1.1698460195562856),
    (0, 0): (0.0, 0.0, 0.0, 0.6931471805599453, 0.0, 1.0986122886681096),
    (-1.5, 3.25): (0.875, 3.25, 0.875, 3.2586144837621758, 0.29225995966141405, 3.4584617839719844),
    (12, -30): (-9.0, 12.0, -9.0, 12.0, -1.2288349017564038e-05, 12.000000000000094),
    (30, 2): (16.0, 30.0, 16.0, 30.000000000000693, 2.7586236756786784, 32.12692801104305),
    (700, -700): (0.0, 700.0, 0.0, 700.0, 0.0, 700.0),
    (1, -2, 0.5): (-1 / 6, 1.0, 0.5, 1.5045969023422834, -0.03637623484249819, 2.320578998653346),
}

names = pytest.mark.parametrize("name", SYMMETRIC)
some_scores = st.lists(st.floats(-1000, 1000), min_size=1, max_size=6)


def of(rule, *scores):
    return float(rule(np.array([scores], np.float64))[0])


def exactly(rule, scores):
    """The rule as its definition says it, on probabilities with 500 digits."""
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 500, -(10**6), 10**6
        real = [1 / (1 + Decimal(score).exp()) for score in scores]
        if rule is soft_or:
            none_fake = Decimal(1)
            for p in real:
                none_fake *= p
            return float(((1 - none_fake) / none_fake).ln())
        return float(((len(real) - sum(real)) / sum(real)).ln())


def test_every_rule_of_a_card_is_here():
    assert {*SYMMETRIC, "weighted", "stacked", "gated-mean", "cascade"} == {
        word for kind in get_args(Rule) for word in get_args(kind)
    }


@pytest.mark.parametrize("scores", GOLDEN, ids=str)
def test_rules_equal_the_reference(scores):
    found = [of(SYMMETRIC[name], *scores) for name in GOLDEN_NAMES]
    assert found == pytest.approx(list(GOLDEN[scores]), abs=1e-6)


@pytest.mark.parametrize(
    ("rule", "scores", "expected"),
    [
        (soft_or, (-800, -800), -800 + np.log(2)),  # the reference: -inf
        (mean_probability, (60, 60), 60),  # the reference: +inf
        (mean_probability, (30, 30), 30),  # the reference: 29.99983
        (log_sum_exp, (800, 800), 800 + np.log(2)),
    ],
)
def test_far_from_zero(rule, scores, expected):
    assert of(rule, *scores) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("rule", [soft_or, mean_probability])
@given(scores=some_scores)
def test_equals_its_definition_with_many_digits(rule, scores):
    assert of(rule, *scores) == pytest.approx(exactly(rule, scores), rel=1e-12, abs=1e-12)


@names
def test_rule_is_symmetric_and_monotone(name):
    table = np.random.default_rng(7).normal(scale=40, size=(200, 5))
    rule = SYMMETRIC[name]
    np.testing.assert_allclose(rule(table[:, [3, 1, 4, 0, 2]]), rule(table), rtol=1e-12, atol=1e-9)
    assert (rule(table + np.eye(5)[np.arange(200) % 5] * 30) >= rule(table) - 1e-9).all()
    np.testing.assert_allclose(rule(table[:, :1]), table[:, 0], atol=1e-9)


@pytest.mark.filterwarnings("error")
@names
def test_rule_is_finite_at_the_ends_of_float32(name):
    end = float(np.finfo(np.float32).max)
    table = np.array([[end, end, end], [-end, -end, -end], [end, -end, 0.0]])
    assert np.isfinite(SYMMETRIC[name](table)).all()
    assert SYMMETRIC[name](table[:0]).shape == (0,)


def labelled():
    """Members whose scores lie 1.5, 0.7 and 0 further up on fakes, on scales that differ."""
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], 150)
    scores = rng.normal(size=(300, 3)) + labels[:, None] * np.array([1.5, 0.7, 0.0])
    return scores * np.array([1.0, 20.0, 0.1]) + np.array([0.0, -7.0, 3.0]), labels


def test_a_fit_uses_what_informs_and_not_the_scale():
    scores, labels = labelled()
    stacking = fit_stacking(scores, labels)
    strong, weak, noise = stacking.coefficients
    assert strong > weak > 3 * abs(noise)
    rescaled = fit_stacking(scores * 5 + 2, labels)
    assert rescaled.coefficients == pytest.approx(stacking.coefficients, abs=1e-6)
    log_odds, best = stacked(scores, stacking), scores[:, 0] > scores[:, 0].mean()
    assert ((log_odds > 0) == labels).mean() > (best == labels).mean()
    assert (1 / (1 + np.exp(-log_odds))).mean() == pytest.approx(labels.mean(), abs=1e-4)
    assert fit_stacking(scores, labels.astype(bool)) == stacking


def test_two_outliers_do_not_decide_a_fit():
    scores, labels = labelled()
    expected = stacked(scores, fit_stacking(scores, labels))
    with_outliers = np.concatenate([scores, [[1e7, 0, 0], [-1e7, 0, 0]]])
    found = stacked(scores, fit_stacking(with_outliers, np.array([*labels, 0, 1])))
    assert np.abs(found).mean() > 0.5 * np.abs(expected).mean()


def test_a_member_that_always_says_the_same_counts_for_nothing():
    scores, labels = labelled()
    scores[:, 2] = 0.1
    stacking = fit_stacking(scores, labels)
    other = scores[:1] + np.array([0.0, 0.0, 5.0])
    assert stacked(other, stacking) == pytest.approx(stacked(scores[:1], stacking))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[1.0], [float("nan")]], [0, 1], "1 of 2 images lack the score of a member"),
        ([[1.0], [2.0]], [1, 1], "must contain both"),
        ([[1.0], [2.0]], [0, 2], "0 .real. and 1 .fake."),
        ([[1.0], [2.0]], [0, 1, 1], r"got \(2, 1\) and \(3,\)"),
        ([1.0, 2.0], [0, 1], r"scores must be \(n, members\)"),
    ],
)
def test_scores_that_cannot_be_stacked_are_refused(scores, labels, message):
    with pytest.raises(ConfigError, match=message):
        fit_stacking(np.array(scores), np.array(labels))


# ---- the mean of those that are not far off

many_scores = st.lists(st.floats(-1000, 1000), min_size=3, max_size=8)


def gated(*scores, **gate):
    return float(gated_mean(np.array([scores], np.float64), OutlierGate(**gate))[0])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((2.0, 2.5, 3.0), 2.5),
        ((2.0, 2.5, 3.0, -30.0), 2.5),  # median 2.25, distances 0.25, 0.25, 0.75, 32.25
        ((2.0, 2.5, 3.0, -0.1), 1.85),  # the floor keeps whom less than 2.6 part from the median
        ((2.0, 2.5, 3.0, -0.4), 2.5),
        ((9.0, -9.0, 0.0), 0.0),  # nobody is far where all are apart
        ((1.0, 1.0, 1.0, 1.0, 50.0, -50.0), 1.0),
        ((5.0, 5.0, -5.0, -5.0), 0.0),  # two camps: no majority, nobody out
    ],
)
def test_a_member_far_from_the_median_is_left_out(scores, expected):
    assert gated(*scores) == pytest.approx(expected)


@given(many_scores)
@settings(max_examples=60, deadline=None)
def test_the_gated_mean_is_what_its_definition_says(scores):
    """Iglewicz and Hoaglin's modified z-score, written down once more without arrays."""
    centre = statistics.median(scores)
    spread = max(statistics.median(abs(score - centre) for score in scores), 0.5)
    kept = [score for score in scores if not 0.6745 * abs(score - centre) > 3.5 * spread]
    assert len(kept) >= len(scores) / 2
    assert gated(*scores) == pytest.approx(sum(kept) / len(kept), rel=1e-12, abs=1e-12)
    assert min(scores) - 1e-9 <= gated(*scores) <= max(scores) + 1e-9
