"""Risk and coverage: how wrong a detector is on the images of which it is surest. Knows histograms of scores; knows no verdicts."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ray_app.metrics.arrays import Floats
from ray_app.metrics.figure import Figure, undefined
from ray_app.metrics.histograms import Counts, ScoreHistogram

_BLOCK = 1 << 20  # scores at a time, so that memory stays that of the histograms


def risk_coverage(
    fakes: ScoreHistogram, reals: ScoreHistogram, threshold: float = 0.0, *, strict: bool = True, most: int = 128
) -> dict[str, Any]:
    """`points`: [coverage, risk], no more than `most`; `aurc`: the area under that curve (Geifman and El-Yaniv 2017), a Figure.

    Confidence is how far a score lies from the threshold. Coverage is the share of images at least so sure, risk the share of those that
    are told wrong; equally sure images come in together. The area is the mean over all images of the risk at their own confidence.
    """
    n = fakes.n + reals.n
    if not n:
        return {"points": [], "aurc": undefined("there are no images")}
    curve = _Sureness(fakes, reals, threshold, strict)
    area = sum(float(counts @ curve.risk(sure)) for sure, counts in curve.blocks())
    sure = curve.chosen(most)
    covered, wrong = curve.at_least(sure)
    points = np.column_stack([covered / n, wrong / np.maximum(covered, 1)])[covered > 0]
    return {"points": points.tolist(), "aurc": Figure(area / n, n=n)}


class _Sureness:
    """Both classes by their signed distance from the threshold: the same numbers on either side of it, so that equals stay equal."""

    def __init__(self, fakes: ScoreHistogram, reals: ScoreHistogram, threshold: float, strict: bool) -> None:
        self.fakes, self.reals = (_shifted(one, threshold) for one in (fakes, reals))
        self.strict = strict

    def at_least(self, sure: Floats) -> tuple[Counts, Counts]:
        """How many images are at least so sure (t,), and how many of them are told wrong."""
        fakes, reals = self.fakes, self.reals
        fakes_low, fakes_high = fakes.up_to(-sure), fakes.n - fakes.below(sure)
        reals_low, reals_high = reals.up_to(-sure), reals.n - reals.below(sure)
        wrong = fakes_low + reals_high
        # Those on the threshold stand on both sides of it: they are counted once, as real where it is strict.
        on = sure == 0
        at_fake, at_real = (one.at_or_above(0) - one.above(0) for one in (fakes, reals))
        covered = fakes_low + fakes_high + reals_low + reals_high - on * (at_fake + at_real)
        return covered, wrong - on * (at_real if self.strict else at_fake)

    def risk(self, sure: Floats) -> Floats:
        """The share told wrong of those at least so sure (t,)."""
        covered, wrong = self.at_least(sure)
        return wrong / np.maximum(covered, 1)

    def blocks(self) -> Iterator[tuple[Floats, Counts]]:
        """How sure images are and how many are, in pieces."""
        for one in (self.fakes, self.reals):
            for start in range(0, len(one.values), _BLOCK):
                yield np.abs(one.values[start : start + _BLOCK]), one.counts[start : start + _BLOCK]

    def chosen(self, most: int) -> Floats:
        """Up to `most` values in descending order, with the highest and the lowest, spread evenly over the images."""
        sides = [*_sides(self.fakes), *_sides(self.reals)]
        every = np.unique(np.concatenate(sides)) if sum(map(len, sides)) <= 4 * most else None
        if every is not None and len(every) <= most:
            return every[::-1]
        picked = [np.abs(one.ranked(np.linspace(0, one.n - 1, most // 4).astype(np.int64))) for one in (self.fakes, self.reals) if one.n]
        ends = [[side[0], side[-1]] for side in sides if len(side)]
        return np.unique(np.concatenate([*picked, *ends]))[::-1]


def _shifted(scores: ScoreHistogram, threshold: float) -> ScoreHistogram:
    return ScoreHistogram(scores.values - threshold, scores.counts) if threshold else scores


def _sides(scores: ScoreHistogram) -> tuple[Floats, Floats]:
    """How sure the images on either side are, without repeating the images' counts."""
    split = int(np.searchsorted(scores.values, 0))
    return -scores.values[:split][::-1], scores.values[split:]
