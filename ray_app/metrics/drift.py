"""Compare the images of an archive with those that an ensemble was calibrated on (`find_shifts`).

If they differ too much in a property, such as the width or the score, the calibration may not hold
for the archive. The measure is the population stability index.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics.arrays import Counts, Floats

# Below the first value a population is stable, and from the second value on it is another one
# (Siddiqi 2006, Credit Risk Scorecards).
NOTICED_PSI = 0.1
LIMIT_PSI = 0.25
# The index of a small archive is large by chance alone. This is the probability that any property
# of an archive without a difference is noticed.
NOTICED_P = 0.001

# Added to each bin, so that the index of an empty bin is finite.
_HALF = 0.5
# Fractions of fakes in the mixtures that are tried.
FRACTIONS = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True)
class Shift:
    """How much an archive differs from the calibration images in one property, such as the width.

    Calibration images are the labelled images that an ensemble was calibrated on.

    Attributes:
        psi: Population stability index of the archive and a mixture of real and fake calibration
            images. The value 0 means no difference.
        chance: The largest index that is plausible by chance. The probability that an archive
            without a difference exceeds it in any property is less than `NOTICED_P`.
        fakes: Fraction of fakes in the mixture of calibration images.
        images: Number of images of the archive that have the property.
    """

    psi: float
    chance: float
    fakes: float
    images: int

    @property
    def limit(self) -> float:
        """The highest population stability index at which the archive counts as not different.

        The limit is the larger one of `NOTICED_PSI` and `chance`, the largest index that is
        plausible by chance.
        """
        return max(NOTICED_PSI, self.chance)

    @property
    def is_noticed(self) -> bool:
        """Whether the difference is worth a warning: `psi` is above `NOTICED_PSI` and `chance`."""
        return self.psi > self.limit

    @property
    def is_beyond(self) -> bool:
        """Whether the difference is so large that the calibration does not hold for the archive.

        The index is then above `LIMIT_PSI` and `chance`.
        """
        return self.psi > max(LIMIT_PSI, self.chance)

    @property
    def is_conclusive(self) -> bool:
        """Whether the archive has enough images to show a difference of `LIMIT_PSI`.

        With enough images, a difference that large is not plausible by chance.
        """
        return self.chance < LIMIT_PSI


def find_shifts(
    counts: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], *, score: str = "score"
) -> dict[str, Shift]:
    """Compare an archive with the images that an ensemble was calibrated on, for each property.

    A property is, for example, the width or the score. An archive may have any fraction of fakes.
    Compared with the calibration images as they are, it would differ because of its fraction of
    fakes alone. So each property is compared with a mixture of the calibration's real images and
    fakes. The fraction of fakes in the mixture is the one that explains the property best.

    Only fractions at which the scores do not differ noticeably are tried. Otherwise, real images
    whose properties have become like those of fakes would be treated as fakes. If the scores differ
    at every fraction, the fraction with the least difference is used.

    Args:
        counts: By property, three numbers of images per bin (k,): of the archive, and of the
            calibration's real images and fakes. At least one property must count every image.
        score: The property with the scores, which limits the fractions of fakes that are tried.

    Returns:
        The difference in each property that both the archive and the calibration's real images
        have.
    """
    n_real = max((np.sum(real) for _, real, _ in counts.values()), default=0)
    n_fake = max((np.sum(fake) for _, _, fake in counts.values()), default=0)
    tested = {name: bins for name, bins in counts.items() if np.any(bins[0]) and np.any(bins[1])}
    if not tested:
        return {}
    fractions = FRACTIONS if n_fake else FRACTIONS[:1]
    per_real, per_fake = (1 - fractions) / n_real, fractions / max(n_fake, 1)
    p = NOTICED_P / len(tested)  # Bonferroni correction.
    indices, chances, excess = dict[str, Floats](), dict[str, Floats](), dict[str, Floats]()
    for name, bins in tested.items():
        archive, real, fake = (np.asarray(images, np.float64) for images in bins)
        indices[name] = _mixture_indices(archive, real, fake, per_real, per_fake)
        chances[name] = _chance_indices(archive, real, fake, per_real, per_fake, p)
        excess[name] = indices[name] / np.maximum(NOTICED_PSI, chances[name])
    possible = np.ones(len(fractions), bool)
    if score in tested:
        possible = excess[score] <= max(1.0, excess[score].min())
    shifts = {}
    for name, bins in tested.items():
        best = int(np.where(possible, excess[name], np.inf).argmin())
        shifts[name] = Shift(
            psi=float(indices[name][best]),
            chance=float(chances[name][best]),
            fakes=float(fractions[best]),
            images=int(np.sum(bins[0])),
        )
    return shifts


def _mixture_indices(
    archive: Floats, real: Floats, fake: Floats, per_real: Floats, per_fake: Floats
) -> Floats:
    """Return the stability index for each mixture (s,), from the weights of one real and one fake.

    The weights refer to all images. So for a property that only some images have, such as the JPEG
    quality, the mixture has the right numbers of reals and fakes with this property.
    """
    expected = np.outer(per_real, real + _HALF) + np.outer(per_fake, fake + _HALF)
    return _stability_index(_smooth(archive), expected / expected.sum(axis=1, keepdims=True))


def _chance_indices(
    archive: Floats, real: Floats, fake: Floats, per_real: Floats, per_fake: Floats, p: float
) -> Floats:
    """Return for each mixture (s,) the index that chance alone exceeds with probability `p`.

    Without a difference, the index is about χ² of (bins − 1) times 1/n + 1/m, for samples of n and
    m images (Yurdakul 2018). The mixture is a sample as well: its 1/m is at most that of its reals
    and fakes in their fractions.
    """
    from scipy.stats import chi2

    bins = int(((archive + real + fake) > 0).sum())
    if bins < 2:
        return np.zeros(len(per_real))
    reals, fakes = per_real * real.sum(), per_fake * fake.sum()
    total = reals + fakes
    fraction = np.divide(fakes, total, out=np.zeros(len(total)), where=total > 0)
    spread = 1 / archive.sum() + (1 - fraction) / real.sum() + fraction / max(fake.sum(), 1.0)
    return np.asarray(spread * chi2.isf(p, bins - 1))


def _stability_index(first: Floats, second: Floats) -> Floats:
    """Return the population stability index of fractions per bin (…, k)."""
    return np.asarray(((first - second) * np.log(first / second)).sum(axis=-1))


def _smooth(counts: Floats | Counts) -> Floats:
    """Return the fractions of the bins, with half an image added to each."""
    smoothed = np.asarray(counts, np.float64) + _HALF
    return np.asarray(smoothed / smoothed.sum())
