import numpy as np
import pytest

from ray_app.evaluation.suggestion import DetectorCosts, LabelledScores, calibrated, folds_of, suggest
from ray_app.metrics.arrays import ScoreHistogram
from ray_app.metrics.intervals import auc_of

FREE = DetectorCosts((1.0,) * 8, (None,) * 8)
NAMES, COPIES = "01234567", ("4", "5")


def suggested(images, costs=FREE, folds=None, **how):
    """Its steps, and whom others are copies of."""
    scores, fake, groups = images
    return suggest(NAMES, LabelledScores(scores, fake, folds_of(groups, fake) if folds is None else folds), costs, **how)


def drawn(groups=40, per_group=30, seed=0, skill=(0.0, 1.2, 0.0, 0.0, 1.6, 1.6, 1.0, 0.0)):
    """Eight detectors of which 1, 4 (with its copy 5) and 6 know something; half of the groups are fakes, some a little harder."""
    random = np.random.default_rng(seed)
    codes = np.repeat(np.arange(groups), per_group)
    fake = codes % 2 == 1
    own = random.normal(size=(groups, 8))[codes] * 0.3 * (np.array(skill) > 0)
    scores = random.normal(size=(len(codes), 8)) + own + np.outer(fake, skill) - 0.5
    scores[:, 5] = 3 * scores[:, 4] + 0.01 * random.normal(size=len(codes))
    return scores, fake, codes


def test_it_picks_what_knows_something_and_never_both_copies():
    steps, copies = suggested(drawn())
    assert sorted("4" if step.detector == "5" else step.detector for step in steps) == ["1", "4", "6"]
    assert copies in ({"5": "4"}, {"4": "5"})
    assert steps[0].detector in COPIES
    assert all(step.gain > 0 and step.lowest <= step.figure <= step.highest for step in steps)


def test_its_figure_is_not_optimistic():
    """Of detectors that know nothing the best by chance is chosen, and said to know nothing; of others it says what fresh images do."""
    noise = [drawn(groups=20, per_group=20, seed=seed, skill=(0.0,) * 8) for seed in range(6)]
    told = [suggested(images, size=1)[0][0].figure for images in noise]
    best = [max(area(scores[:, at], fake) for at in range(8)) for scores, fake, _ in noise]
    assert np.mean(best) > 0.53
    assert abs(np.mean(told) - 0.5) < 0.03

    scores, fake, groups = drawn(groups=60)
    steps, _ = suggested((scores, fake, groups), size=2)
    chosen = [NAMES.index(step.detector) for step in steps]
    new, truth, _ = drawn(groups=200, per_group=10, seed=1)
    fresh = area(calibrated(scores[:, chosen], fake, new[:, chosen]).mean(axis=1), truth)
    assert steps[-1].figure == pytest.approx(fresh, abs=0.02)


def area(scores, fake):
    return auc_of(ScoreHistogram.of(scores[fake]), ScoreHistogram.of(scores[~fake])).value


def test_the_most_per_cost_begins_with_what_is_cheap():
    costs = DetectorCosts((1, 1, 1, 1, 50, 50, 1, 1), (None,) * 8)
    steps, _ = suggested(drawn(), costs, per_cost=True)
    assert steps[0].detector == "1"
    assert steps[-1].detector in COPIES
    assert [step.cost for step in steps] == [1, 2, 52]


def test_folds_keep_groups_whole_and_have_both_classes():
    _, fake, groups = drawn(groups=14, per_group=7)
    folds = folds_of(groups, fake)
    assert sorted(set(folds.tolist())) == list(range(5))
    assert all(len(set(folds[groups == one].tolist())) == 1 for one in range(14))
    assert all(len(set(fake[folds == one].tolist())) == 2 for one in range(5))


@pytest.mark.parametrize("by", ["tpr_at_fpr_1", "tpr_at_fpr_5"])
def test_other_aims(by):
    scores, fake, groups = drawn(per_group=40)
    steps, _ = suggested((scores, fake, groups), size=2, by=by)
    assert steps[0].detector in COPIES
    assert 0 < steps[0].figure < 1
    with pytest.raises(ValueError, match="too few"):
        suggested((scores[::20], fake[::20], groups[::20]), by=by)
    with pytest.raises(ValueError, match="three folds"):
        suggested((scores, fake, groups), folds=groups % 2, by=by)
