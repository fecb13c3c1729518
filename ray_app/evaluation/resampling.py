"""Intervals of figures that have none of their own, by drawing images or generators anew. Knows which figures; metrics.bootstrap draws."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from ray_app.evaluation.groups import Group
from ray_app.evaluation.systems import System
from ray_app.metrics.bootstrap import bootstrap_intervals
from ray_app.metrics.chances import brier_score, debiased_ece, log_loss
from ray_app.metrics.curves import average_precision
from ray_app.metrics.figure import Figure
from ray_app.metrics.histograms import ScoreHistogram
from ray_app.metrics.operating import Confusion, equal_error_rate, rates_at, tpr_at_fpr

MOST_OF_VIEW = 5_000  # images of a view above which its figures are left without such intervals: there are many views
_OF_VIEW = 200  # replicates
Figures = dict[str, Figure]


@dataclass(frozen=True)
class Resampling:
    """How intervals are drawn. `replicates`: None = as time allows, 0 = none. `sample`: rows that stand for all; None = all."""

    replicates: int | None
    sample: pa.Table | None
    seed: int = 0

    def with_intervals(self, figures: Figures, system: System, by_group: Mapping[Group, ScoreHistogram]) -> Figures:
        """The figures of these groups, with intervals where there were none and they can be had."""
        if self.replicates == 0:
            return figures
        drawn = {group: self._sampled(system, group) for group in by_group} if self.sample is not None else by_group
        return _filled(figures, system, drawn, self.replicates or 0, self.seed)

    def of_view(self, figures: Figures, system: System, by_kind: Mapping[Group, ScoreHistogram]) -> Figures:
        """The same of a view, where it is of few images."""
        few = sum(scores.n for scores in by_kind.values()) <= MOST_OF_VIEW
        times = min(self.replicates or _OF_VIEW, _OF_VIEW)
        return _filled(figures, system, by_kind, times, self.seed) if few and self.replicates != 0 else figures

    def _sampled(self, system: System, group: Group) -> ScoreHistogram:
        assert self.sample is not None
        mine = (np.asarray(self.sample["kind"]) == group.kind) & (np.asarray(self.sample["generator"]) == group.generator)
        scores = np.asarray(self.sample[f"score:{system.name}"].fill_null(np.nan))[mine]
        return ScoreHistogram.of(scores[np.isfinite(scores)])


def _filled(figures: Figures, system: System, by_group: Mapping[Group, ScoreHistogram], replicates: int, seed: int) -> Figures:
    bare = [name for name, one in figures.items() if one.value is not None and one.interval is None]
    classes = [[scores for group, scores in by_group.items() if (group.kind == "real") is is_real] for is_real in (False, True)]
    statistics = _statistics(bare, system)
    if not statistics or not all(any(scores.n for scores in some) for some in classes):
        return figures

    def drawn(fakes: ScoreHistogram, reals: ScoreHistogram) -> dict[str, float | None]:
        return {name: value for some in statistics for name, value in some(fakes, reals).items() if name in bare}

    found = bootstrap_intervals(drawn, classes[0], classes[1], replicates=replicates, seed=seed)
    intervals = {name: one for name, one in found.items() if one is not None}
    return figures | {name: replace(figures[name], interval=(one.low, one.high), method=one.method) for name, one in intervals.items()}


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
