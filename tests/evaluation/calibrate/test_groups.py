"""Reals that hang together: no division favours their threshold, and too few sources, or one that
dominates, are refused.
"""

import numpy as np
import pytest

from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.division import CHOOSE, draw_parts, group_images
from tests.statistics.labelled import (
    assembled,
    clustered,
    dominated,
    images_of,
    photo_sets,
    raw_threshold,
)


def test_large_group_is_chosen_on_as_often_as_others():
    rng = np.random.default_rng(0)
    images = images_of(rng, clustered(rng, sources=40, sizes=[400] + [10] * 39))
    groups = group_images(images)
    large = groups[0]
    chosen = np.array(
        [draw_parts(images, groups, seed=seed)[groups == large][0] == CHOOSE for seed in range(60)]
    )
    assert 0.3 < chosen.mean() < 0.7


@pytest.mark.parametrize(
    ("draw", "more", "words", "hint"),
    [
        (lambda rng: dominated(rng, [(0.5, -1.5)]), {}, "of 1,001 groups are worth .* 'source 0' has 50 %", "--share-sources"),
        (lambda rng: clustered(rng, 6, 300), {}, "form 6 groups .* with fewer than 10, nothing can be guaranteed", "--share-sources"),
        (photo_sets, {"edits": True}, "form 6 groups", "--share-generators"),
    ],
)  # fmt: skip
def test_too_few_groups_of_reals_are_refused(draw, more, words, hint):
    rng = np.random.default_rng(1)
    with pytest.raises(ConfigError, match=words) as refused:
        assembled(images_of(rng, draw(rng), **more))
    assert hint in refused.value.hint


def test_sources_may_be_shared_and_then_count_as_images():
    rng = np.random.default_rng(2)
    reals = dominated(rng, [(0.5, -1.5)])
    found = assembled(images_of(rng, reals), share_sources=True)
    assert (found.overall.groups, found.overall.effective) == (2_000, 2_000)
    assert reals.share_above(raw_threshold(found)) < 0.01
