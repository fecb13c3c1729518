import json
from decimal import Decimal, localcontext
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.ensembles import EnsembleCard, EnsembleMember, OutlierGate, Rule, Stacking, combine, fit_stacking
from ray_app.ensembles.decision import (
    SYMMETRIC,
    gated_mean,
    log_sum_exp,
    maximum,
    mean_logit,
    mean_probability,
    median,
    soft_or,
    stacked,
    weighted,
)
from ray_app.errors import ConfigError

NAN = float("nan")

# From the reference functions of GRIP's ClipBased detector.
GOLDEN_NAMES = ("mean-logit", "max", "median", "log-sum-exp", "mean-probability", "soft-or")
GOLDEN = {
    (1, -2): (-0.5, 1.0, -0.5, 1.048587351573742, -0.30174585363193374, 1.1698460195562856),
    (5, -8): (-1.5, 5.0, -1.5, 5.000002260326853, -0.012715172895990778, 5.000337665941749),
    (0, 0): (0.0, 0.0, 0.0, 0.6931471805599453, 0.0, 1.0986122886681096),
    (-3, -3): (-3.0, -3.0, -3.0, -2.3068528194400546, -3.0, -2.2822640813332975),
    (2, -6): (-2.0, 2.0, -2.0, 2.000335406372896, -0.2345297273201954, 2.0028102623157844),
    (0.25, -0.75): (-0.25, 0.25, -0.25, 0.5632616875182228, -0.23508105606566942, 0.8598992550285961),
    (-1.5, 3.25): (0.875, 3.25, 0.875, 3.2586144837621758, 0.29225995966141405, 3.4584617839719844),
    (12, -30): (-9.0, 12.0, -9.0, 12.0, -1.2288349017564038e-05, 12.000000000000094),
    (-20, -25): (-22.5, -20.0, -22.5, -19.993284651510884, -20.686431833080757, -19.99328465149709),
    (30, 2): (16.0, 30.0, 16.0, 30.000000000000693, 2.7586236756786784, 32.12692801104305),
    (-40, -60): (-50.0, -40.0, -50.0, -39.99999999793884, -40.69314717849879, -39.99999999793884),
    (700, -700): (0.0, 700.0, 0.0, 700.0, 0.0, 700.0),
    (1, -2, 0.5): (-0.16666666666666666, 1.0, 0.5, 1.5045969023422834, -0.03637623484249819, 2.320578998653346),
    (-4, -6, -5): (-5.0, -4.0, -5.0, -3.59239403555562, -4.695836729340822, -3.5856676508339644),
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
    assert {*SYMMETRIC, "weighted", "stacked", "gated-mean", "cascade"} == {word for kind in get_args(Rule) for word in get_args(kind)}


@pytest.mark.parametrize("scores", GOLDEN, ids=str)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_golden(name, scores):
    assert of(SYMMETRIC[name], *scores) == pytest.approx(GOLDEN[scores][GOLDEN_NAMES.index(name)], abs=1e-6)


@pytest.mark.parametrize(
    ("rule", "scores", "expected"),
    [
        (soft_or, (-800, -800), -800 + np.log(2)),  # the reference: -inf
        (soft_or, (800, 800), 1600),
        (soft_or, (800, -800), 800),
        (mean_probability, (60, 60), 60),  # the reference: +inf
        (mean_probability, (36, 36), 36),  # the reference: 36.0437
        (mean_probability, (30, 30), 30),  # the reference: 29.99983
        (mean_probability, (800, -800), 0),
        (mean_probability, (-800, -800), -800),
        (log_sum_exp, (800, 800), 800 + np.log(2)),
        (log_sum_exp, (-800, -800), -800 + np.log(2)),
    ],
)
def test_far_from_zero(rule, scores, expected):
    assert of(rule, *scores) == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("error")
@names
def test_no_overflow_and_no_infinity_at_the_ends_of_float32(name):
    end = float(np.finfo(np.float32).max)
    table = np.array([[end, end, end], [-end, -end, -end], [end, -end, 0.0], [0.0, 0.0, 0.0]])
    assert np.isfinite(SYMMETRIC[name](table)).all()


@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("rule", [soft_or, mean_probability])
@given(scores=some_scores)
def test_equals_its_definition_with_many_digits(rule, scores):
    assert of(rule, *scores) == pytest.approx(exactly(rule, scores), rel=1e-12, abs=1e-12)


@settings(max_examples=40)
@names
@given(score=st.floats(-1000, 1000))
def test_one_member_is_left_as_it_is(name, score):
    assert of(SYMMETRIC[name], score) == pytest.approx(score, abs=1e-9)


@settings(max_examples=40)
@names
@given(scores=some_scores, random=st.randoms())
def test_the_order_of_members_does_not_matter(name, scores, random):
    shuffled = random.sample(scores, len(scores))
    assert of(SYMMETRIC[name], *scores) == pytest.approx(of(SYMMETRIC[name], *shuffled), rel=1e-12, abs=1e-9)


@settings(max_examples=40)
@names
@given(scores=some_scores, more=st.floats(0, 100), which=st.integers(0, 5))
def test_more_from_one_member_is_never_less_from_the_ensemble(name, scores, more, which):
    raised = list(scores)
    raised[which % len(scores)] += more
    assert of(SYMMETRIC[name], *raised) >= of(SYMMETRIC[name], *scores) - 1e-9


@given(some_scores)
def test_how_the_rules_lie_to_each_other(scores):
    low, high = min(scores), max(scores)
    rounding = 1e-9
    for between in (mean_logit, median, mean_probability):
        assert low - rounding <= of(between, *scores) <= high + rounding
    assert of(maximum, *scores) == high
    assert high <= of(log_sum_exp, *scores) <= of(soft_or, *scores) + rounding
    assert of(soft_or, *scores) >= high


@names
def test_equal_members(name):
    gain = {"log-sum-exp": np.log(4), "soft-or": np.log(15)}  # (1 + 1)^4 − 1 against odds of 1
    assert of(SYMMETRIC[name], 0, 0, 0, 0) == pytest.approx(gain.get(name, 0.0), abs=1e-12)


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_two_members_mean_probability_and_mean_logit_agree_on_the_side_of_zero(a, b):
    assert abs(a + b) < 1e-3 or np.sign(of(mean_probability, a, b)) == np.sign(of(mean_logit, a, b))


@names
def test_a_missing_member_leaves_no_score_in_its_row_alone(name):
    table = np.array([[1.0, NAN, 3.0], [1.0, 2.0, 3.0], [NAN, NAN, NAN]])
    with np.errstate(invalid="ignore"):
        result = SYMMETRIC[name](table)
    assert np.isnan(result).tolist() == [True, False, True]
    assert result[1] == SYMMETRIC[name](table[1:2])[0]


@pytest.mark.filterwarnings("error")
@names
def test_no_rows(name):
    assert SYMMETRIC[name](np.empty((0, 3))).shape == (0,)


def test_weighted_and_stacked_have_no_score_without_a_member():
    table = np.array([[1.0, NAN], [1.0, 2.0]])
    assert np.isnan(weighted(table, np.array([1.0, 0.0]))).tolist() == [True, False]
    stacking = Stacking(mean=(1.0, 0.0), scale=(2.0, 0.5), coefficients=(3.0, -1.0), intercept=0.25)
    result = stacked(table, stacking)
    assert np.isnan(result[0])
    assert result[1] == 3.0 * (1.0 - 1.0) / 2.0 - 1.0 * (2.0 - 0.0) / 0.5 + 0.25


PER_CLASS = 150


def labelled(informative=(1.5, 0.7, 0.0), per_class=PER_CLASS, seed=3):
    """Members whose scores lie `informative` further up on fakes, on scales that differ."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], per_class)
    scores = rng.normal(size=(2 * per_class, len(informative))) + labels[:, None] * np.array(informative)
    return scores * np.array([1.0, 20.0, 0.1]) + np.array([0.0, -7.0, 3.0]), labels


def accuracy(scores, labels):
    return float(((scores > 0) == labels).mean())


def test_a_fit_uses_what_informs_and_not_the_scale():
    scores, labels = labelled()
    stacking = fit_stacking(scores, labels)
    strong, weak, noise = stacking.coefficients
    assert strong > weak > 3 * abs(noise)
    rescaled = fit_stacking(scores * 5 + 2, labels)
    assert rescaled.coefficients == pytest.approx(stacking.coefficients, abs=1e-6)
    assert accuracy(stacked(scores, stacking), labels) > accuracy(scores[:, 0] - scores[:, 0].mean(), labels)


def test_log_odds_match_the_share_of_fakes():
    scores, labels = labelled()
    probability = 1 / (1 + np.exp(-stacked(scores, fit_stacking(scores, labels))))
    assert probability.mean() == pytest.approx(labels.mean(), abs=1e-4)


def test_it_goes_through_a_card_and_back_unchanged():
    scores, labels = labelled()
    stacking = fit_stacking(scores, labels)
    assert Stacking.model_validate(json.loads(stacking.model_dump_json())) == stacking
    assert fit_stacking(scores, labels.astype(bool)) == stacking


def test_a_member_that_always_says_the_same_counts_for_nothing():
    scores, labels = labelled()
    scores[:, 2] = 0.1
    stacking = fit_stacking(scores, labels)
    other = scores[:1] + np.array([0.0, 0.0, 5.0])
    assert stacked(other, stacking) == pytest.approx(stacked(scores[:1], stacking))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[1.0], [float("nan")]], [0, 1], "1 of 2 images lack a member's score"),
        ([[1.0], [2.0]], [1, 1], "both present"),
        ([[1.0], [2.0]], [0, 2], "0 .real. and 1 .fake."),
        ([[1.0], [2.0]], [0, 1, 1], r"scores \(2, 1\) and labels \(3,\)"),
        ([1.0, 2.0], [0, 1], r"expected \(n, members\)"),
    ],
)
def test_what_cannot_be_fitted_is_said(scores, labels, message):
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
@settings(max_examples=200, deadline=None)
def test_the_gated_mean_is_what_its_definition_says(scores):
    """Iglewicz and Hoaglin's modified z-score, written down once more without arrays."""
    centre = sorted(scores)[len(scores) // 2] if len(scores) % 2 else sum(sorted(scores)[len(scores) // 2 - 1 : len(scores) // 2 + 1]) / 2
    distances = sorted(abs(score - centre) for score in scores)
    half = len(scores) // 2
    spread = max(distances[half] if len(scores) % 2 else (distances[half - 1] + distances[half]) / 2, 0.5)
    kept = [score for score in scores if not 0.6745 * abs(score - centre) > 3.5 * spread]
    assert len(kept) >= len(scores) / 2
    assert gated(*scores) == pytest.approx(sum(kept) / len(kept), rel=1e-12, abs=1e-12)
    assert min(scores) - 1e-9 <= gated(*scores) <= max(scores) + 1e-9


def test_one_member_has_bounded_weight():
    shares = [gated(1.0, 1.5, 2.0, astray) for astray in np.linspace(2, 1000, 2000)]
    assert max(shares) < 2.2
    assert shares[-1] == pytest.approx(1.5)


@pytest.mark.parametrize("missing", [NAN, float("inf"), -float("inf")])
def test_a_missing_member_is_not_outvoted(missing):
    names = ("a", "b", "c", "d")
    card = EnsembleCard(name="e", title="e", members=tuple(EnsembleMember(detector=name) for name in names), rule="gated-mean")
    scores = {name: np.array([1.0, 2.0], np.float32) for name in names[:3]} | {"d": np.array([missing, 2.0], np.float32)}
    assert np.isnan(combine(card, scores, dict.fromkeys(names)).tolist()).tolist() == [True, False]


def test_wide_gates_are_the_plain_mean():
    table = np.random.default_rng(0).normal(scale=9, size=(50, 5))
    np.testing.assert_allclose(gated_mean(table, OutlierGate(deviations=1e9)), mean_logit(table))
