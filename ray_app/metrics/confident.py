"""Labels that a classifier doubts with reason: confident learning. Knows probabilities and labels; knows no image.

Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70 (2021), arXiv 1911.00068. The authors'
cleanlab is under the AGPL, so the two formulas stand here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.metrics.arrays import Bools, Floats

FOLDS = 5
MOST_SEEN = 20_000  # images that a fold's classifier learns from; more change no figure here
_STRENGTHS = (0.001, 0.01, 0.1, 1.0)


@dataclass(frozen=True)
class Doubted:
    """`thresholds`: how sure the classifier is of real, and of fake, in the mean of those labelled so. `likely` (n,): the label that a row
    confidently belongs to, 0 real, 1 fake, -1 neither. `expected` (2, 2): how many labelled i are likely to be j, rows adding up to the
    counts of labels.
    """

    thresholds: tuple[float, float]
    likely: NDArray[np.int64]
    expected: Floats

    def suspicious(self, fakes: Bools) -> NDArray[np.int64]:
        """The rows whose confident label is not the given one."""
        return np.flatnonzero((self.likely >= 0) & (self.likely != fakes.astype(np.int64)))


def doubted(probabilities: ArrayLike, fakes: ArrayLike) -> Doubted:
    """What out-of-sample probabilities of fake (n,) say against labels (n,), true = fake. Raises ValueError where a class has no row."""
    chance, fake = np.asarray(probabilities, np.float64), np.asarray(fakes, np.bool_)
    if fake.all() or not fake.any():
        raise ValueError("confident learning needs both classes")
    both = np.stack([1 - chance, chance], axis=1)
    thresholds = np.array([both[~fake, 0].mean(), both[fake, 1].mean()])
    reached = np.where(both >= thresholds, both, -1.0)
    likely = np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)
    joint = np.array([[np.sum((likely == label) & (fake == given)) for label in (0, 1)] for given in (False, True)], np.float64)
    sums = joint.sum(axis=1, keepdims=True)
    shares = np.divide(joint, sums, out=np.eye(2), where=sums > 0)
    return Doubted((float(thresholds[0]), float(thresholds[1])), likely, shares * np.array([[(~fake).sum()], [fake.sum()]]))


def crossed_probabilities(features: Floats, fakes: Bools, groups: NDArray[np.int64], *, seed: int = 0) -> Floats:
    """(n,) the probability of fake by a logistic regression that saw no image of the same group; NaN where that could not be.

    features (n, d), finite, standardised here. Five folds of whole groups. How strongly weights are shrunk is chosen once, by the
    log-loss of the first fold.
    """
    random = np.random.default_rng(seed)
    names, codes = np.unique(groups, return_inverse=True)
    folds = random.permutation(len(names))[codes] % FOLDS
    chances = np.full(len(fakes), np.nan)
    strength: float | None = None
    for fold in range(FOLDS):
        seen, unseen = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(seen) > MOST_SEEN:
            seen = np.sort(random.choice(seen, MOST_SEEN, replace=False))
        if not len(unseen) or len(np.unique(fakes[seen])) < 2:
            continue
        tried = [strength] if strength is not None else list(_STRENGTHS)
        found = {one: _fitted(features[seen], fakes[seen], features[unseen], one) for one in tried}
        strength = strength or min(found, key=lambda one: _log_loss(found[one], fakes[unseen]))
        chances[unseen] = found[strength]
    return chances


def _fitted(seen: Floats, fakes: Bools, unseen: Floats, strength: float) -> Floats:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300)).fit(seen, fakes)
        return np.asarray(model.predict_proba(unseen)[:, 1], np.float64)


def _log_loss(chances: Floats, fakes: Bools) -> float:
    right = np.clip(np.where(fakes, chances, 1 - chances), 1e-12, 1)
    return float(-np.log(right).mean())
