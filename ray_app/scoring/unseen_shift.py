"""What a comparison of an archive with a calibration would not have noticed (`unseen_shift`): how far real scores may have risen.

A population's fakes may be any share of an archive, so reals of a new kind that score as fakes do look like more fakes, however many images
there are: no comparison of scores sees them, only labels do. A rise of all real scores is seen once it is large enough for the archive.
"""

from collections.abc import Mapping

import numpy as np

from ray_app.ensembles import EnsembleCard
from ray_app.metrics.arrays import Counts, Floats
from ray_app.metrics.significance import shift_of
from ray_app.metrics.survey_sampling import References
from ray_app.runs import document

_STEP, _STEPS = 0.05, 40  # standard deviations of the references, and how many steps are tried
_DRAWS, _SURE = 40, 38  # drawn archives, and in how many of them a shift that is called seen is noticed


def unseen_shift(card: EnsembleCard, references: References, counts: Mapping[str, Counts], flagged: int) -> document.UnseenShift | None:
    """The largest rise of all reals' scores that an archive of these `counts` per feature would hide in more than one case of twenty.

    Its false-positive rate is that of the references, so risen, at the card's threshold. `flagged`: images of the archive at or above that.
    Fakes are as many as the archive's scores fit best. None where the card's population has no scores, or the archive none.
    """
    features = {feature.name: feature for feature in card.population.features} if card.population else {}
    score = features.get("score")
    if score is None or not counts["score"].any():
        return None
    from scipy.stats import norm, rankdata

    n, real, fake = int(counts["score"].sum()), np.array(score.real, np.float64), np.array(score.fake, np.float64)
    share, tests = shift_of(counts["score"], real, fake).share, sum(bool(one.any()) for one in counts.values())
    normal = norm.ppf((rankdata(references.scores) - 0.5) / references.n)
    bins = np.searchsorted(score.edges, references.scores, "left")
    generator = np.random.default_rng(0)

    def risen(step: int) -> Floats:
        """The share that each reference has of reals that are higher: of a normal distribution this tilt is a shift, and ties stay ties."""
        weights: Floats = np.exp(step * _STEP * normal)
        return np.asarray(weights / weights.sum())

    def noticed(step: int) -> bool:
        reals = np.bincount(bins, weights=risen(step), minlength=len(real))
        chances = (1 - share) * reals + share * fake / max(fake.sum(), 1.0)
        drawn = generator.multinomial(n, chances / chances.sum(), size=_DRAWS)
        shifts = (shift_of(one, real, fake) for one in drawn)
        return sum(shift.noticed(min(1.0, shift.p * tests)) for shift in shifts) >= _SURE

    low, high = 0, _STEPS + 1  # the largest step that may go unseen lies in low … high − 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if noticed(middle) else (middle, high)
    threshold, rise = card.thresholds.fake_above, low * _STEP
    tilted = risen(low) @ (references.scores >= threshold)
    # Where no reference reaches the threshold, a tilt of them has none there either.
    shifted = (references.scores + rise * references.scores.std() >= threshold).mean()
    return document.UnseenShift(
        standard_deviations=None if low == _STEPS else rise,
        false_positive_rate=1.0 if low == _STEPS else float(max(tilted, shifted)),
        flagged=flagged,
    )
