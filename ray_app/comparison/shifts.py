"""How one system's scores moved from run A to run B: image by image where both have it, and as a whole. Knows arrays of scores.

Differences are B less A, in log-odds.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.metrics.drift import drift_of, quantiles_of
from ray_app.metrics.figure import Figure, undefined
from ray_app.metrics.histograms import ScoreHistogram
from ray_app.metrics.intervals import proportion_interval
from ray_app.runs.summary import EDGES

MOVED = 0.1  # log-odds; less is what another batch size, precision or graphics card may do
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

Numbers = npt.NDArray[Any]


def shift_of(a: Numbers, b: Numbers) -> dict[str, Any]:
    """Scores of the same images, (m,) each, NaN for none, as plain JSON.

    `mean` with the interval and `p` of Student's paired t; `moved`: the share of images whose score changed by more than MOVED;
    `equal`: how many scores are equal to the last bit.
    """
    there = np.isfinite(a) & np.isfinite(b)
    change = b[there].astype(np.float64) - a[there]
    n = len(change)
    found: dict[str, Any] = {"n": n, "equal": int((change == 0).sum()), "gained": int((np.isnan(a) & ~np.isnan(b)).sum())}
    found["lost"] = int((np.isnan(b) & ~np.isnan(a)).sum())
    if not n:
        nothing = undefined("no image has a score in both runs").row()
        return found | {"mean": nothing, "p": None, "moved": nothing, "sd": None, "largest": None, "quantiles": []}
    mean, p = _mean(change)
    moved = int((np.abs(change) > MOVED).sum())
    return found | {
        "mean": mean.row(),
        "p": p,
        "moved": Figure(moved / n, proportion_interval(moved, n), "clopper-pearson", n).row(),
        "sd": float(change.std()),
        "largest": float(np.abs(change).max()),
        "quantiles": np.quantile(change, QUANTILES).tolist(),
    }


def _mean(change: npt.NDArray[np.float64]) -> tuple[Figure, float | None]:
    """The mean with its interval, and the two-sided p of its being 0."""
    from scipy.stats import t

    n, mean = len(change), float(change.mean())
    if n < 2:
        return Figure(mean, n=n), None
    error = float(change.std(ddof=1)) / math.sqrt(n)
    if error <= abs(mean) * 1e-12:
        # All changed alike: their signs are the test, and there is no error to make an interval of.
        return Figure(mean, n=n), 1.0 if mean == 0 else min(1.0, 2.0 * 0.5**n)
    half = float(t.ppf(0.975, n - 1)) * error
    return Figure(mean, (mean - half, mean + half), "student", n), float(2 * t.sf(abs(mean) / error, n - 1))


def distribution_of(a: Numbers, b: Numbers) -> dict[str, Any]:
    """All scores of either run, (n,) and (m,), NaN for none: quantiles and histograms of each, and their drift (None without scores).

    Histograms have the edges of a run's summary; scores beyond are counted in the outermost bins.
    """
    first, second = (ScoreHistogram.of(one[np.isfinite(one)]) for one in (a, b))
    drift = drift_of(first, second)
    return {
        "n_a": first.n,
        "n_b": second.n,
        "quantiles_a": quantiles_of(first, QUANTILES) if first.n else [],
        "quantiles_b": quantiles_of(second, QUANTILES) if second.n else [],
        "histogram": {"edges": EDGES.tolist(), "a": _bins(first), "b": _bins(second)},
        "drift": drift.row() if drift else None,
    }


def _bins(scores: ScoreHistogram) -> list[int]:
    clipped = np.clip(scores.values, EDGES[0], EDGES[-1])
    counts: list[int] = np.histogram(clipped, EDGES, weights=scores.counts)[0].astype(np.int64).tolist()
    return counts
