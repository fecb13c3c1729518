"""McNemar's exact test of two systems on the same images (`mcnemar_of`), and Holm's correction
(`holm`). Differences of metrics: `ray_app.metrics.registry.measure_difference`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_app.metrics.uncertainty import Z95
from ray_app.metrics.values import MetricValue, undefined


@dataclass(frozen=True, slots=True)
class Paired:
    """`difference`: b's metric less a's, with its interval. `p`: two-sided; None with `why` if the
    test is not defined.
    """

    test: str
    n: int
    difference: MetricValue
    p: float | None
    why: str | None = None

    def row(self) -> dict[str, Any]:
        """As plain JSON, without Holm's correction, which needs all tests."""
        return {
            "test": self.test,
            "n": self.n,
            "difference": self.difference.to_dict(),
            "p": self.p,
            "why": self.why,
        }


def mcnemar_of(only_a: int, only_b: int, n: int) -> Paired:
    """McNemar's test from counts: images on which only a, or only b, is right, among n. Raises
    ValueError for counts that cannot be.

    p is the mid-p of the exact binomial test for any n, which keeps its level without the exact
    test's waste (Fagerland, Lydersen and Laake 2013). The interval is Wald's with Bonett and
    Price's (2012) adjustment; it has a width where nothing differs, too.
    """
    if min(only_a, only_b) < 0 or only_a + only_b > n:
        raise ValueError(f"{only_a} and {only_b} of {n} are no counts")
    if not n:
        return Paired("mcnemar", 0, undefined("there are no images"), None, "there are no images")
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    middle, half = (
        share_b - share_a,
        Z95 * math.sqrt((share_a + share_b - (share_b - share_a) ** 2) / (n + 2)),
    )
    interval = (max(-1.0, middle - half), min(1.0, middle + half))
    figure = MetricValue((only_b - only_a) / n, *interval, n=n, method="bonett-price")
    return Paired("mcnemar", n, figure, mid_p(only_a, only_a + only_b))


def mid_p(successes: int, n: int) -> float:
    """The two-sided mid-p of so many successes among n, where either outcome is as likely as the
    other; 1 for no trial.
    """
    from scipy.stats import binom

    fewer = min(successes, n - successes)
    return min(1.0, float(2 * binom.cdf(fewer, n, 0.5) - binom.pmf(fewer, n, 0.5))) if n else 1.0


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Each p corrected for all of them (Holm 1979), in the same order; None stays None and is no
    test.

    The chance that anything below α here is no difference, in the whole family, is at most α.
    """
    tests = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, place) in enumerate(tests):
        highest = max(highest, min(1.0, p * (len(tests) - rank)))
        corrected[place] = highest
    return corrected
