"""Changes from run A to run B: verdicts (`flips_of`), statuses, scores (`shift_of`, `distribution_of`), and accuracy by labels
(`labelled_changes`).

Differences are B less A, in log-odds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ray_app.errors import Status
from ray_app.evaluation.compare.pairing import Codes, Pairing, Places, RunColumns
from ray_app.evaluation.join import Labels
from ray_app.evaluation.systems import ENSEMBLE
from ray_app.metrics.arrays import MetricEstimate, ScoreHistogram, undefined
from ray_app.metrics.detection import auc_figure
from ray_app.metrics.drift import drift_of, quantiles_of
from ray_app.metrics.intervals import Z95, proportion
from ray_app.metrics.significance import Paired, delong_paired, mcnemar, mcnemar_of
from ray_app.runs.summary import EDGES

VERDICTS = ("fake", "abstain", "real")
STATUSES = tuple(status.value for status in Status)
EXAMPLES = 12
_FAKE = VERDICTS.index("fake")
Scores = npt.NDArray[np.float64]
AUC_SAMPLE = 200_000  # images that the AUCs are of, at most: those with the smallest keys. The error of an AUC is then below 0.001
Numbers = npt.NDArray[Any]
Groups = npt.NDArray[np.int32]
MOVED = 0.1  # log-odds; less is what another batch size, precision or graphics card may do
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class ImageGroups(NamedTuple):
    """Of each image (m,) the place of its group among `groups` (label, generator), -1 = not labelled."""

    name: str
    codes: Groups
    groups: Sequence[tuple[str, str]]

    def at(self, places: Places) -> "ImageGroups":
        """That of the rows at some places."""
        return self._replace(codes=self.codes[places])


def flips_of(a: Codes, b: Codes) -> dict[str, Any]:
    """Verdicts of the same images, (m,) each, as plain JSON: `matrix[a][b]`, the share that `flipped`, and McNemar's test of `flagged`."""
    there = (a >= 0) & (b >= 0)
    n = int(there.sum())
    table = _table(a[there], b[there], len(VERDICTS))
    flipped = n - int(np.trace(table))
    only_a, only_b = int(table[_FAKE].sum() - table[_FAKE, _FAKE]), int(table[:, _FAKE].sum() - table[_FAKE, _FAKE])
    tested = mcnemar_of(only_a, only_b, n)
    why = "no image has a verdict in both runs"
    return {
        "n": n,
        "matrix": {word: dict(zip(VERDICTS, row, strict=True)) for word, row in zip(VERDICTS, table.tolist(), strict=True)},
        "flips": flipped,
        "flipped": proportion(flipped, n, why).row(),
        "flagged_both": proportion(int(table[_FAKE, _FAKE]), n, why).row(),
        "flagged_a": proportion(int(table[_FAKE].sum()), n, why).row(),
        "flagged_b": proportion(int(table[:, _FAKE].sum()), n, why).row(),
        **tested.row(),
    }


def statuses_of(a: Codes, b: Codes) -> dict[str, Any]:
    """Statuses of the same images, (m,) each: how many changed, and from what to what, the most frequent first."""
    changed = a != b
    table = _table(a[changed], b[changed], len(STATUSES) + 1)
    pairs = [(_status(x), _status(y), int(table[x, y])) for x, y in np.argwhere(table).tolist()]
    return {
        "n": len(a),
        "changed": proportion(int(changed.sum()), len(a), "no image is in both runs").row(),
        "pairs": [list(one) for one in sorted(pairs, key=lambda one: (-one[2], one[0], one[1]))],
    }


def flagged_of(a: Codes, b: Codes) -> dict[str, Any]:
    """Verdicts of all images of either run, (n,) and (m,): the share flagged in each and its difference, as of independent images.

    The interval is Agresti and Caffo's (2000); p is of the pooled z test, or Fisher's where fewer than five flags are to be expected.
    """
    n, m = int((a >= 0).sum()), int((b >= 0).sum())
    x, y = int((a == _FAKE).sum()), int((b == _FAKE).sum())
    why = "the run has no verdict"
    shares = {"a": proportion(x, n, why).row(), "b": proportion(y, m, why).row()}
    if not n or not m:
        return shares | {"difference": undefined("a run has no verdict").row(), "p": None}
    p, q = (x + 1) / (n + 2), (y + 1) / (m + 2)
    half = Z95 * math.sqrt(p * (1 - p) / (n + 2) + q * (1 - q) / (m + 2))
    interval = (max(-1.0, q - p - half), min(1.0, q - p + half))
    return shares | {"difference": MetricEstimate(y / m - x / n, interval, "agresti-caffo", n + m).row(), "p": _two_shares(x, n, y, m)}


def examples_of(runs: tuple[RunColumns, RunColumns], pairing: Pairing, verdicts: Sequence[Codes], scores: Sequence[Scores]) -> list[Any]:
    """The images whose verdict changed and whose score moved farthest, at most EXAMPLES; then those whose score alone moved.

    `verdicts` and `scores`: of the paired images, (m,) each, of a and of b.
    """
    moved = np.nan_to_num(np.abs(scores[1] - scores[0]), nan=-1.0)
    flipped = (verdicts[0] != verdicts[1]) & (verdicts[0] >= 0) & (verdicts[1] >= 0)
    candidates = np.flatnonzero(flipped if flipped.any() else moved > 0)
    chosen = candidates[np.argsort(-moved[candidates], kind="stable")[:EXAMPLES]]
    rows = runs[0].rows_at(pairing.places_a[chosen], ["image_id", "uri", "member"])
    return [
        {
            **row,
            "verdict_a": _verdict(verdicts[0][place]),
            "verdict_b": _verdict(verdicts[1][place]),
            "score_a": _finite(scores[0][place]),
            "score_b": _finite(scores[1][place]),
        }
        for place, row in zip(chosen.tolist(), rows, strict=True)
    ]


def truth_of(run: RunColumns, labels: Labels) -> ImageGroups:
    """The truth about every row of a run."""
    numbers: dict[tuple[str, str], int] = {}
    pieces = [np.empty(0, np.int32)]
    for table in run.tables(labels.columns):
        truth = labels.truth(table)
        # Numbers of a table's own become those of all tables; -1 takes the last place.
        new = [numbers.setdefault((one.label, one.generator), len(numbers)) for one in truth.groups]
        pieces.append(np.array([*new, -1], np.int32)[truth.codes])
    return ImageGroups(labels.name, np.concatenate(pieces), list(numbers))


def labelled_changes(
    truth: ImageGroups, systems: Sequence[str], scores: Callable[[str], tuple[Numbers, Numbers]], verdicts: tuple[Codes, Codes]
) -> dict[str, Any]:
    """AUCs by DeLong, right and wrong by McNemar, and both rates of every generator, as plain JSON; `p_holm` is not in it yet.

    `scores`: of a system's name the scores of the paired images in a and b, (m,) each, NaN for none. The ensemble is right with its
    verdict, an abstention being wrong; a detector is right with its score's sign. An image counts where both runs have a score.
    """
    fake = np.array([label == "fake" for label, _ in truth.groups] + [False])[truth.codes]
    known = truth.codes >= 0
    by_system, generators = [], []
    for name in systems:
        a, b = scores(name)
        there = known & np.isfinite(a) & np.isfinite(b)
        right = tuple(_right(name, one, verdict, fake)[there] for one, verdict in zip((a, b), verdicts, strict=True))
        by_system.append({"name": name, **_auc(a, b, fake, there), "right": _rates(right[0], right[1], mcnemar(*right))})
        generators += [{"system": name, **one} for one in _by_generator(truth, truth.codes[there], right[0], right[1])]
    counts = {"n": int(known.sum()), "n_fake": int((known & fake).sum()), "n_real": int((known & ~fake).sum())}
    return {"name": truth.name, **counts, "systems": by_system, "generators": generators}


def shift_of(a: Numbers, b: Numbers) -> dict[str, Any]:
    """Scores of the same images, (m,) each, NaN for none, as plain JSON.

    `mean` with the interval and `p` of Student's paired t; `moved`: the share of images whose score changed by more than MOVED;
    `equal`: how many scores are equal to the last bit.
    """
    there = np.isfinite(a) & np.isfinite(b)
    change = b[there].astype(np.float64) - a[there]
    n, why = len(change), "no image has a score in both runs"
    found: dict[str, Any] = {"n": n, "equal": int((change == 0).sum()), "gained": int((np.isnan(a) & ~np.isnan(b)).sum())}
    found["lost"] = int((np.isnan(b) & ~np.isnan(a)).sum())
    moved = proportion(int((np.abs(change) > MOVED).sum()), n, why).row()
    if not n:
        return found | {"mean": undefined(why).row(), "p": None, "moved": moved, "sd": None, "largest": None, "quantiles": []}
    mean, p = _mean(change)
    return found | {
        "mean": mean.row(),
        "p": p,
        "moved": moved,
        "sd": float(change.std()),
        "largest": float(np.abs(change).max()),
        "quantiles": np.quantile(change, QUANTILES).tolist(),
    }


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


def _two_shares(x: int, n: int, y: int, m: int) -> float:
    pooled = (x + y) / (n + m)
    if min(pooled, 1 - pooled) * min(n, m) < 5:
        from scipy.stats import fisher_exact

        return float(fisher_exact([[x, n - x], [y, m - y]]).pvalue)
    return math.erfc(abs(y / m - x / n) / math.sqrt(2 * pooled * (1 - pooled) * (1 / n + 1 / m)))


def _table(a: Codes, b: Codes, size: int) -> npt.NDArray[np.int64]:
    return np.bincount((a % size).astype(np.int64) * size + b % size, minlength=size * size).reshape(size, size)


def _status(code: int) -> str:
    return STATUSES[code] if code < len(STATUSES) else "another"


def _verdict(code: int) -> str | None:
    return VERDICTS[code] if code >= 0 else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _right(system: str, scores: Numbers, verdicts: Codes, fake: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    if system == ENSEMBLE:
        return np.asarray(verdicts == np.where(fake, _FAKE, VERDICTS.index("real")))
    return np.asarray((scores > 0) == fake)


def _auc(a: Numbers, b: Numbers, fake: npt.NDArray[np.bool_], there: npt.NDArray[np.bool_]) -> dict[str, Any]:
    sample = np.flatnonzero(there)[:AUC_SAMPLE]
    marks, of = fake[sample], [one[sample].astype(np.float64) for one in (a, b)]
    if not len(sample):
        return {"auc": None}
    if len(sample) > 2 and max(len(np.unique(one)) for one in of) <= 2:
        return {"auc": _undefined("binary replies have no ranking", len(sample))}
    tested = delong_paired(of[0], of[1], marks)
    if tested.difference.value is None:
        return {"auc": _undefined(tested.difference.why or "", len(sample))}
    figures = [auc_figure(ScoreHistogram.of(one[marks]), ScoreHistogram.of(one[~marks])).row() for one in of]
    return {"auc": {**tested.row(), "a": figures[0], "b": figures[1]}}


def _undefined(why: str, n: int) -> dict[str, Any]:
    nothing = undefined(why, n)
    return {**Paired("delong", n, nothing, None, why).row(), "a": nothing.row(), "b": nothing.row()}


def _by_generator(truth: ImageGroups, codes: Groups, a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> Iterator[dict[str, Any]]:
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(truth.groups)))
    for (label, generator), places in zip(truth.groups, np.split(order, ends[:-1]), strict=True):
        if len(places):
            tested = mcnemar(a[places], b[places])
            yield {"generator": generator, "label": label, **_rates(a[places], b[places], tested)}


def _rates(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_], tested: Paired) -> dict[str, Any]:
    why = "no labelled image has a score in both runs"
    return {**tested.row(), "a": proportion(int(a.sum()), len(a), why).row(), "b": proportion(int(b.sum()), len(b), why).row()}


def _mean(change: npt.NDArray[np.float64]) -> tuple[MetricEstimate, float | None]:
    """The mean with its interval, and the two-sided p of its being 0."""
    from scipy.stats import ttest_1samp

    n, mean = len(change), float(change.mean())
    if n < 2:
        return MetricEstimate(mean, n=n), None
    if float(change.std(ddof=1)) / math.sqrt(n) <= abs(mean) * 1e-12:
        # All changed alike: their signs are the test, and there is no error to make an interval of.
        return MetricEstimate(mean, n=n), 1.0 if mean == 0 else min(1.0, 2.0 * 0.5**n)
    tested = ttest_1samp(change, 0.0)
    low, high = tested.confidence_interval()
    return MetricEstimate(mean, (float(low), float(high)), "student", n), float(tested.pvalue)


def _bins(scores: ScoreHistogram) -> list[int]:
    clipped = np.clip(scores.values, EDGES[0], EDGES[-1])
    counts: list[int] = np.histogram(clipped, EDGES, weights=scores.counts)[0].astype(np.int64).tolist()
    return counts
