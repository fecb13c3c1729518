from dataclasses import replace

import numpy as np
import pytest

from ray_app.ensembles import EnsembleMember, decide, logit, sigmoid
from ray_app.ensembles.decision import is_audited
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.division import CHOOSE, draw_parts, group_images
from ray_app.evaluation.calibrate.fit_card import RATES, add_thresholds, fit_card
from ray_app.evaluation.calibrate.thresholds import choose_threshold, fit
from ray_app.metrics.uncertainty import proportion_interval
from tests.evaluation.calibrate.drawn import asked, divided, drawn

MEMBERS = (EnsembleMember(detector="coarse"), EnsembleMember(detector="fine"))
RULES = ["stacked", "weighted", "mean-logit", "mean-probability", "soft-or", "max", "median"]
RULES += ["log-sum-exp", "cascade"]


@pytest.fixture(scope="module")
def images():
    made = drawn(3_000, 2_000)
    made.quality[:] = np.random.default_rng(1).choice([np.nan, 45, 72, 85, 95], len(made))
    return made


@pytest.fixture(scope="module")
def parts(images):
    return draw_parts(images, group_images(images))


def assembled(images, parts, **settings):
    """Fit a card on images in these parts, and choose its thresholds."""
    division, config = divided(images, parts), asked(**settings)
    return add_thresholds(fit_card(division, MEMBERS, config), division, config)


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_gives_probabilities_and_a_threshold(images, parts, rule):
    choosing = images.take(parts == CHOOSE)
    made = assembled(images, parts, rule=rule)
    audited = [is_audited(made.card, sha256) for sha256 in choosing.sha256]
    calibrations = made.fitted.calibrations
    decided = decide(made.card, choosing.scores, calibrations=calibrations, audited=audited)
    said_fake = np.array([verdict == "fake" for verdict in decided.verdict])
    said_real = np.array([verdict == "real" for verdict in decided.verdict])
    assert decided.calibrated
    assert np.array_equal(decided.score, made.fitted.scores(choosing))
    assert int(said_fake[~choosing.fake].sum()) == made.chosen.false_positives
    least = choose_threshold(decided.score[~choosing.fake], 0.01)
    assert made.chosen.fake_above >= least.fake_above
    assert made.upper_bound == max(made.chosen.upper_bound, made.overall.upper_bound) <= 0.01
    assert said_fake[choosing.fake].mean() == made.card.thresholds.true_positive_rate > 0.25
    assert said_real[choosing.fake].mean() <= 0.05
    chances = sigmoid(decided.score + logit(choosing.fake.mean()) - logit(images.fake.mean()))
    assert chances.mean() == pytest.approx(choosing.fake.mean(), abs=0.08)


@pytest.mark.parametrize("rule", ["stacked", "cascade"])
def test_no_image_that_chooses_thresholds_is_fitted(images, parts, rule):
    choosing = parts == CHOOSE
    turned = {name: np.where(choosing, -score, score) for name, score in images.scores.items()}
    one, other = (
        fit_card(divided(replace(images, scores=scores), parts), MEMBERS, asked(rule=rule))
        for scores in (images.scores, turned)
    )
    assert one == other


def test_prevalence_moves_probabilities_and_not_verdicts(images, parts):
    usual, rare = (
        fit_card(divided(images, parts), MEMBERS, asked(prevalence=one)) for one in (None, 0.001)
    )
    own = images.fake.mean()
    assert (usual.prevalence, rare.prevalence) == (own, 0.001)
    assert rare.scores(images) == pytest.approx(usual.scores(images) + logit(0.001) - logit(own))
    first, second = (
        add_thresholds(one, divided(images, parts), asked()).card.thresholds
        for one in (usual, rare)
    )
    assert first.true_positive_rate == second.true_positive_rate
    assert second.fake_above == pytest.approx(first.fake_above + logit(0.001) - logit(own))


def test_cascade_asks_all_detectors_about_its_share(images, parts):
    made = assembled(images, parts, rule="cascade", share=0.3, audit=0.02)
    fresh = drawn(30_000, 30_000, seed=9)
    looks = np.array([look or "" for look in made.fitted.second_stage_reasons(fresh)])
    prevalence = images.fake.mean()
    of_reals, of_fakes = ((looks[fresh.fake == kind] != "").mean() for kind in (False, True))
    share = (1 - prevalence) * of_reals + prevalence * of_fakes
    assert 0.2 < share <= 0.3
    assert (looks == "audit").mean() == pytest.approx(0.02 * (looks != "band").mean(), abs=0.003)
    only = images.take(parts == CHOOSE)
    coarse = choose_threshold(only.scores["coarse"][~only.fake], 0.01).fake_above
    of_coarse = (only.scores["coarse"][only.fake] >= coarse).mean()
    assert made.card.thresholds.true_positive_rate > of_coarse + 0.1


def test_a_late_stage_counts_only_where_it_looked(images, parts):
    fitted = fit_card(divided(images, parts), MEMBERS, asked(rule="cascade"))
    looks = np.array([look or "" for look in fitted.second_stage_reasons(images)])
    seen = np.where(looks == "", np.nan, images.scores["fine"])
    blind = replace(images, scores=images.scores | {"fine": seen})
    assert np.array_equal(fitted.scores(blind), fitted.scores(images))


def test_copies_of_a_real_count_once(images, parts):
    config, division = asked(), divided(images, parts)
    copies = np.flatnonzero((parts == CHOOSE) & ~images.fake)
    again = np.concatenate([np.arange(len(images)), copies])
    twice = divided(images.take(again), parts[again])
    assert len(twice.choosing) > len(division.choosing)
    fitted = fit_card(division, MEMBERS, config)
    once, both = (add_thresholds(fitted, part, config).chosen for part in (division, twice))
    assert once == both


def test_one_detector_keeps_its_own_score(images, parts):
    alone = replace(images, scores={"fine": images.scores["fine"]})
    usual, rare = (
        fit_card(divided(alone, parts), MEMBERS[1:], asked(prevalence=one)) for one in (None, 0.01)
    )
    card = usual.card
    assert (card.rule, card.stacking, len(card.members)) == ("mean-logit", None, 1)
    both = images.take(parts != CHOOSE)
    once = fit(both.scores["fine"], both.fake)  # one fit, on both parts
    assert (card.members[0].calibration, usual.prevalence) == (once, images.fake.mean())
    expected = once(alone.scores["fine"].astype(float)) - logit(both.fake.mean())
    assert usual.scores(alone) == pytest.approx(expected + logit(images.fake.mean()))
    assert rare.scores(alone) == pytest.approx(expected + logit(0.01))


@pytest.mark.parametrize(
    ("members", "settings", "said"),
    [
        (MEMBERS[1:], {"rule": "cascade"}, "the run has 1"),
        (MEMBERS, {"rule": "cascade", "first": 2}, "--first must be less than 2, .* got 2"),
        (MEMBERS, {"rule": "gated-mean"}, "--rule gated-mean needs at least 3 detectors"),
    ],
)
def test_rule_for_more_detectors_is_refused(images, parts, members, settings, said):
    scores = {member.detector: images.scores[member.detector] for member in members}
    with pytest.raises(ConfigError, match=said):
        fit_card(divided(replace(images, scores=scores), parts), members, asked(**settings))


def test_detector_that_ranks_backwards_is_named(images, parts):
    turned = replace(images, scores=images.scores | {"coarse": -images.scores["coarse"]})
    with pytest.raises(ConfigError, match="coarse"):
        fit_card(divided(turned, parts), MEMBERS, asked())


@pytest.fixture(scope="module")
def made(images, parts):
    return assembled(images, parts)


def test_operating_points_are_measured_on_held_out_images(images, parts, made):
    choosing = images.take(parts == CHOOSE)
    scores, points = made.fitted.scores(choosing), made.card.operating_points
    assert [point.rate for point in points] == list(RATES)
    thresholds = [point.threshold for point in points]
    assert thresholds == sorted(thresholds, reverse=True)
    for point in points:
        reached = scores >= point.threshold
        assert point.false_positive_rate == reached[~choosing.fake].mean()
        assert point.recall == reached[choosing.fake].mean()
        is_open = ~reached & (scores > made.card.thresholds.real_below)
        assert point.abstain_real == is_open[~choosing.fake].mean()
        assert point.abstain_fake == is_open[choosing.fake].mean()
        n_real = int((~choosing.fake).sum())
        bound = proportion_interval(int(reached[~choosing.fake].sum()), n_real, 0.05)[1]
        assert point.upper_bound >= bound
    decisive = points[RATES.index(0.01)]
    assert decisive.threshold == made.card.thresholds.fake_above
    assert decisive.upper_bound == made.upper_bound
    assert decisive.recall == made.card.thresholds.true_positive_rate
    for name in ("abstain_real", "abstain_fake", "upper_bound"):
        assert getattr(made.card.thresholds, name) == getattr(decisive, name)
    assert (made.card.thresholds.target_fpr, decisive.abstain_fake > 0) == (0.01, True)


def test_rate_that_reals_are_too_few_for_is_not_guaranteed(images, parts, made):
    rare, *others = made.card.operating_points  # 0.1 % needs 2,995 held-out reals, which are 1,500.
    assert not rare.is_guaranteed
    assert rare.upper_bound > rare.rate
    assert rare.false_positive_rate <= rare.rate
    assert all(point.is_guaranteed for point in others)


def test_target_rate_is_an_operating_point(images, parts):
    card = assembled(images, parts, fpr=0.02).card
    [point] = [point for point in card.operating_points if point.rate == 0.02]
    assert point.threshold == card.thresholds.fake_above
    assert point.is_guaranteed
