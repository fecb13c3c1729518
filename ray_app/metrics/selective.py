"""Selective prediction: risk and coverage (`risk_coverage`), figures of verdicts with abstentions (`abstaining`), and scikit-learn's
classification report from counts (`classification_report`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_app.metrics.arrays import Counts, Floats, MetricEstimate, ScoreHistogram, undefined
from ray_app.metrics.intervals import proportion
from ray_app.metrics.operating_points import NO_FAKES, NO_REALS, ONE_CLASS

_NO_IMAGES = "there are no images"


def risk_coverage(
    fakes: ScoreHistogram, reals: ScoreHistogram, threshold: float = 0.0, *, strict: bool = True, most: int = 128
) -> dict[str, Any]:
    """`points`: [coverage, risk], no more than `most`; `aurc`: the area under that curve (Geifman and El-Yaniv 2017), a MetricEstimate.

    Confidence is how far a score lies from the threshold, above which, or unless `strict` at which, it says fake. Coverage is the share
    of images at least so sure, risk the share of those that are classified wrong; equally sure images come in together. The area is the
    mean over all images of the risk at their own confidence, whichever points are kept. Raises ValueError where `most` is less than 16.
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
    return {"points": points, "aurc": MetricEstimate(area / n, n=n)}


@dataclass(frozen=True, slots=True)
class VerdictCounts:
    """Images by what they are and, behind it, their verdict; `unscored`: those without one, such as files that cannot be read."""

    fake_fake: int = 0
    fake_real: int = 0
    fake_abstain: int = 0
    real_fake: int = 0
    real_real: int = 0
    real_abstain: int = 0
    fake_unscored: int = 0
    real_unscored: int = 0


def abstaining(counts: VerdictCounts) -> dict[str, MetricEstimate]:
    """How many images are decided and how well, and the same with abstentions and unscored images counted wrong (`_strict`).

    `coverage` is the share of all images, unscored ones among them, whose verdict is fake or real.
    """
    fakes_decided, reals_decided = counts.fake_fake + counts.fake_real, counts.real_fake + counts.real_real
    fakes = fakes_decided + counts.fake_abstain + counts.fake_unscored
    reals = reals_decided + counts.real_abstain + counts.real_unscored
    right, decided, n = counts.fake_fake + counts.real_real, fakes_decided + reals_decided, fakes + reals
    balanced = (
        MetricEstimate((counts.fake_fake / fakes + counts.real_real / reals) / 2, n=n) if fakes and reals else undefined(ONE_CLASS, n)
    )
    return {
        "coverage": proportion(decided, n, _NO_IMAGES),
        "accuracy_of_decided": proportion(right, decided, "no image is decided"),
        "tpr_of_decided": proportion(counts.fake_fake, fakes_decided, "no fake is decided" if fakes else NO_FAKES),
        "tnr_of_decided": proportion(counts.real_real, reals_decided, "no real is decided" if reals else NO_REALS),
        "accuracy_strict": proportion(right, n, _NO_IMAGES),
        "balanced_accuracy_strict": balanced,
        "tpr_strict": proportion(counts.fake_fake, fakes, NO_FAKES),
        "tnr_strict": proportion(counts.real_real, reals, NO_REALS),
    }


def classification_report(fake_fake: int, fake_real: int, real_fake: int, real_real: int) -> dict[str, Any]:
    """scikit-learn's report (`output_dict=True`) from counts of images, by truth and then verdict.

    Under `fake`, `real`, `macro avg` and `weighted avg` stand precision, recall, f1-score and support; `accuracy` is one number. What
    would divide by 0 is None, and so is an average of it, where scikit-learn writes 0.
    """
    fake = _class_report(fake_fake, fake_fake + fake_real, fake_fake + real_fake)
    real = _class_report(real_real, real_real + real_fake, real_real + fake_real)
    return {
        "fake": fake,
        "real": real,
        "accuracy": _ratio(fake_fake + real_real, fake_fake + fake_real + real_fake + real_real),
        "macro avg": _average(fake, real, 1, 1),
        "weighted avg": _average(fake, real, fake["support"], real["support"]),
    }


@dataclass(frozen=True, slots=True)
class _Side:
    """The images of a class on one side of the threshold: how sure, ascending (k,), how many, and whether they are classified wrong."""

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
    """How many images have each confidence, from the surest down, and how many of them are classified wrong."""
    sure, counts = np.concatenate([piece.sure for piece in pieces]), np.concatenate([piece.counts for piece in pieces])
    errors = np.concatenate([piece.counts if piece.wrong else np.zeros_like(piece.counts) for piece in pieces])
    order = np.argsort(sure, kind="stable")  # which merges runs that are in order already
    sure = sure[order]
    starts = np.flatnonzero(np.concatenate([[True], sure[1:] != sure[:-1]]))
    return np.add.reduceat(counts[order], starts)[::-1], np.add.reduceat(errors[order], starts)[::-1]


def _class_report(right: int, there: int, named: int) -> dict[str, Any]:
    f1 = _ratio(2 * right, there + named)
    return {"precision": _ratio(right, named), "recall": _ratio(right, there), "f1-score": f1, "support": there}


def _average(fake: dict[str, Any], real: dict[str, Any], fake_weight: int, real_weight: int) -> dict[str, Any]:
    """Averages by weight; a class of no weight does not count."""
    parts = [(one, weight) for one, weight in ((fake, fake_weight), (real, real_weight)) if weight]
    total = fake_weight + real_weight
    means = {
        key: None if not parts or any(one[key] is None for one, _ in parts) else sum(one[key] * weight for one, weight in parts) / total
        for key in ("precision", "recall", "f1-score")
    }
    return means | {"support": fake["support"] + real["support"]}


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
