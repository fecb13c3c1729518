"""Which images of a cascade go on to all detectors: the band of early scores that finds most fakes at its share. Knows both scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_app.calibration.labelled import Places
from ray_app.errors import ConfigError
from ray_app.metrics.arrays import Bools, Floats
from ray_app.metrics.intervals import proportion_interval

_STARTS = 48
_RESAMPLES = 32
_FEW = 20_000  # images; of more, one look at them is sure enough


@dataclass(frozen=True)
class Band:
    """Both ends belong to it. `share`: of the images it was chosen on, at their prevalence; `upper_bound`: what it is at most."""

    low: float
    high: float
    share: float
    upper_bound: float


def choose_band(
    early: Floats, late: Floats, fake: Bools, *, share: float, prevalence: float, target: float, confidence: float = 0.95
) -> Band:
    """The band of `early` scores (n,) inside which `late` ones count, such that the share of images in it is at most `share`.

    Of bands that start at different places and are as wide as the share allows, the one with which most fakes are found where the share
    `target` of reals is called fake; of equal ones, the one with the smaller log-loss. So small a share of reals is few images, and which
    band they favour is chance: what is found is the mean over resampled images. The share is that of images of which `prevalence` are
    fake, and it is kept by the exact upper bounds of both classes' shares, each of half of what 1 − `confidence` leaves.
    Raises ConfigError where there are too few images to bound so small a share.
    """
    counter = _Counter(early, fake, prevalence, (1 - confidence) / 2)
    drawn = _resampled(fake)
    best: tuple[tuple[float, float], Band] | None = None
    for start in np.unique(np.linspace(0, len(counter.values) - 1, _STARTS).round().astype(int)).tolist():
        end = counter.widest(start, share)
        if end is None:
            continue
        low, high = float(counter.values[start]), float(counter.values[end])
        worth = _worth(np.where((early >= low) & (early <= high), late, early), fake, target, drawn)
        if best is None or worth > best[0]:
            best = worth, Band(low, high, counter.share(start, end), counter.bound(start, end))
    if best is None:
        raise ConfigError(
            f"no band of at most {100 * share:g} % of the images can be told from {len(early):,} images",
            hint="label more images, or give a larger --share",
        )
    return best[1]


def share_at(inside: Bools, fake: Bools, prevalence: float) -> float:
    """The share of images inside where `prevalence` of all are fake."""
    rates = [float(inside[fake == kind].mean()) if (fake == kind).any() else 0.0 for kind in (False, True)]
    return (1 - prevalence) * rates[0] + prevalence * rates[1]


class _Counter:
    """How many reals and fakes lie between two of the distinct early scores."""

    def __init__(self, early: Floats, fake: Bools, prevalence: float, tail: float) -> None:
        self.values = np.unique(early)
        self._weights, self._tail = (1 - prevalence, prevalence), tail
        self._n = tuple(int((fake == kind).sum()) for kind in (False, True))
        self._upto = tuple(
            np.concatenate([[0], np.searchsorted(np.sort(early[fake == kind]), self.values, "right")]) for kind in (False, True)
        )

    def share(self, start: int, end: int) -> float:
        """That of the scores from one place to another."""
        return sum(weight * count / n for weight, count, n in zip(self._weights, self._counts(start, end), self._n, strict=True) if n)

    def bound(self, start: int, end: int) -> float:
        """What that share is at most."""
        rates = [
            proportion_interval(count, n, self._tail)[1] if n else 1.0 for count, n in zip(self._counts(start, end), self._n, strict=True)
        ]
        return sum(weight * rate for weight, rate in zip(self._weights, rates, strict=True))

    def widest(self, start: int, share: float) -> int | None:
        """The last place up to which the bound is within the share; None where it is not even at the start."""
        if self.bound(start, start) > share:
            return None
        low, high = start, len(self.values) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bound(start, middle) <= share else (low, middle - 1)
        return low

    def _counts(self, start: int, end: int) -> tuple[int, int]:
        real, fake = (int(upto[end + 1] - upto[start]) for upto in self._upto)
        return real, fake


def _resampled(fake: Bools) -> list[tuple[Places, Places]]:
    """Places of reals and of fakes, drawn anew with replacement, each time as many; all of them once where they are many."""
    classes = np.flatnonzero(~fake), np.flatnonzero(fake)
    if len(fake) > _FEW:
        return [classes]
    random = np.random.default_rng(0)
    reals, fakes = ([random.choice(places, len(places)) for _ in range(_RESAMPLES)] for places in classes)
    return list(zip(reals, fakes, strict=True))


def _worth(scores: Floats, fake: Bools, target: float, drawn: Sequence[tuple[Places, Places]]) -> tuple[float, float]:
    """The share of fakes above the threshold that the share `target` of reals reach, and the log-loss with its sign turned."""
    found = [_found(scores[reals], scores[fakes], target) for reals, fakes in drawn]
    return float(np.mean(found)), -float(np.logaddexp(0, np.where(fake, -scores, scores)).mean())


def _found(reals: Floats, fakes: Floats, target: float) -> float:
    place = len(reals) - 1 - int(target * len(reals))
    return float((fakes > np.partition(reals, place)[place]).mean())
