import numpy as np
import pytest
from scipy.stats import false_discovery_control

from ray_app.metrics.survey_sampling import References, discoveries, fewest_listed


def test_the_list_is_scipys():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        reals, scores = np.round(rng.normal(0, 1, 120), 1), np.round(rng.normal(rng.choice([0, 3.5], 80), 1), 1)
        references = References.of(reals)
        found = discoveries(references, references.counted(scores), rate=0.2)
        p = np.array([(1 + sum(real >= score for real in reals)) / 121 for score in scores])
        listed = scores > found.above
        assert listed.tolist() == (false_discovery_control(p) <= 0.2 + 1e-12).tolist()
        assert (found.count, found.tested) == (listed.sum(), 80)
        assert found.p_value is None if not found.count else found.p_value == pytest.approx(p[listed].max())


def test_pieces_add_up_and_the_rate_is_exact():
    references = References.of(np.arange(19.0))
    counts = references.counted(np.array([20.0])) + references.counted(np.array([-1.0, 30.0]))
    assert counts.tolist() == [2, *[0] * 18, 1]
    assert discoveries(references, counts, 0.075).count == 2  # 1/20 = .075 × 2/3, no more
    assert discoveries(references, counts, 0.0749).count == 0
    everything = discoveries(references, references.counted(np.full(7, 20.0)), 0.05)
    assert (everything.count, everything.above, everything.p_value) == (7, 18.0, 0.05)


def test_too_few_references_list_nothing_however_high_the_scores():
    references = References.of(np.zeros(100))
    assert fewest_listed(references, 1000, 0.05) == 199
    few = references.counted(np.concatenate([np.full(198, 9.0), np.full(802, -1.0)]))
    enough = references.counted(np.concatenate([np.full(199, 9.0), np.full(801, -1.0)]))
    assert discoveries(references, few, 0.05).count == 0
    assert discoveries(references, enough, 0.05).count == 199


def test_no_scores_and_no_references():
    references = References.of([1.0])
    assert discoveries(references, references.counted(np.empty(0)), 0.05).count == 0
    for bad in ([], [np.nan], [np.inf]):
        with pytest.raises(ValueError, match="finite"):
            References.of(bad)
