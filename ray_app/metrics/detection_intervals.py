"""95 % intervals of all figures of detection by one meaning (`with_intervals`): images, generators
and sources are drawn anew.

Rates come first; what is computed from both has its interval from theirs (MOVER: Zou and Donner
2008). A class in clusters (`ClassSample.clusters`) has intervals of further generators, or sources;
any other has them of further images.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from ray_app.detectors.card import Platt
from ray_app.metrics import calibration as chances
from ray_app.metrics import clusters, detection, intervals, operating_points
from ray_app.metrics.arrays import FigureFacts, Floats, ScoreHistogram

Ends = tuple[float, float]
Bools = npt.NDArray[np.bool_]
MOVER, WOODRUFF, JACKKNIFE, TRIANGLE = "mover", "woodruff", "jackknife", "triangle"
_DRAWS = 1_000
_FEW_FOR_AP = 30  # fakes below which what each brings into the average precision is too uneven
_FEW_FOR_EER = 50  # images of a class below which the equal error rate moves in steps
# images of a class below which DeLong's normal interval of an AUC near 1 is too narrow, and
# Student's stands for it
_FEW = 200
_AT_FPR = {"tpr_at_fpr_5": 20, "tpr_at_fpr_1": 100, "tpr_at_fpr_01": 1000}
Figures = Mapping[str, FigureFacts]


@dataclass(frozen=True)
class ScoredClass:
    """One class as a whole, a histogram of all its scores, and a sample of it in clusters."""

    scores: ScoreHistogram
    sample: clusters.ClassSample

    def rate_ends(self, hits: int, right: Bools) -> Ends:
        """The interval of the share of hits; `right` (m,): which of the sample are some."""
        return rate_ends(hits, self.scores.n, self.sample, right)


def with_intervals(
    figures: Figures, fakes: ScoredClass, reals: ScoredClass, *, threshold: float = 0.0, strict: bool = True,
    calibration: Platt | None = None, seed: int = 0,
) -> dict[str, FigureFacts]:  # fmt: skip
    """The figures of `detection_of` with intervals of one meaning; one whose interval cannot be had
    keeps none.

    Those of independent images (Clopper and Pearson, DeLong) stay where no class that a figure is
    of is in clusters, or small. Figures that hang on the share of fakes are of sets of as many
    images, each of which is a fake with that chance.
    """
    if not len(fakes.sample.scores) or not len(reals.sample.scores):
        return dict(figures) | _of_one_class(figures, fakes, reals, threshold, strict)
    clustered = bool(fakes.sample.clusters or reals.sample.clusters)
    at = operating_points.Confusion.at(fakes.scores, reals.scores, threshold, strict)
    share, method = at.n_fake / at.n, clusters.CLUSTER_JACKKNIFE if clustered else JACKKNIFE
    found = _rates(figures, fakes, reals, at, (threshold, strict))
    for name, one_in in _AT_FPR.items():
        if _has(figures, name):
            found[name] = _at_fpr(fakes, reals, one_in), WOODRUFF
    if _has(figures, "auc") and (clustered or min(at.n_fake, at.n_real) < _FEW):
        found["auc"] = _auc_ends(figures["auc"], fakes, reals), method
    for name, of_counts in (("average_precision", _average_precision), ("eer", _equal_error_rate)):
        if _has(figures, name):
            found[name] = (
                _left_out(figures[name], of_counts, fakes.sample, reals.sample, share, seed),
                method,
            )
    if "average_precision" in found and at.n_fake < _FEW_FOR_AP:
        found["average_precision"] = (
            None,
            f"an interval needs {_FEW_FOR_AP} fakes; there are {at.n_fake}",
        )
    if _has(figures, "eer") and min(at.n_fake, at.n_real) < _FEW_FOR_EER:
        found["eer"] = _eer_ends(fakes, reals), method
    found |= {
        name: (ends, method if ends else "all images cost the same")
        for name, ends in _of_chances(figures, fakes, reals, share, calibration).items()
    }
    if _has(figures, "ece"):
        found["ece"] = _ece_ends(figures["ece"], fakes, reals, share, calibration, seed), TRIANGLE
    return dict(figures) | {
        name: with_ends(figures[name], *one) for name, one in found.items() if _has(figures, name)
    }


def with_ends(figure: FigureFacts, ends: Ends | None, how: str) -> FigureFacts:
    """The figure with its interval, by the method `how`; or without, for the reason `how`."""
    if ends is None:
        return figure.model_copy(update={"interval": (), "method": "", "why": how})
    value = figure.value or 0.0
    return figure.with_interval((min(value, ends[0]), max(value, ends[1])), how)


def _rates(
    figures: Figures,
    fakes: ScoredClass,
    reals: ScoredClass,
    at: operating_points.Confusion,
    cut: tuple[float, bool],
) -> dict[str, tuple[Ends | None, str]]:
    """The intervals of both rates, and of what is computed from them."""
    threshold, strict = cut
    flagged = [
        one.sample.scores > threshold if strict else one.sample.scores >= threshold
        for one in (fakes, reals)
    ]
    ends = fakes.rate_ends(at.fake_fake, flagged[0]), reals.rate_ends(at.real_real, ~flagged[1])
    ways = [
        clusters.CLUSTER_JACKKNIFE if one.sample.clusters else intervals.CLOPPER_PEARSON
        for one in (fakes, reals)
    ]
    found: dict[str, tuple[Ends | None, str]] = dict(
        zip(("tpr", "tnr"), zip(ends, ways, strict=True), strict=True)
    )
    point, share = (at.fake_fake / at.n_fake, at.real_real / at.n_real), at.n_fake / at.n
    shares = intervals.proportion_interval(at.n_fake, at.n)
    for name, (of_rates, by_share) in _OF_RATES.items():
        if _has(figures, name) and (clusters.CLUSTER_JACKKNIFE in ways or not figures[name].ends):
            value = of_rates(share, *point)
            moved = [of_rates(one, *point) - value for one in shares] if by_share else [0.0]
            low, high = mover(partial(of_rates, share), point, ends)
            found[name] = (
                (
                    value - math.hypot(value - low, min(0.0, *moved)),
                    value + math.hypot(high - value, max(0.0, *moved)),
                ),
                MOVER,
            )
    return found


def auc_by_cluster(
    scores: Floats, fakes: Bools, names: npt.NDArray[np.object_] | None
) -> FigureFacts:
    """The AUC of scores (n,) with its interval: of further generators and sources, by `names` (n,),
    or, without, DeLong's.
    """
    own, others = (ScoreHistogram.of(scores[mine]) for mine in (fakes, ~fakes))
    auc = detection.auc_figure(own, others)
    classes = [ScoredClass(histogram, clusters.ClassSample.of(scores[mine], None if names is None else names[mine]))
               for histogram, mine in ((own, fakes), (others, ~fakes))]  # fmt: skip
    if auc.value is None or not any(one.sample.clusters for one in classes):
        return auc
    return with_ends(auc, _auc_ends(auc, *classes), clusters.CLUSTER_JACKKNIFE)


def rate_ends(hits: int, n: int, sample: clusters.ClassSample, right: Bools) -> Ends:
    """The 95 % interval of a share of n images: Clopper and Pearson's, or Student's over clusters
    on a logit scale.

    Where all clusters are alike, all right or all wrong, it is that of as many images as there are
    clusters: wide, and never of no width.
    """
    if not sample.clusters:
        return intervals.proportion_interval(hits, n)
    share = hits / n
    ends = clusters.ends_of(share, [sample.spread_of(right.astype(np.float64))])
    return ends or intervals.share_interval(share, sample.clusters)


def mover(figure: Callable[[float, float], float], point: Ends, ends: Sequence[Ends]) -> Ends:
    """The interval of a figure that rises with both of two rates, from theirs."""
    value = figure(*point)
    sides = [
        [figure(ends[0][side], point[1]) - value, figure(point[0], ends[1][side]) - value]
        for side in (0, 1)
    ]
    return value - math.hypot(*sides[0]), value + math.hypot(*sides[1])


def mean_rate_ends(rates: Sequence[tuple[int, int]], *, drawn: bool) -> Ends | None:
    """The interval of the unweighted mean of generators' rates, (hits, n) each, n above 0: of
    further generators (`drawn`), or images.

    None of a single rate's further generators, and of fewer than `clusters.FEWEST_CLUSTERS`.
    """
    hits, sizes = np.array(rates, np.float64).reshape(-1, 2).T
    k = len(hits)
    if not k or (drawn and k < clusters.FEWEST_CLUSTERS):
        return None
    shares, smoothed = hits / sizes, (hits + 1) / (sizes + 2)
    mean = float(shares.mean())
    within = float((smoothed * (1 - smoothed) / sizes).sum()) / k**2
    images = clusters.Spread(within, within, math.inf)
    spread = (
        clusters.spread_of((shares - mean) / k, np.full(k, 1 / k)).at_least(images)
        if drawn
        else images
    )
    if 0 < mean < 1:
        return clusters.ends_of(mean, [spread])
    return intervals.share_interval(mean, k if drawn else int(sizes.min()) * k)


def mixed_rate_ends(parts: Sequence[tuple[float, float, Ends]]) -> Ends:
    """The interval of a mean of rates, (weight, rate, its interval) each; weights add up to 1."""
    value = sum(weight * rate for weight, rate, _ in parts)
    low, high = (
        math.hypot(*(weight * (ends[side] - rate) for weight, rate, ends in parts))
        for side in (0, 1)
    )
    return max(0.0, value - low), min(1.0, value + high)


def _of_one_class(
    figures: Figures, fakes: ScoredClass, reals: ScoredClass, threshold: float, strict: bool
) -> dict[str, FigureFacts]:
    """The rate of the class that there is, which is the accuracy, too."""
    found: dict[str, FigureFacts] = {}
    for name, one in (("tpr", fakes), ("tnr", reals)):
        figure = figures[name]
        if one.sample.clusters and figure.value is not None:
            flagged = one.sample.scores > threshold if strict else one.sample.scores >= threshold
            ends = one.rate_ends(
                round(figure.value * figure.n), flagged if name == "tpr" else ~flagged
            )
            found |= {
                key: figures[key].with_interval(ends, clusters.CLUSTER_JACKKNIFE)
                for key in (name, "accuracy")
            }
    return found


def _precision(share: float, tpr: float, tnr: float) -> float:
    flagged = share * tpr + (1 - share) * (1 - tnr)
    return share * tpr / flagged if flagged > 0 else 1.0


_OF_RATES: Mapping[str, tuple[Callable[[float, float, float], float], bool]] = {
    "balanced_accuracy": (lambda share, tpr, tnr: (tpr + tnr) / 2, False),
    "accuracy": (lambda share, tpr, tnr: share * tpr + (1 - share) * tnr, True),
    "f1": (
        lambda share, tpr, tnr: 2 * share * tpr / (share + share * tpr + (1 - share) * (1 - tnr)),
        True,
    ),
    "precision": (_precision, True),
    "precision_at_prior_01": (lambda share, tpr, tnr: _precision(0.001, tpr, tnr), False),
    "precision_at_prior_1": (lambda share, tpr, tnr: _precision(0.01, tpr, tnr), False),
    "precision_at_prior_10": (lambda share, tpr, tnr: _precision(0.1, tpr, tnr), False),
}
"""Figures of the share of fakes, the TPR and the TNR, and whether they hang on that share."""


def _at_fpr(fakes: ScoredClass, reals: ScoredClass, one_in: int) -> Ends:
    """Of the TPR where one real in `one_in` is flagged: the fakes' own, and how far the threshold
    may lie off (Woodruff 1952).

    Of reals in clusters as many count as would be as sure if they were independent (Korn and
    Graubard 1998).
    """
    from scipy.special import betaincinv

    n, rate = reals.scores.n, 1 / one_in
    threshold = float(reals.scores.ranked(n - 1 - n // one_in))
    hits = fakes.scores.above(threshold)
    ends = fakes.rate_ends(hits, fakes.sample.scores > threshold)
    size = _independent(reals, reals.sample.scores > threshold)
    fewest = float(betaincinv(rate * size, size - rate * size + 1, 0.025)) * n
    most = float(betaincinv(rate * size + 1, size - rate * size, 0.975)) * n
    found = hits / fakes.scores.n
    low = (
        0.0
        if fewest < 1
        else fakes.scores.above(float(reals.scores.ranked(n - math.floor(fewest)))) / fakes.scores.n
    )
    high = (
        1.0
        if most >= n - 1
        else fakes.scores.above(float(reals.scores.ranked(n - 1 - math.ceil(most))))
        / fakes.scores.n
    )
    return (
        max(0.0, found - math.hypot(found - ends[0], max(0.0, found - low))),
        min(1.0, found + math.hypot(ends[1] - found, max(0.0, high - found))),
    )


def _independent(one: ScoredClass, flagged: Bools) -> float:
    """How many independent images are as sure of a share as these are."""
    from scipy.special import stdtrit

    sample = one.sample
    if not sample.clusters:
        return float(one.scores.n)
    share = float(flagged.mean())
    spread = sample.spread_of(flagged.astype(np.float64))
    if not 0 < share < 1 or not spread.above:
        return float(sample.clusters)
    size = share * (1 - share) / max(spread.above, spread.below)
    return float(
        max(
            sample.clusters,
            min(one.scores.n, size) * (intervals.Z95 / float(stdtrit(spread.freedom, 0.975))) ** 2,
        )
    )


def _auc_ends(auc: FigureFacts, fakes: ScoredClass, reals: ScoredClass) -> Ends | None:
    if auc.value is None:
        return None
    below, upto = reals.scores.below_and_up_to(fakes.sample.scores)
    found = (below + upto) / (2 * reals.scores.n)
    below, upto = fakes.scores.below_and_up_to(reals.sample.scores)
    passed = 1 - (below + upto) / (2 * fakes.scores.n)
    ends = clusters.ends_of(
        auc.value, [fakes.sample.spread_of(found), reals.sample.spread_of(passed)]
    )
    return ends or intervals.share_interval(
        auc.value, min(one.clusters or one.n for one in (fakes.sample, reals.sample))
    )


def _of_chances(
    figures: Figures,
    fakes: ScoredClass,
    reals: ScoredClass,
    share: float,
    calibration: Platt | None,
) -> dict[str, Ends | None]:
    """Log-loss and Brier score, which are means over images."""
    found: dict[str, Ends | None] = {}
    for name, losses, scale in (
        ("log_loss", chances.losses, "log"),
        ("brier", chances.squares, "logit"),
    ):
        if _has(figures, name):
            values = [
                losses(one.sample.scores, is_fake, calibration)
                for one, is_fake in ((fakes, True), (reals, False))
            ]
            spreads = [one.sample.spread_of(some).scaled(part**2)
                       for one, some, part in zip((fakes, reals), values, (share, 1 - share), strict=True)]  # fmt: skip
            spreads.append(
                _of_share(
                    float(values[0].mean() - values[1].mean()),
                    share,
                    fakes.scores.n + reals.scores.n,
                )
            )
            found[name] = clusters.ends_of(
                figures[name].value or 0.0, spreads, "log" if scale == "log" else "logit"
            )
    return found


def _of_share(slope: float, share: float, n: int) -> clusters.Spread:
    """That a figure changes by `slope` with the share of fakes, which is one of n images drawn at
    random.
    """
    variance = slope**2 * share * (1 - share) / n
    return clusters.Spread(variance, variance, math.inf)


def _left_out(
    figure: FigureFacts,
    of_counts: Callable[[float, Floats, Floats], float],
    fakes: clusters.ClassSample,
    reals: clusters.ClassSample,
    share: float,
    seed: int,
) -> Ends | None:
    """Of a figure of the share of fakes and of counts (v,) of fakes and of reals at v ascending
    scores.
    """
    values = np.unique(np.concatenate([fakes.scores, reals.scores]))
    places = [np.searchsorted(values, one.scores) for one in (fakes, reals)]
    every = [np.bincount(one, minlength=len(values)).astype(np.float64) for one in places]
    spreads = []
    for sample, place, ways in (
        (fakes, places[0], lambda counts: of_counts(share, counts, every[1])),
        (reals, places[1], lambda counts: of_counts(share, every[0], counts)),
    ):
        blocks = clusters.blocks_of(len(place), seed)
        spread = clusters.left_out(ways, _table(blocks, place, len(values))).scaled(
            len(place) / max(sample.n, 1)
        )
        if sample.clusters:
            spread = clusters.left_out(ways, _table(sample.codes, place, len(values))).at_least(
                spread
            )
        spreads.append(spread)
    step = min(share, 1 - share) / 10
    slope = (of_counts(share + step, *every) - of_counts(share - step, *every)) / (2 * step)
    spreads.append(_of_share(slope, share, fakes.n + reals.n))
    few = min(one.clusters or one.n for one in (fakes, reals))
    return clusters.ends_of(figure.value or 0.0, spreads) or intervals.share_interval(
        figure.value or 0.0, few
    )


def _table(codes: clusters.Codes, places: npt.NDArray[np.int64], size: int) -> Floats:
    k = int(codes.max()) + 1
    return (
        np.bincount(codes * size + places, minlength=k * size).reshape(k, size).astype(np.float64)
    )


def _average_precision(share: float, fakes: Floats, reals: Floats) -> float:
    found, alarms = (np.cumsum(one[::-1])[::-1] / one.sum() for one in (fakes, reals))
    flagged = share * found + (1 - share) * alarms
    return float(fakes @ (share * found / np.maximum(flagged, np.finfo(np.float64).tiny))) / float(
        fakes.sum()
    )


def _equal_error_rate(_share: float, fakes: Floats, reals: Floats) -> float:
    found, alarms = (np.append(0.0, np.cumsum(one[::-1]) / one.sum()) for one in (fakes, reals))
    surplus = alarms - (1 - found)
    place = int(np.argmax(surplus >= 0))
    way = -surplus[place - 1] / (surplus[place] - surplus[place - 1])
    return float(alarms[place - 1] + way * (alarms[place] - alarms[place - 1]))


def _eer_ends(fakes: ScoredClass, reals: ScoredClass) -> Ends:
    """Of few images: at any threshold the equal error rate lies between both classes’ shares judged
    wrongly, so between their intervals' ends at its own.
    """
    at = operating_points.equal_error_threshold(fakes.scores, reals.scores)
    found = fakes.rate_ends(fakes.scores.at_or_above(at), fakes.sample.scores >= at)
    flagged = reals.rate_ends(reals.scores.at_or_above(at), reals.sample.scores >= at)
    return min(1 - found[1], flagged[0]), max(1 - found[0], flagged[1])


def _ece_ends(
    ece: FigureFacts,
    fakes: ScoredClass,
    reals: ScoredClass,
    share: float,
    calibration: Platt | None,
    seed: int,
) -> Ends:
    """Of the calibration error by the triangle inequality: it is off by no more than the bins'
    errors are in sum.

    Their sum's 95 % point is drawn from a normal distribution of the bins, whose variances are no
    less than those of a share that has one more fake and one more real. It covers more than it
    says, and does not lean on the error's being far from 0.
    """
    gap, spread = chances.bin_gaps(
        [(fakes.sample, True, share), (reals.sample, False, 1 - share)], calibration
    )
    plain = float(np.abs(gap).sum())
    values, vectors = np.linalg.eigh(spread)
    drawn = (
        np.random.default_rng(seed).normal(size=(_DRAWS, len(gap)))
        * np.sqrt(np.maximum(values, 0))
        @ vectors.T
    )
    off = float(np.quantile(np.abs(drawn).sum(axis=1), 0.95))
    value = ece.value or 0.0
    return max(0.0, min(value, plain - off)), min(1.0, max(value, plain + off))


def _has(figures: Figures, name: str) -> bool:
    return name in figures and figures[name].value is not None
