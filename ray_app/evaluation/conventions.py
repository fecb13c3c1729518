"""Averages as others compute them, each under its own name, the wrong ones too. Knows a document's generators; knows no scores.

Source: specs/detectors.md §11. A hit is an image told right at the threshold.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ray_app.metrics.figure import Figure, undefined
from ray_app.metrics.histograms import ScoreHistogram
from ray_app.metrics.intervals import proportion

Generator = Mapping[str, Any]
_NONE_SCORED = "none of these images was scored"
_ONE_CLASS = "needs scored images of both classes"


def hits(generators: Sequence[Generator]) -> tuple[int, int]:
    """Images told right, and images, of a document's generators together."""
    known = [one["rate"] for one in generators if one["rate"]["value"] is not None]
    return sum(round(rate["value"] * rate["n"]) for rate in known), sum(rate["n"] for rate in known)


def told_right(generators: Sequence[Generator]) -> Figure:
    """The share told right of all these generators' images."""
    right, n = hits(generators)
    return proportion(right, n, _NONE_SCORED)


def balanced(fakes: Sequence[Generator], reals: Sequence[Generator]) -> Figure:
    """The mean of the two shares told right. What others print as the ROC AUC of hard decisions is the same number."""
    tpr, tnr = told_right(fakes), told_right(reals)
    if tpr.value is None or tnr.value is None:
        return undefined(_ONE_CLASS, tpr.n + tnr.n)
    return Figure((tpr.value + tnr.value) / 2, n=tpr.n + tnr.n)


def f1_even(fakes: Sequence[Generator], reals: Sequence[Generator]) -> Figure:
    """The F1 of the fake class if there were as many real images as fakes, by the shares told right of both."""
    tpr, tnr = told_right(fakes), told_right(reals)
    if tpr.value is None or tnr.value is None:
        return undefined(_ONE_CLASS, tpr.n + tnr.n)
    return Figure(2 * tpr.value / (1 + tpr.value + 1 - tnr.value), n=tpr.n + tnr.n)


def f1_by_source(generators: Sequence[Generator]) -> Figure:
    """OpenFake v2's cross-benchmark F1: the F1 of every source by itself, weighted by its images.

    It means nothing: a source of real images alone has an F1 of 0 however well it is told, and one of fakes 2 · TPR / (1 + TPR).
    """
    parts = [(one["rate"]["n"], one["rate"]["value"] if one["label"] == "fake" else 0.0) for one in generators if one["rate"]["n"]]
    n = sum(weight for weight, _ in parts)
    return Figure(sum(weight * 2 * tpr / (1 + tpr) for weight, tpr in parts) / n, n=n) if n else undefined(_NONE_SCORED)


def missing_is_wrong(generators: Sequence[Generator]) -> Figure:
    """DFLIP-3K v1's accuracy: right ones among all images of the list, those without a score included."""
    right, n = hits(generators)
    return proportion(right, n + sum(one["unscored"] for one in generators), "there are no images")


def oracle_accuracy(fakes: ScoreHistogram, reals: ScoreHistogram, points: int = 100) -> Figure:
    """sidbench's accuracy at its oracle threshold: the best over `points` probabilities from 0 to 1, chosen on the test data itself.

    Too good by construction. Scores are log-odds; fake is a probability above the threshold.
    """
    n = fakes.n + reals.n
    if not fakes.n or not reals.n:
        return undefined(_ONE_CLASS, n)
    with np.errstate(divide="ignore"):
        grid = np.linspace(0, 1, points)
        thresholds = np.log(grid) - np.log1p(-grid)
    return Figure(max(fakes.above(t) + reals.n - reals.above(t) for t in thresholds.tolist()) / n, n=n)


CONVENTIONS: Mapping[str, Callable[[Sequence[Generator]], Figure]] = {
    "f1_by_source": f1_by_source,
    "accuracy_missing_wrong": missing_is_wrong,
}
"""What a footer may name beside figures, averages and means of rows: of all generators of a system."""
