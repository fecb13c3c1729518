"""Intervals of figures that have none of their own, by drawing images or generators anew. Knows which figures; metrics.bootstrap draws."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.evaluation.groups import Group
from ray_app.evaluation.systems import System
from ray_app.metrics.bootstrap import Interval, bootstrap_intervals
from ray_app.metrics.chances import brier_score, debiased_ece, log_loss
from ray_app.metrics.curves import average_precision
from ray_app.metrics.figure import Figure
from ray_app.metrics.histograms import ScoreHistogram
from ray_app.metrics.operating import Confusion, equal_error_rate, rates_at, tpr_at_fpr

MOST = 20_000  # images that are drawn from; of more, so many stand for all
MOST_OF_VIEW = 5_000  # images of a view above which its figures are left without such intervals: there are many views
_FEWER = 200  # replicates
_HIGHEST = {"log_loss": math.inf}  # what is higher than 1 can be
_TURNED = ("ece",)  # a resample's bins stray from the truth twice, the sample's own way and again: its replicates lie too high
Figures = dict[str, Figure]
ByGroup = Mapping[Group, ScoreHistogram]


class Resampling:
    """Draws intervals. `replicates`: None = as time allows, 0 = none. `sample`: rows that stand for all where those are too many."""

    def __init__(self, replicates: int | None, sample: pa.Table | None, seed: int = 0) -> None:
        self._replicates, self._seed = replicates, seed
        self._sample = None if sample is None else sample.slice(0, MOST)
        self._places = {} if self._sample is None else _places(self._sample)

    def with_intervals(self, figures: Figures, system: System, by_group: ByGroup) -> Figures:
        """The figures of these groups, with intervals where there were none and they can be had."""
        if self._sample is None:
            return self._filled(figures, system, by_group, self._replicates)
        scores = np.asarray(self._sample[f"score:{system.name}"].fill_null(np.nan))
        sampled = {group: _finite(scores[self._places[group]]) for group in by_group if group in self._places}
        return self._filled(figures, system, sampled, self._replicates or _FEWER)

    def of_view(self, figures: Figures, system: System, by_kind: ByGroup) -> Figures:
        """The same of a view, where it is of few images."""
        few = sum(scores.n for scores in by_kind.values()) <= MOST_OF_VIEW
        times = _FEWER if self._replicates is None else min(self._replicates, _FEWER)
        return self._filled(figures, system, by_kind, times) if few else figures

    def _filled(self, figures: Figures, system: System, by_group: ByGroup, replicates: int | None) -> Figures:
        """Where the groups are but a sample, what they show of the spread is brought to the size of all (m out of n)."""
        bare = [name for name, one in figures.items() if one.value is not None and one.interval is None]
        classes = [[scores for group, scores in by_group.items() if (group.kind == "real") is is_real] for is_real in (False, True)]
        statistics = _statistics(bare, system)
        if replicates == 0 or not statistics or not all(any(scores.n for scores in some) for some in classes):
            return figures

        def drawn(fakes: ScoreHistogram, reals: ScoreHistogram) -> dict[str, float | None]:
            return {name: value for some in statistics for name, value in some(fakes, reals).items() if name in bare}

        found = bootstrap_intervals(drawn, classes[0], classes[1], replicates=replicates or 0, seed=self._seed)
        sampled = drawn(*(ScoreHistogram.merged(some) for some in classes))
        m = sum(scores.n for scores in by_group.values())
        changed = {name: replace(figures[name], interval=_ends(name, figures[name], one, value, m), method=one.method)
                   for name, one in found.items() if one and (value := sampled[name]) is not None}  # fmt: skip
        return figures | changed


def _ends(name: str, figure: Figure, interval: Interval, sampled: float, m: int) -> tuple[float, float]:
    """Those of a figure of n images, from an interval of m of them, on which it is `sampled`.

    How far they lie off is brought to n images by √(m / n) where images were drawn; generators that were drawn are all of them. Figures
    of `_TURNED` have the basic interval (Davison and Hinkley 1997, §5.2), which takes a bias off rather than adding it again.
    """
    assert figure.value is not None
    scale = math.sqrt(m / figure.n) if interval.method == "bootstrap" and m < figure.n else 1.0
    low, high = ((end - sampled) * scale for end in interval[:2])
    if name in _TURNED:
        low, high = min(0.0, -high), max(0.0, -low)
    return max(0.0, figure.value + low), min(_HIGHEST.get(name, 1.0), figure.value + high)


def _places(sample: pa.Table) -> dict[Group, npt.NDArray[np.int64]]:
    """The rows of every group."""
    groups = [Group(*one) for one in zip(sample["kind"].to_pylist(), sample["generator"].to_pylist(), strict=True)]
    rows: dict[Group, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return {group: np.array(some) for group, some in rows.items()}


def _finite(scores: npt.NDArray[np.float64]) -> ScoreHistogram:
    return ScoreHistogram.of(scores[np.isfinite(scores)])


Statistics = Callable[[ScoreHistogram, ScoreHistogram], Mapping[str, float | None]]


def _statistics(bare: Sequence[str], system: System) -> list[Statistics]:
    """The functions that give the figures which lack an interval, and as few others as may be."""
    every: list[tuple[tuple[str, ...], Statistics]] = [
        (("balanced_accuracy", "f1", "precision"), lambda fakes, reals: _at(system, fakes, reals)),
        (("average_precision",), lambda fakes, reals: {"average_precision": average_precision(fakes, reals)}),
        (("eer",), lambda fakes, reals: {"eer": equal_error_rate(fakes, reals).value}),
        (("tpr_at_fpr_1",), lambda fakes, reals: {"tpr_at_fpr_1": tpr_at_fpr(fakes, reals, 100).value}),
        (("tpr_at_fpr_01",), lambda fakes, reals: {"tpr_at_fpr_01": tpr_at_fpr(fakes, reals, 1000).value}),
        (("log_loss",), lambda fakes, reals: {"log_loss": log_loss(fakes, reals, system.calibration).value}),
        (("brier",), lambda fakes, reals: {"brier": brier_score(fakes, reals, system.calibration).value}),
        (("ece",), lambda fakes, reals: {"ece": debiased_ece(fakes, reals, system.calibration).value}),
    ]
    return [statistic for names, statistic in every if set(names) & set(bare)]


def _at(system: System, fakes: ScoreHistogram, reals: ScoreHistogram) -> dict[str, float | None]:
    return {name: one.value for name, one in rates_at(Confusion.at(fakes, reals, system.threshold, system.strict)).items()}
