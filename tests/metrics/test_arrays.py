import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.metrics.arrays import ScoreHistogram
from tests.metrics.drawn import EMPTY

FEW = st.lists(st.sampled_from([-1e300, -2.5, -0.0, 0.0, 0.1, 3.0, 1e300]), max_size=40)


def same(one, other):
    return (
        np.array_equal(one.values, other.values)
        and np.array_equal(one.counts, other.counts)
        and one.counts.dtype == other.counts.dtype
    )


@given(FEW, st.lists(st.integers(0, 40), max_size=6))
def test_that_of_pieces_is_that_of_all_however_they_are_cut(scores, cuts):
    pieces = np.split(np.array(scores), sorted(min(cut, len(scores)) for cut in cuts))
    whole = ScoreHistogram.of(scores)
    assert same(ScoreHistogram.merged(ScoreHistogram.of(piece) for piece in pieces), whole)
    two = ScoreHistogram.merged([ScoreHistogram.of(piece) for piece in pieces[::2]])
    assert same(
        ScoreHistogram.merged(
            [ScoreHistogram.merged([ScoreHistogram.of(piece) for piece in pieces[1::2]]), two]
        ),
        whole,
    )


@given(FEW, FEW)
def test_its_counts_are_those_of_the_scores(scores, thresholds):
    whole, raw = ScoreHistogram.of(scores), np.array(scores)
    assert whole.n == len(scores)
    below, up_to = whole.below_and_up_to(np.array(thresholds))
    assert (
        below.tolist()
        == whole.below(np.array(thresholds)).tolist()
        == [(raw < threshold).sum() for threshold in thresholds]
    )
    assert up_to.tolist() == [(raw <= threshold).sum() for threshold in thresholds]
    assert [whole.above(threshold) for threshold in thresholds] == [
        (raw > threshold).sum() for threshold in thresholds
    ]
    assert [whole.at_or_above(threshold) for threshold in thresholds] == [
        (raw >= threshold).sum() for threshold in thresholds
    ]
    assert whole.ranked(np.arange(len(scores))).tolist() == sorted(scores)


def test_scores_of_no_image_stand_at_no_place_and_that_of_nothing_counts_nothing():
    resampled = ScoreHistogram(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0, 2, 0, 1]))
    assert resampled.n == 3
    assert resampled.ranked([0, 1, 2]).tolist() == [1.0, 1.0, 3.0]
    assert (EMPTY.n, EMPTY.above(0), EMPTY.at_or_above(0)) == (0, 0, 0)
    assert same(ScoreHistogram.merged([]), EMPTY)
    assert same(ScoreHistogram.merged([EMPTY, EMPTY]), EMPTY)


@pytest.mark.parametrize(
    ("bad", "words"),
    [(np.nan, "1 of 3 scores are not finite, the first at position 1: nan"), (-np.inf, "-inf")],
)
def test_a_score_that_is_no_number_is_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        ScoreHistogram.of([1.0, bad, 2.0])
