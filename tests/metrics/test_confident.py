import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.metrics.confident import crossed_probabilities, doubted


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=40).filter(lambda rows: len({one for _, one in rows}) == 2))
def test_labels_are_doubted_as_the_paper_counts(rows):
    """Equations 1 and 2 of arXiv 1911.00068, image by image; of two classes reached the more probable one counts."""
    chances = [(1 - chance, chance) for chance, _ in rows]
    given_labels = [int(fake) for _, fake in rows]
    thresholds = [np.mean([one[label] for one, mine in zip(chances, given_labels, strict=True) if mine == label]) for label in (0, 1)]
    counts, suspicious = np.zeros((2, 2)), []
    for place, (one, mine) in enumerate(zip(chances, given_labels, strict=True)):
        reached = [label for label in (0, 1) if one[label] >= thresholds[label]]
        if reached:
            likely = max(reached, key=lambda label, one=one: one[label])
            counts[mine, likely] += 1
            suspicious += [place] if likely != mine else []
    found = doubted([chance for chance, _ in rows], given_labels)
    assert found.thresholds == pytest.approx(thresholds)
    assert found.suspicious(np.array(given_labels, bool)).tolist() == suspicious
    totals = np.array([given_labels.count(0), given_labels.count(1)])
    for label in (0, 1):
        expected = counts[label] / counts[label].sum() * totals[label] if counts[label].sum() else np.eye(2)[label] * totals[label]
        assert found.expected[label] == pytest.approx(expected)


def test_both_classes_are_needed():
    with pytest.raises(ValueError, match="both classes"):
        doubted([0.2, 0.4], [True, True])


def test_no_image_is_judged_by_its_own_group():
    """Each group has a direction of its own that tells its label; whoever saw the group would be right, whoever did not cannot be."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 6)
    fakes = rng.random(100)[groups] < 0.5
    features = rng.normal(0, 1, (100, 200))[groups] * 3 + rng.normal(0, 0.1, (600, 200))
    chances = crossed_probabilities(features, fakes, groups)
    alone = crossed_probabilities(features, fakes, np.arange(600))
    assert np.mean((chances > 0.5) == fakes) < 0.65
    assert np.mean((alone > 0.5) == fakes) > 0.95


def test_separable_classes_are_told_and_the_seed_decides():
    rng = np.random.default_rng(0)
    fakes = rng.random(400) < 0.3
    features = np.where(fakes, 2.0, -2.0)[:, None] + rng.normal(0, 1, (400, 3))
    one, again = (crossed_probabilities(features, fakes, np.arange(400), seed=4) for _ in range(2))
    assert np.array_equal(one, again)
    assert np.mean((one > 0.5) == fakes) > 0.97


def test_a_fold_that_cannot_be_learnt_has_no_probability():
    chances = crossed_probabilities(np.zeros((4, 1)), np.array([True, True, False, False]), np.array([0, 0, 1, 1]))
    assert np.isnan(chances).all()
