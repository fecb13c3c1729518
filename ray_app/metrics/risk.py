"""Risk and coverage: how wrong a detector is on the images of which it is surest. Knows histograms of scores; knows no verdicts."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_app.metrics.arrays import Floats
from ray_app.metrics.figure import Figure, undefined
from ray_app.metrics.histograms import Counts, ScoreHistogram


def risk_coverage(
    fakes: ScoreHistogram, reals: ScoreHistogram, threshold: float = 0.0, *, strict: bool = True, most: int = 128
) -> dict[str, Any]:
    """`points`: [coverage, risk], no more than `most`; `aurc`: the area under that curve (Geifman and El-Yaniv 2017), a Figure.

    Confidence is how far a score lies from the threshold, above which, or unless `strict` at which, it says fake. Coverage is the share
    of images at least so sure, risk the share of those that are told wrong; equally sure images come in together. The area is the mean
    over all images of the risk at their own confidence, whichever points are kept. Raises ValueError where `most` is less than 16.
    """
    n = fakes.n + reals.n
    if most < 16:
        raise ValueError(f"a curve of {most} points is none; 16 are the fewest")
    if not n:
        return {"points": [], "aurc": undefined("there are no images")}
    sides = [*_sides(fakes, threshold, strict, right="above"), *_sides(reals, threshold, strict, right="below")]
    edges = _edges(sides, most)
    cuts = [np.append(len(side.sure), np.searchsorted(side.sure, edges)) for side in sides]
    # Piece by piece between the edges, from the surest down, so that memory stays that of the histograms.
    area, covered, wrong, points = 0.0, 0, 0, []
    for start, end in zip(np.stack(cuts, 1)[1:], np.stack(cuts, 1)[:-1], strict=True):
        counts, errors = _descending([side.part(*cut) for side, *cut in zip(sides, start, end, strict=True)])
        so_far, wrong_so_far = covered + counts.cumsum(), wrong + errors.cumsum()
        area += float(counts @ (wrong_so_far / np.maximum(so_far, 1)))
        covered, wrong = int(so_far[-1]), int(wrong_so_far[-1])
        points += [[covered / n, wrong / covered]] if covered else []
    return {"points": points, "aurc": Figure(area / n, n=n)}


@dataclass(frozen=True, slots=True)
class _Side:
    """The images of a class on one side of the threshold: how sure, ascending (k,), how many, and whether they are told wrong."""

    sure: Floats
    counts: Counts
    wrong: bool

    def part(self, start: int, end: int) -> "_Side":
        return _Side(self.sure[start:end], self.counts[start:end], self.wrong)


def _sides(scores: ScoreHistogram, threshold: float, strict: bool, right: str) -> tuple[_Side, _Side]:
    split = int(np.searchsorted(scores.values, threshold, "right" if strict else "left"))
    return (
        _Side((threshold - scores.values[:split])[::-1], scores.counts[:split][::-1], right == "above"),
        _Side(scores.values[split:] - threshold, scores.counts[split:], right == "below"),
    )


def _edges(sides: list[_Side], most: int) -> Floats:
    """Up to `most` of the confidences in descending order, with the highest and the lowest: all, or evenly over the images."""
    if sum(len(side.sure) for side in sides) <= 4 * most:
        every = np.unique(np.concatenate([side.sure for side in sides]))
        if len(every) <= most:
            return every[::-1]
    total = sum(int(side.counts.sum()) for side in sides)
    picked = []
    for side in (side for side in sides if len(side.sure)):
        passed = side.counts.cumsum()
        budget = 2 + (most - 8) * int(passed[-1]) // total
        picked.append(side.sure[np.searchsorted(passed, np.linspace(0, passed[-1], budget))])
    return np.unique(np.concatenate(picked))[::-1]


def _descending(pieces: list[_Side]) -> tuple[Counts, Counts]:
    """How many images have each confidence, from the surest down, and how many of them are told wrong."""
    sure, counts = np.concatenate([piece.sure for piece in pieces]), np.concatenate([piece.counts for piece in pieces])
    errors = np.concatenate([piece.counts if piece.wrong else np.zeros_like(piece.counts) for piece in pieces])
    order = np.argsort(sure, kind="stable")  # which merges runs that are in order already
    sure = sure[order]
    starts = np.flatnonzero(np.concatenate([[True], sure[1:] != sure[:-1]]))
    return np.add.reduceat(counts[order], starts)[::-1], np.add.reduceat(errors[order], starts)[::-1]
