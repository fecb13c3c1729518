"""How many flags will be wrong, from the rates measured at the thresholds. Pure arithmetic."""

import math
from dataclasses import dataclass

from ray_app.errors import ConfigError
from ray_app.reports.run_summary import Thresholds

PRIORS = (0.001, 0.01, 0.1)
_Z95 = 1.959964  # 97.5 % point of the normal distribution: a two-sided 95 % interval


@dataclass(frozen=True)
class Rate:
    """A measured rate with its 95 % interval; the interval is the rate itself where n is not known."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RightShare:
    """What flags are worth if `prior` of the archive is fake; `right` is None where nothing would be flagged."""

    prior: float
    flags: float
    missed: float
    right: float | None
    right_low: float | None
    right_high: float | None


@dataclass(frozen=True)
class FalseFlags:
    """Flags to expect from real images alone, and per prior the share of flags that is right."""

    scored: int
    raised: int
    rate: Rate
    expected: Rate
    has_interval: bool
    shares: tuple[RightShare, ...]

    @property
    def is_explained_by_rate(self) -> bool:
        """Whether an archive without a single fake could well have raised as many flags."""
        return self.raised <= self.expected.high


def false_flags(thresholds: Thresholds, *, scored: int, raised: int, prior: float | None = None) -> FalseFlags | None:
    """Set flags raised against flags to expect at this archive's size; None where no false-positive rate is stated.

    Shares are those of `prior`, or of three priors where it is None, and empty where no true-positive rate is stated.
    Raises ConfigError for a prior outside (0, 1).
    """
    if prior is not None and not 0 < prior < 1:
        raise ConfigError(f"prior {prior}: must lie between 0 and 1", hint="0.01 says that one image in a hundred is fake")
    if thresholds.false_positive_rate is None:
        return None
    wrong = measured_rate(thresholds.false_positive_rate, thresholds.n_real)
    shares: tuple[RightShare, ...] = ()
    if thresholds.true_positive_rate is not None:
        found = measured_rate(thresholds.true_positive_rate, thresholds.n_fake)
        shares = tuple(_right_share(p, found, wrong, scored) for p in (PRIORS if prior is None else (prior,)))
    return FalseFlags(
        scored=scored,
        raised=raised,
        rate=wrong,
        expected=Rate(wrong.value * scored, wrong.low * scored, wrong.high * scored),
        has_interval=bool(thresholds.n_real),
        shares=shares,
    )


def measured_rate(rate: float, n: int | None) -> Rate:
    """A rate seen in n trials with its Wilson score interval (Wilson 1927), which stays honest at 0 and 1."""
    if not n:
        return Rate(rate, rate, rate)
    scale = 1 + _Z95**2 / n
    centre = (rate + _Z95**2 / (2 * n)) / scale
    half = _Z95 / scale * math.sqrt(rate * (1 - rate) / n + (_Z95 / (2 * n)) ** 2)
    # At the ends the interval touches the rate exactly; rounding must not leave it outside.
    return Rate(rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half)))


def share_right(prior: float, found: float, wrong: float) -> float | None:
    """prior·TPR / (prior·TPR + (1 − prior)·FPR); None where nothing is ever flagged."""
    flagged = prior * found + (1 - prior) * wrong
    return prior * found / flagged if flagged else None


def _right_share(prior: float, found: Rate, wrong: Rate, scored: int) -> RightShare:
    return RightShare(
        prior=prior,
        flags=scored * (prior * found.value + (1 - prior) * wrong.value),
        missed=scored * prior * (1 - found.value),
        right=share_right(prior, found.value, wrong.value),
        right_low=share_right(prior, found.low, wrong.high),
        right_high=share_right(prior, found.high, wrong.low),
    )
