import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from ray_app.evaluation import conventions
from ray_app.metrics.histograms import ScoreHistogram


def generator(label, right, n, unscored=0):
    return {"name": "g", "label": label, "n": n, "unscored": unscored, "rate": {"value": right / n if n else None, "n": n}}


def test_f1_of_even_counts_is_the_f1_of_evenly_many_images():
    fakes, reals = [generator("fake", 30, 40), generator("fake", 5, 60)], [generator("real", 70, 100)]
    truth = [1] * 100 + [0] * 100
    said = [1] * 35 + [0] * 65 + [1] * 30 + [0] * 70
    assert conventions.f1_even(fakes, reals).value == pytest.approx(f1_score(truth, said), abs=1e-12)
    assert conventions.balanced(fakes, reals).value == pytest.approx(accuracy_score(truth, said), abs=1e-12)


def test_the_meaningless_f1_is_that_of_every_source_by_itself():
    """Brute force: each source is a data set of its own, with scikit-learn's F1, and they are averaged by images."""
    sources = [("real", 95, 100), ("fake", 30, 40), ("fake", 60, 60)]
    parts = []
    for label, right, n in sources:
        truth = np.full(n, label == "fake")
        said = np.where(np.arange(n) < right, truth, ~truth)
        parts.append((n, f1_score(truth, said, zero_division=0.0)))
    expected = sum(n * f1 for n, f1 in parts) / sum(n for n, _ in parts)
    found = conventions.f1_by_source([generator(*one) for one in sources])
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert conventions.f1_by_source([generator("real", 100, 100)]).value == 0.0


def test_missing_predictions_count_as_wrong():
    found = conventions.missing_is_wrong([generator("fake", 30, 40, 10), generator("real", 50, 50)])
    assert (found.value, found.n) == (0.8, 100)
    assert found.interval[0] < 0.8 < found.interval[1]


def test_the_oracle_threshold_is_the_best_of_the_grid():
    rng = np.random.default_rng(0)
    fakes, reals = rng.normal(1, 2, 300).astype(np.float32), rng.normal(-1, 1, 200).astype(np.float32)
    chances, truth = 1 / (1 + np.exp(-np.concatenate([fakes, reals], dtype=np.float64))), np.repeat([True, False], [300, 200])
    best = max(accuracy_score(truth, chances > point) for point in np.linspace(0, 1, 100))
    found = conventions.oracle_accuracy(ScoreHistogram.of(fakes), ScoreHistogram.of(reals))
    assert found.value == pytest.approx(best, abs=1e-12)
    assert best >= accuracy_score(truth, chances > 0.5)


@pytest.mark.parametrize(
    "found",
    [
        conventions.f1_by_source([]),
        conventions.missing_is_wrong([]),
        conventions.told_right([generator("fake", 0, 0)]),
        conventions.balanced([generator("fake", 1, 2)], []),
        conventions.f1_even([], [generator("real", 1, 2)]),
        conventions.oracle_accuracy(ScoreHistogram.of([]), ScoreHistogram.of([1.0])),
    ],
)
def test_what_is_not_defined_has_a_reason(found):
    assert found.value is None
    assert found.why
