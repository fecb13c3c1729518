import numpy as np
import pytest

from ray_app.ensembles import EnsembleMember, ensemble_of, logit
from ray_app.evaluation.calibrate.division import CHOOSE, FIT, groups_of, split
from ray_app.evaluation.calibrate.fit_card import calibrated, fit_card, with_thresholds
from ray_app.evaluation.calibrate.run import by_quality, generators_left_out, systems_before_and_after
from ray_app.metrics import ScoreHistogram, debiased_ece, log_loss
from tests.evaluation.calibrate.drawn import asked, divided, drawn

MEMBERS = (EnsembleMember(detector="coarse"), EnsembleMember(detector="fine"))
BEFORE = ensemble_of(["coarse", "fine"])
NONE = {"coarse": None, "fine": None}


@pytest.fixture(scope="module")
def images():
    made = drawn(3_000, 2_000)
    made.quality[:] = np.random.default_rng(1).choice([np.nan, 45, 72, 85, 95], len(made))
    return made


@pytest.fixture(scope="module")
def parts(images):
    return split(images, groups_of(images))


@pytest.fixture(scope="module")
def made(images, parts):
    division = divided(images, parts)
    return with_thresholds(fit_card(division, MEMBERS, asked()), division, asked())


def written(rows):
    return [row.written() for row in rows]


def chances_of(scores, fake):
    fakes, reals = ScoreHistogram.of(scores[fake]), ScoreHistogram.of(scores[~fake])
    return log_loss(fakes, reals).value, debiased_ece(fakes, reals).value


def test_log_loss_and_ece_fall_on_held_out_images(images, parts, made):
    choosing = images.take(parts == CHOOSE)
    rows = written(systems_before_and_after(made.fitted, choosing, BEFORE, NONE))
    assert [row["name"] for row in rows] == ["ensemble", "coarse", "fine"]
    for row in rows[:2]:
        assert row["after"]["log_loss"]["value"] < 0.6 * row["before"]["log_loss"]["value"]
        assert row["after"]["ece"]["value"] < 0.4 * row["before"]["ece"]["value"]
    mean = np.mean([column.astype(float) for column in choosing.scores.values()], axis=0)
    before = rows[0]["before"]
    assert (before["log_loss"]["value"], before["ece"]["value"]) == pytest.approx(chances_of(mean, choosing.fake))
    shares = [images.fake[parts == part].mean() for part in (CHOOSE, FIT)]
    fine = calibrated(choosing, made.fitted.calibrations)[:, 1] + logit(shares[0]) - logit(shares[1])
    after = rows[2]["after"]
    assert (after["log_loss"]["value"], after["ece"]["value"]) == pytest.approx(chances_of(fine, choosing.fake))


def test_every_generator_is_judged_by_a_card_that_never_saw_it(images, parts, made):
    rows = written(generators_left_out(divided(images, parts), MEMBERS, asked(), made))
    names = np.array([name or "" for name in images.generator])
    assert {row["generator"]: row["n"] for row in rows} == {name: int((names == name).sum()) for name in set(names) - {""}}
    assert [row["n"] for row in rows] == sorted((row["n"] for row in rows), reverse=True)
    for row in rows:
        its = names == row["generator"]
        [part] = set(parts[its].tolist())
        assert row["fitted_again"] == (part != CHOOSE)
        rest, places = images.take(~its), parts[~its]
        if len(set(places[rest.fake].tolist())) < 3:
            places = split(rest, groups_of(rest))
        other = divided(rest, places)
        one = made if part == CHOOSE else with_thresholds(fit_card(other, MEMBERS, asked()), other, asked())
        scores = one.fitted.scores(images.take(its))
        assert row["found"]["value"] == (scores >= one.card.thresholds.fake_above).mean()
        assert row["found"]["n"] == row["n"]
        assert 0.7 < row["auc"]["value"] < 1
        assert row["log_loss"]["value"] < 0.5


def test_qualities_are_bands_of_the_held_out_images(images, parts, made):
    choosing = images.take(parts == CHOOSE)
    rows = written(by_quality(made, choosing))
    assert [row["quality"] for row in rows] == ["not a JPEG", "1–49", "70–79", "80–89", "95–100"]
    assert sum(row["n_real"] for row in rows) == int((~choosing.fake).sum())
    scores = made.fitted.scores(choosing)
    among = choosing.quality == 72
    assert rows[2]["found"]["value"] == (scores[among & choosing.fake] >= made.card.thresholds.fake_above).mean()
    assert rows[2]["false_positives"]["value"] == (scores[among & ~choosing.fake] >= made.card.thresholds.fake_above).mean()
    weighed = sum(row["false_positives"]["value"] * row["n_real"] for row in rows)
    assert weighed == pytest.approx(made.chosen.false_positives)
