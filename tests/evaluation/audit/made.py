"""Runs whose every image is known to be real or fake: what audits are tried on."""

import numpy as np
import pyarrow as pa

from benchmarks.evaluation import write_run
from ray_app.ensembles import sigmoid
from tests.make.evaluations import cut

FAKE_ABOVE, REAL_BELOW = 1.5, -0.5


def archive(count=6000, share=0.15, seed=0, failing=0.02, without=0.01):
    """Rows of a run by column, and whether each is fake. Some failed, and some have no score."""
    rng = np.random.default_rng(seed)
    fake = rng.random(count) < share
    score = rng.normal(np.where(fake, 2.0, -2.5), 1.6)
    ok, has = rng.random(count) >= failing, rng.random(count) >= without
    decided = np.select([score >= FAKE_ABOVE, score <= REAL_BELOW], ["fake", "real"], "abstain")
    verdict = np.where(has, decided, "abstain")
    doubt = np.where(has, "inside the abstain band", "a: no score")
    reason = np.where(verdict == "abstain", doubt, None)
    known = ok & has
    columns = {
        "image_id": np.unique(rng.integers(-(2**62), 2**62, 2 * count))[:count],
        "uri": [f"/photos/{number:06d}.jpg" for number in range(count)],
        "member": [None if number % 5 else f"{number}.png" for number in range(count)],
        "status": np.where(ok, "ok", "corrupt_image").tolist(),
        "score": pa.array(score, mask=~known),
        "probability": pa.array(sigmoid(score), mask=~known),
        "verdict": [str(one) if good else None for one, good in zip(verdict, ok, strict=True)],
        "verdict_reason": [one if good else None for one, good in zip(reason, ok, strict=True)],
    }
    return columns, fake


def run_of(folder, columns, places=(), ensemble=None):
    """A finished run of such rows, in a published file for each piece."""
    return write_run(folder, cut(columns, places), ("a",), ensemble)


def truth_of(columns, fake):
    """Whether an image is fake, by its id."""
    return dict(zip(columns["image_id"].tolist(), fake.tolist(), strict=True))
