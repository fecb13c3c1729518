"""What an evaluation's intervals are of (`Intervals`): further generators and sources if labels name
enough of them, or further images.

Intervals of further generators come from a sample of the labelled rows, each with its generator or
the source of a real image.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.evaluation.groups import FAKE_KINDS
from ray_app.evaluation.systems import System
from ray_app.metrics import uncertainty
from ray_app.metrics.arrays import Bools
from ray_app.metrics.detection import VerdictCounts
from ray_app.metrics.registry import Resampled, ScoredImages
from ray_app.metrics.uncertainty import Replicates
from ray_app.metrics.values import MetricValue
from ray_app.reports.evaluation.result import IntervalInfo

MAX_SAMPLED = 20_000
"""Rows that intervals of further generators are worked out from, at most."""
MAX_IN_VIEW = 5_000
"""Images of a view above which only proportions have intervals: there are many views."""
Meaning = Literal["generators", "images"]
Figures = Mapping[str, MetricValue]
Names = npt.NDArray[np.object_]
_RIGHT = "right"
_SHARES = {
    "coverage": (("fake", "real"), None),
    "accuracy_of_decided": (_RIGHT, ("fake", "real")),
    "tpr_of_decided": (_RIGHT, ("fake", "real")),
    "tnr_of_decided": (_RIGHT, ("fake", "real")),
    "accuracy_strict": (_RIGHT, None),
    "tpr_strict": (_RIGHT, None),
    "tnr_strict": (_RIGHT, None),
}
"""Verdicts that are hits, and verdicts that count."""


class Intervals:
    """Choose the groups that intervals of an evaluation are of.

    Args:
        meaning: Whether intervals are of further generators or of further images.
        sample: The sample of `accumulate.Cells`.
        seed: Seed of random blocks.
    """

    def __init__(self, meaning: Meaning, sample: pa.Table | None, *, seed: int = 0) -> None:
        self._seed = seed
        self._sample = sample.slice(0, MAX_SAMPLED) if sample is not None else None
        self._kinds = np.empty(0, object)
        self._names: Names | None = None
        if self._sample is not None and len(self._sample):
            self._kinds = np.asarray(self._sample["kind"].to_pylist(), object)
            self._names = names_of(self._sample) if meaning == "generators" else None
        self.facts = self.facts_of(FAKE_KINDS)

    def facts_of(self, kinds: Collection[str]) -> IntervalInfo:
        """What intervals of metrics of these fakes and all real images are of."""
        names = [
            () if self._names is None else self._names[np.isin(self._kinds, mine)]
            for mine in (tuple(kinds), ("real",))
        ]
        return IntervalInfo.of_names(*names)

    def alike(self, kinds: Sequence[str]) -> IntervalInfo:
        """What the intervals of metrics of each of these kinds of fakes are of, the same for all:
        images if one kind has few generators.
        """
        found = [self.facts_of((kind,)) for kind in kinds]
        few = next((one for one in found if one.fakes == "images"), None)
        if few is not None and len(found) > 1:
            return replace(few, reals="images")
        return found[0] if len(found) == 1 else self.facts

    def resample(
        self,
        images: ScoredImages,
        system: System,
        kinds: Sequence[str],
        *,
        is_of_images: bool = False,
    ) -> Resampled:
        """Return the groups for metrics of fakes of some kinds and of all real images.

        Args:
            images: The images that the metrics are of.
            system: The system that scored them.
            kinds: The kinds of the fakes.
            is_of_images: Whether the intervals are of further images in any case.
        """
        facts = self.facts_of(kinds)
        if is_of_images or facts.of_images or self._sample is None:
            return self.resample_images(images)
        scores = np.asarray(self._sample[f"score:{system.name}"].fill_null(np.nan))
        chosen = np.isfinite(scores) & np.isin(self._kinds, (*kinds, "real"))
        names = self._names[chosen] if self._names is not None else None
        return Resampled.in_groups(
            scores[chosen],
            self._kinds[chosen] != "real",
            names,
            totals=(images.n_fake, images.n_real),
            seed=self._seed,
            **system.cut,
        )

    def resample_images(self, images: ScoredImages) -> Resampled:
        """Return the images in random blocks."""
        return Resampled.in_blocks(images, self._seed)

    def resample_view(self, images: ScoredImages) -> Resampled | None:
        """Return the images of a view in random blocks if they are few."""
        return self.resample_images(images) if len(images) <= MAX_IN_VIEW else None

    def add_to_averages(
        self, figures: Figures, rates: Sequence[tuple[int, int]], tpr: MetricValue
    ) -> dict[str, MetricValue]:
        """Add intervals to means over generators.

        Args:
            figures: `tpr_mean` and `tpr_weighted`.
            rates: Fakes found, and fakes, of each generator.
            tpr: The rate of all fakes together.
        """
        found = dict(figures)
        is_of_generators = self.facts.fakes == "generators"
        mean = found["tpr_mean"]
        if mean.value is not None:
            shares = np.array([hits / n for hits, n in rates if n])
            found["tpr_mean"] = _mean_over_generators(mean, shares, is_of_generators)
        if is_of_generators and tpr.interval and found["tpr_weighted"].value is not None:
            found["tpr_weighted"] = found["tpr_weighted"].with_interval(tpr.interval, tpr.method)
        return found

    def add_to_verdicts(self, figures: Figures, counts: VerdictCounts) -> dict[str, MetricValue]:
        """Add intervals to metrics of verdicts with abstentions, by the verdicts of the sample."""
        if self._sample is None or not len(self._sample):
            return dict(figures)
        verdicts = np.asarray(self._sample["verdict"].fill_null("unscored").to_pylist(), object)
        fake = self._kinds != "real"
        sample = Resampled.in_groups(
            np.zeros(len(fake)), fake, self._names, totals=counts.totals, seed=self._seed
        )
        hit = verdicts == np.where(fake, "fake", "real")
        found = dict(figures)
        for name, (hits, of) in _SHARES.items():
            if figures[name].value is not None and sample.is_grouped:
                among = np.ones(len(fake), np.bool_) if of is None else np.isin(verdicts, of)
                if name.startswith(("tpr", "tnr")):
                    among &= fake == name.startswith("tpr")
                is_hit = hit if hits == _RIGHT else np.isin(verdicts, hits)
                found[name] = _grouped_share(figures[name], is_hit, among, sample)
        balanced = found["balanced_accuracy_strict"]
        if balanced.value is not None:
            found["balanced_accuracy_strict"] = _balanced(balanced, hit, sample)
        return found


def _mean_over_generators(
    mean: MetricValue, shares: npt.NDArray[np.float64], is_of_generators: bool
) -> MetricValue:
    k = len(shares)
    if not is_of_generators or k < uncertainty.MIN_GROUPS:
        why = (
            f"an interval of a mean over generators needs {uncertainty.MIN_GROUPS} of them, and is "
            "of further generators"
        )
        return replace(mean, why=why)
    value = float(shares.mean())
    part = Replicates((value * k - shares) / (k - 1), np.full(k, 1 / k))
    ends = uncertainty.jackknife(value, [part])
    if ends is None:
        exact = uncertainty.share_interval(value, k)
        return mean.with_interval(exact, uncertainty.CLOPPER_PEARSON)
    return mean.with_interval(ends, uncertainty.JACKKNIFE)


def _grouped_share(
    share: MetricValue, is_hit: Bools, among: Bools, sample: Resampled
) -> MetricValue:
    """The exact interval of a share, of as many images as the grouped ones are worth."""
    strata = [
        (stratum._replace(codes=stratum.codes[among[mine]]), mine[among])
        for stratum, mine in sample.strata
        if among[mine].any()
    ]
    value = share.value or 0.0
    if not any(stratum.is_grouped for stratum, _ in strata):
        return share
    worth = uncertainty.effective_count(is_hit[among], strata, value, share.n)
    ends = uncertainty.proportion_interval(value * worth, worth)
    return share.with_interval(ends, uncertainty.CLOPPER_PEARSON)


def _balanced(figure: MetricValue, is_hit: Bools, sample: Resampled) -> MetricValue:
    """The jackknife's interval of the mean of both classes' shares."""
    parts = []
    rates = [float(is_hit[mine].mean()) for _, mine in sample.strata]
    for (stratum, mine), rate in zip(sample.strata, rates, strict=True):
        [part] = uncertainty.mean_replicates(
            is_hit[mine].astype(np.float64), [(stratum, np.ones(int(mine.sum()), np.bool_))]
        )
        parts.append(part._replace(values=sum(rates) / 2 + (part.values - rate) / 2))
    value = figure.value or 0.0
    ends = uncertainty.jackknife(value, parts) if len(parts) == 2 else None
    if ends is None:
        few = min((stratum.groups for stratum, _ in sample.strata), default=1)
        exact = uncertainty.share_interval(value, few)
        return figure.with_interval(exact, uncertainty.CLOPPER_PEARSON)
    low, high = min(value, ends[0]), max(value, ends[1])
    return MetricValue(value, low, high, figure.n, uncertainty.JACKKNIFE)


def names_of(sample: pa.Table) -> Names:
    """Whose each row is (m,): the generator of a fake; of a real image its source if the labels
    have one, else its group.
    """
    makers = np.asarray(sample["generator"].to_pylist(), object)
    if "source" not in sample.column_names:
        return makers
    sources = np.asarray(sample["source"].to_pylist(), object)
    named = np.array([one is not None and bool(one.strip()) for one in sources], np.bool_) & (
        np.asarray(sample["kind"].to_pylist()) == "real"
    )
    return np.where(named, sources, makers)
