"""P(false-positive rate > 1 %) ≤ 5 % over calibrations, whatever reals hang together by."""

import numpy as np
import pytest

from tests.statistics.labelled import (
    calibrated,
    clustered,
    dominated,
    images_of,
    independent,
    photo_sets,
    raw_threshold,
    tied,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEEDS, TARGET = 1_000, 0.01
CLAIM = "1. more than 1 % of further reals are called fake"


SETTINGS = {
    "2,000 independent reals": (lambda rng: independent(rng), {}, {}),
    "one source of 20 %, lower by 1.5 sd": (lambda rng: dominated(rng, [(0.2, -1.5)]), {}, {}),
    "one source of 40 %, lower by 1.5 sd": (lambda rng: dominated(rng, [(0.4, -1.5)]), {}, {}),
    "one source of 50 %, lower by 1.5 sd": (lambda rng: dominated(rng, [(0.5, -1.5)]), {}, {}),
    "one source of 20 %, lower by 0.5 sd": (lambda rng: dominated(rng, [(0.2, -0.5)]), {}, {}),
    "one source of 40 %, lower by 0.5 sd": (lambda rng: dominated(rng, [(0.4, -0.5)]), {}, {}),
    "one source of 10 %, higher by 1 sd": (lambda rng: dominated(rng, [(0.1, 1.0)]), {}, {}),
    "two sources of 30 %, ±0.3 sd": (lambda rng: dominated(rng, [(0.3, 0.3), (0.3, -0.3)]), {}, {}),
    "one source of 50 %, lower by 1.5 sd, --share-sources": (lambda rng: dominated(rng, [(0.5, -1.5)]), {}, {"share_sources": True}),
    "six generators editing their own photographs": (photo_sets, {"edits": True}, {}),
    "six generators editing their own photographs, --share-generators": (photo_sets, {"edits": True}, {"share_generators": True}),
    "60 equal sources, correlation 0.3, archive of further ones": (lambda rng: clustered(rng), {}, {}),
    "60 sources of 5 to 100 reals, correlation 0.1": (
        lambda rng: clustered(rng, correlation=0.1, sizes=rng.integers(5, 100, 60)), {}, {}),
    "200 equal sources, correlation 0.3, scores in halves": (lambda rng: tied(clustered(rng, 200, 10)), {}, {}),
    "scores in halves": (lambda rng: tied(independent(rng)), {}, {}),
    "4 fakes to 2,000 reals": (lambda rng: independent(rng), {"fakes": 4, "generators": 4}, {}),
}  # fmt: skip


def rates(draw, images, options, seeds=SEEDS, first=0):
    """The true false-positive rate of each calibration; NaN where it was refused."""
    found = np.full(seeds, np.nan)
    for seed in range(seeds):
        rng = np.random.default_rng(first + seed)
        reals = draw(rng)
        made = calibrated(images_of(rng, reals, **images), seed=seed, **options)
        if made is not None:
            found[seed] = reals.share_above(raw_threshold(made))
    return found


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_promise_holds(setting, simulated):
    found = rates(*SETTINGS[setting])
    simulated(CLAIM, setting, 0.05, found > TARGET, np.isfinite(found))
