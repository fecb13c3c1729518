import numpy as np
import pytest

from ray_app.ensembles import EnsembleMember, decide, logit, sigmoid
from ray_app.ensembles.decision import is_audited
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.division import CHOOSE, groups_of, split
from ray_app.evaluation.calibrate.fit_card import RATES, fit_card, with_thresholds
from ray_app.evaluation.calibrate.thresholds import choose_threshold, fit
from ray_app.metrics.uncertainty import proportion_interval
from tests.evaluation.calibrate.drawn import asked, divided, drawn

MEMBERS = (EnsembleMember(detector="coarse"), EnsembleMember(detector="fine"))
RULES = [
    "stacked",
    "weighted",
    "mean-logit",
    "mean-probability",
    "soft-or",
    "max",
    "median",
    "log-sum-exp",
    "cascade",
]


@pytest.fixture(scope="module")
def images():
    made = drawn(3_000, 2_000)
    made.quality[:] = np.random.default_rng(1).choice([np.nan, 45, 72, 85, 95], len(made))
    return made


@pytest.fixture(scope="module")
def parts(images):
    return split(images, groups_of(images))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_chances_and_a_threshold_that_decides(images, parts, rule):
    config = asked(rule=rule)
    choosing = images.take(parts == CHOOSE)
    made = with_thresholds(
        fit_card(divided(images, parts), MEMBERS, config), divided(images, parts), config
    )
    decided = decide(made.card, choosing.scores, calibrations=made.fitted.calibrations,
                     audited=[is_audited(made.card, sha256) for sha256 in choosing.sha256])  # fmt: skip
    said_fake = np.array([verdict == "fake" for verdict in decided.verdict])
    said_real = np.array([verdict == "real" for verdict in decided.verdict])
    assert decided.calibrated
    assert np.array_equal(decided.score, made.fitted.scores(choosing))
    assert int(said_fake[~choosing.fake].sum()) == made.chosen.false_positives
    assert (
        made.chosen.fake_above >= choose_threshold(decided.score[~choosing.fake], 0.01).fake_above
    )
    assert made.upper_bound == max(made.chosen.upper_bound, made.overall.upper_bound) <= 0.01
    assert said_fake[choosing.fake].mean() == made.card.thresholds.true_positive_rate > 0.25
    assert said_real[choosing.fake].mean() <= 0.05
    chances = sigmoid(decided.score + logit(choosing.fake.mean()) - logit(images.fake.mean()))
    assert chances.mean() == pytest.approx(choosing.fake.mean(), abs=0.08)


def test_nothing_is_fitted_on_the_images_that_thresholds_are_chosen_on(images, parts):
    for rule in ("stacked", "cascade"):
        scores = {
            name: np.where(parts == CHOOSE, -column, column)
            for name, column in images.scores.items()
        }
        turned = type(images)(**{**vars(images), "scores": scores})
        one, other = (
            fit_card(divided(some, parts), MEMBERS, asked(rule=rule)) for some in (images, turned)
        )
        assert one == other


def test_a_prevalence_moves_the_chances_and_finds_the_same_fakes(images, parts):
    usual, rare = (
        fit_card(divided(images, parts), MEMBERS, asked(prevalence=one)) for one in (None, 0.001)
    )
    own = images.fake.mean()
    assert (usual.prevalence, rare.prevalence) == (own, 0.001)
    assert rare.scores(images) == pytest.approx(usual.scores(images) + logit(0.001) - logit(own))
    first, second = (
        with_thresholds(one, divided(images, parts), asked()).card.thresholds
        for one in (usual, rare)
    )
    assert first.true_positive_rate == second.true_positive_rate
    assert second.fake_above == pytest.approx(first.fake_above + logit(0.001) - logit(own))


def test_a_cascade_asks_all_detectors_about_no_more_than_its_share(images, parts):
    config = asked(rule="cascade", share=0.3, audit=0.02)
    made = with_thresholds(
        fit_card(divided(images, parts), MEMBERS, config), divided(images, parts), config
    )
    fresh = drawn(30_000, 30_000, seed=9)
    looks = np.array([look or "" for look in made.fitted.looks(fresh)])
    prevalence = images.fake.mean()
    share = sum(
        weight * (looks[fresh.fake == kind] != "").mean()
        for kind, weight in ((True, prevalence), (False, 1 - prevalence))
    )
    assert 0.2 < share <= 0.3
    assert (looks == "audit").mean() == pytest.approx(0.02 * (looks != "band").mean(), abs=0.003)
    only = images.take(parts == CHOOSE)
    coarse = choose_threshold(only.scores["coarse"][~only.fake], 0.01).fake_above
    assert (
        made.card.thresholds.true_positive_rate
        > (only.scores["coarse"][only.fake] >= coarse).mean() + 0.1
    )


def test_a_late_stage_counts_only_where_it_looked(images, parts):
    fitted = fit_card(divided(images, parts), MEMBERS, asked(rule="cascade"))
    looks = np.array([look or "" for look in fitted.looks(images)])
    blind = type(images)(
        **{
            **vars(images),
            "scores": images.scores
            | {"fine": np.where(looks == "", np.nan, images.scores["fine"])},
        }
    )
    assert np.array_equal(fitted.scores(blind), fitted.scores(images))


def test_copies_of_a_real_count_once(images, parts):
    config, division = asked(), divided(images, parts)
    again = np.concatenate(
        [np.arange(len(images)), np.flatnonzero((parts == CHOOSE) & ~images.fake)]
    )
    twice = divided(images.take(again), parts[again])
    fitted = fit_card(division, MEMBERS, config)
    assert len(twice.choosing) > len(division.choosing)
    assert (
        with_thresholds(fitted, twice, config).chosen
        == with_thresholds(fitted, division, config).chosen
    )


def test_one_detector_keeps_its_own_score_and_is_no_cascade(images, parts):
    alone = type(images)(**{**vars(images), "scores": {"fine": images.scores["fine"]}})
    card = fit_card(divided(alone, parts), MEMBERS[1:], asked()).card
    assert (card.rule, card.stacking, len(card.members)) == ("mean-logit", None, 1)
    both = images.take(parts != CHOOSE)
    usual, rare = (
        fit_card(divided(alone, parts), MEMBERS[1:], asked(prevalence=one)) for one in (None, 0.01)
    )
    once = fit(both.scores["fine"], both.fake)
    assert [usual.card.members[0].calibration, usual.prevalence] == [once, images.fake.mean()], (
        "one fit, on both parts"
    )
    expected = once(alone.scores["fine"].astype(float))
    assert usual.scores(alone) == pytest.approx(
        expected + logit(images.fake.mean()) - logit(both.fake.mean())
    )
    assert rare.scores(alone) == pytest.approx(expected + logit(0.01) - logit(both.fake.mean()))
    with pytest.raises(ConfigError, match="the run has one detector"):
        fit_card(divided(alone, parts), MEMBERS[1:], asked(rule="cascade"))
    with pytest.raises(ConfigError, match="--first 2: the run has 2 detectors"):
        fit_card(divided(images, parts), MEMBERS, asked(rule="cascade", first=2))
    with pytest.raises(ConfigError, match="--rule gated-mean: the run has 2 detectors"):
        fit_card(divided(images, parts), MEMBERS, asked(rule="gated-mean"))


def test_a_detector_that_knows_nothing_is_named(images, parts):
    turned = type(images)(
        **{**vars(images), "scores": images.scores | {"coarse": -images.scores["coarse"]}}
    )
    with pytest.raises(ConfigError, match="coarse"):
        fit_card(divided(turned, parts), MEMBERS, asked())


@pytest.fixture(scope="module")
def made(images, parts):
    division = divided(images, parts)
    return with_thresholds(fit_card(division, MEMBERS, asked()), division, asked())


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
    stated = {
        name: getattr(made.card.thresholds, name)
        for name in ("abstain_real", "abstain_fake", "upper_bound")
    }
    assert stated == {name: getattr(decisive, name) for name in stated}
    assert (made.card.thresholds.target_fpr, decisive.abstain_fake > 0) == (0.01, True)


def test_rate_that_reals_are_too_few_for_is_not_guaranteed(images, parts, made):
    rare, *others = made.card.operating_points  # 0.1 % needs 2,995 held-out reals, which are 1,500.
    assert not rare.is_guaranteed
    assert rare.upper_bound > rare.rate
    assert rare.false_positive_rate <= rare.rate
    assert all(point.is_guaranteed for point in others)


def test_target_rate_is_an_operating_point(images, parts):
    config, division = asked(fpr=0.02), divided(images, parts)
    card = with_thresholds(fit_card(division, MEMBERS, config), division, config).card
    [point] = [point for point in card.operating_points if point.rate == 0.02]
    assert point.threshold == card.thresholds.fake_above
    assert point.is_guaranteed
