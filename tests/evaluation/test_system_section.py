import math

import numpy as np
import pyarrow as pa
import pytest

from ray_app.evaluation import system_section
from ray_app.evaluation.groups import EvaluationGroup
from ray_app.evaluation.system_section import Resampling
from ray_app.evaluation.systems import System
from ray_app.metrics.arrays import ScoreHistogram
from ray_app.metrics.detection import detection_of

SYSTEM = System("one", "detector", "One", 0.0, True)
REAL, FAKE = EvaluationGroup("real", "real"), EvaluationGroup("whole", "flux")


def drawn(n, seed=0):
    rng = np.random.default_rng(seed)
    return {REAL: rng.normal(-1, 1.5, n), FAKE: rng.normal(1, 1.5, n)}


def figures_of(scores):
    fakes = ScoreHistogram.merged(ScoreHistogram.of(one) for group, one in scores.items() if group.kind != "real")
    return detection_of(fakes, ScoreHistogram.of(scores[REAL]))


def by_group(scores):
    return {group: ScoreHistogram.of(one) for group, one in scores.items()}


def sample_of(scores, count):
    rng = np.random.default_rng(1)
    rows = [(group.kind, group.generator, score) for group, some in scores.items() for score in rng.choice(some, count // 2, replace=False)]
    kinds, makers, values = zip(*[rows[place] for place in rng.permutation(len(rows))], strict=True)
    return pa.table({"kind": list(kinds), "generator": list(makers), "score:one": list(values)})


def test_a_sample_tells_the_spread_of_all():
    scores = drawn(100_000)
    figures = figures_of(scores)
    found = Resampling(None, sample_of(scores, 8_000)).with_intervals(figures, SYSTEM, by_group(scores))
    low, high = found["balanced_accuracy"].interval
    tpr, tnr = figures["tpr"].value, figures["tnr"].value
    wanted = 2 * 1.96 * math.sqrt(tpr * (1 - tpr) / 100_000 + tnr * (1 - tnr) / 100_000) / 2
    assert high - low == pytest.approx(wanted, rel=0.25)
    assert low < figures["balanced_accuracy"].value < high
    assert found["balanced_accuracy"].method == "bootstrap"
    assert found["auc"] == figures["auc"]


def test_few_images_are_drawn_as_they_are():
    scores = drawn(300)
    figures = figures_of(scores)
    first = Resampling(60, None).with_intervals(figures, SYSTEM, by_group(scores))
    assert first == Resampling(60, None).with_intervals(figures, SYSTEM, by_group(scores))
    assert all(one.interval for name, one in first.items() if one.value is not None), first
    assert first["log_loss"].interval[0] < first["log_loss"].value < first["log_loss"].interval[1]


def test_many_generators_are_drawn_whole():
    rng = np.random.default_rng(3)
    scores = {REAL: rng.normal(-1, 1, 200)} | {EvaluationGroup("whole", str(one)): rng.normal(rng.normal(1, 1), 1, 50) for one in range(12)}
    found = Resampling(60, None).with_intervals(figures_of(scores), SYSTEM, by_group(scores))
    assert found["f1"].method == "cluster bootstrap"


def test_none_where_none_are_wanted_or_can_be_had(monkeypatch):
    scores = drawn(300)
    figures = figures_of(scores)
    assert Resampling(0, None).with_intervals(figures, SYSTEM, by_group(scores)) == figures
    assert Resampling(0, None).of_view(figures, SYSTEM, by_group(scores)) == figures
    one_class = {REAL: scores[REAL], FAKE: scores[FAKE][:0]}
    alone = figures_of(one_class)
    assert Resampling(50, None).with_intervals(alone, SYSTEM, by_group(one_class)) == alone
    assert Resampling(50, None).of_view(figures, SYSTEM, by_group(scores))["f1"].interval is not None
    monkeypatch.setattr(system_section, "MOST_OF_VIEW", 100)
    assert Resampling(50, None).of_view(figures, SYSTEM, by_group(scores)) == figures


def test_the_calibration_error_of_right_chances_may_be_none():
    """Replicates of it lie too high: their own percentiles would shut out the truth, 0, in every one of these."""
    rng, held = np.random.default_rng(0), []
    for _ in range(10):
        scores = rng.normal(0, 2, 1_000)
        is_fake = rng.random(1_000) < 1 / (1 + np.exp(-scores))
        drawn_ones = {REAL: scores[~is_fake], FAKE: scores[is_fake]}
        figure = Resampling(60, None).with_intervals(figures_of(drawn_ones), SYSTEM, by_group(drawn_ones))["ece"]
        assert figure.interval[0] <= figure.value <= figure.interval[1]
        held.append(figure.interval[0] == 0)
    assert sum(held) >= 7
