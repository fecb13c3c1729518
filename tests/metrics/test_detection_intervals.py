"""Intervals of figures of detection: which there are, that they are of further generators, and
never of no width.
"""

import numpy as np
import pytest

from ray_app.metrics import significance
from ray_app.metrics.arrays import ScoreHistogram
from ray_app.metrics.clusters import ClassSample
from ray_app.metrics.detection import detection_of
from ray_app.metrics.detection_intervals import ScoredClass, with_intervals


def scored(scores, names=None):
    return ScoredClass(ScoreHistogram.of(scores), ClassSample.of(np.asarray(scores, float), names))


def makers(k, each):
    return np.repeat([f"maker-{one}" for one in range(k)], each).astype(object)


def drawn(seed=0, apart=1.0):
    rng = np.random.default_rng(seed)
    return rng.normal(1, 1, 500) + np.repeat(rng.normal(0, apart, 10), 50), rng.normal(-1, 1, 500)


def given(fakes, reals, **how):
    return with_intervals(detection_of(fakes.scores, reals.scores, **how), fakes, reals, **how)


def test_generators_widen_what_hangs_on_them():
    fakes, reals = drawn()
    further, these = (
        given(scored(fakes, makers(10, 50)), scored(reals)),
        given(scored(fakes), scored(reals)),
    )
    assert further.keys() == these.keys()
    for name in (
        "tpr",
        "auc",
        "balanced_accuracy",
        "f1",
        "average_precision",
        "eer",
        "log_loss",
        "brier",
    ):
        assert further[name].value == these[name].value
        assert np.ptp(further[name].interval) > 1.5 * np.ptp(these[name].interval), name
    assert further["tnr"] == these["tnr"]
    assert these["auc"] == detection_of(*(ScoreHistogram.of(one) for one in (fakes, reals)))["auc"]


@pytest.mark.parametrize("names", [None, makers(10, 50)])
def test_where_nothing_is_wrong_no_interval_has_no_width(names):
    found = given(scored(np.full(500, 3.0), names), scored(np.full(500, -3.0)))
    for name in (
        "tpr",
        "auc",
        "balanced_accuracy",
        "accuracy",
        "average_precision",
        "eer",
        "tpr_at_fpr_1",
        "f1",
    ):
        low, high = found[name].interval
        assert low <= found[name].value <= high
        assert high - low > 0.003, name
    assert found["tpr"].interval[0] < (0.8 if names is not None else 0.995), (
        "ten generators say less than 500 images"
    )


def test_a_threshold_of_few_reals_has_no_lower_end():
    fakes, reals = drawn()
    found = given(scored(fakes), scored(reals[:150]))
    assert found["tpr_at_fpr_1"].interval[0] == 0.0, "one of 150 reals may be any of the highest"
    assert given(scored(fakes), scored(reals))["tpr_at_fpr_1"].interval[0] > 0.0


def test_a_lead_at_seven_generators_of_ten_is_no_lead_at_further_ones():
    """b is better at seven and worse at three: DeLong and McNemar are sure of a difference, which
    is one of these ten alone.
    """
    rng = np.random.default_rng(0)
    fake, names = (
        np.arange(1_000) < 500,
        np.concatenate([makers(10, 50), np.full(500, "real", object)]),
    )
    lead = np.concatenate([np.repeat([1.0] * 7 + [-1.0] * 3, 50), np.zeros(500)])
    a = rng.normal(np.where(fake, 0.5, -0.5), 1.0)
    b = a + lead + rng.normal(0, 0.2, 1_000)
    right = [(one > 0) == fake for one in (a, b)]
    further, these = significance.delong(a, b, fake, names), significance.delong(a, b, fake, None)
    assert these == significance.delong(a, b, fake)
    assert further.difference.value == pytest.approx(these.difference.value)
    assert further.test == "clustered delong"
    assert significance.delong(a, a, fake, names).p == 1.0
    assert these.p < 0.01 < 0.05 < further.p
    assert np.ptp(further.difference.interval) > 2 * np.ptp(these.difference.interval)
    shares, of_images = (
        significance.mcnemar(*right, fake, names),
        significance.mcnemar(*right, fake, None),
    )
    assert of_images == significance.mcnemar(*right)
    assert of_images.p < 0.01 < 0.05 < shares.p
    assert shares.difference.value == pytest.approx(of_images.difference.value)
