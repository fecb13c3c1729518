"""Choose which images the 95 % intervals of an evaluation describe (`Intervals`).

If the labels name at least eight generators of fakes, intervals also apply to images of generators
that the labels do not have. With fewer generators, intervals apply only to further images of the
labelled generators. Similarly, intervals also apply to further sources of real images if the labels
name at least eight sources. Intervals for further generators or sources are computed from a sample
of the labelled rows.
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
"""Maximum number of rows for intervals that are for further generators."""
MAX_IN_VIEW = 5_000
"""Maximum number of images of a view for intervals other than those of proportions.

There are many views, so larger ones would take too long.
"""
Meaning = Literal["generators", "images"]
Metrics = Mapping[str, MetricValue]
Names = npt.NDArray[np.object_]
_CORRECT = "correct"
_FRACTIONS = {
    "coverage": (("fake", "real"), None),
    "accuracy_of_decided": (_CORRECT, ("fake", "real")),
    "tpr_of_decided": (_CORRECT, ("fake", "real")),
    "tnr_of_decided": (_CORRECT, ("fake", "real")),
    "accuracy_strict": (_CORRECT, None),
    "tpr_strict": (_CORRECT, None),
    "tnr_strict": (_CORRECT, None),
}
"""By metric, the verdicts that are hits, and the verdicts that count (None for all)."""


class Intervals:
    """Divide images into the groups that the jackknife leaves out to compute intervals of metrics.

    The jackknife may leave out the images of one generator or source at a time. Intervals then also
    hold for new generators and sources, of which no image is labelled. If it leaves out random
    groups, intervals hold only for further images of the labelled generators and sources.

    Args:
        meaning: `generators` to leave out one generator or source at a time, if the labels name at
            least eight generators or sources. `images` to always leave out random groups.
        sample: Labelled rows with scores, from `accumulate.Cells.sample`. Groups by generator or
            source are made from these rows. None to always use random groups.
        seed: Seed of the random groups of images.
    """

    def __init__(self, meaning: Meaning, sample: pa.Table | None, *, seed: int = 0) -> None:
        self._seed = seed
        self._sample = sample.slice(0, MAX_SAMPLED) if sample is not None else None
        self._kinds = np.empty(0, object)
        self._names: Names | None = None
        if self._sample is not None and len(self._sample):
            self._kinds = np.asarray(self._sample["kind"].to_pylist(), object)
            self._names = read_group_names(self._sample) if meaning == "generators" else None
        self.facts = self.read_info(FAKE_KINDS)

    def read_info(self, kinds: Collection[str]) -> IntervalInfo:
        """Return whether intervals apply to further generators and to further sources.

        The intervals are those of metrics of all real images and of fakes of some kinds.

        Args:
            kinds: Kinds of fakes: `whole`, `local`, or both.

        Returns:
            For fakes, whether intervals apply to further generators or only to further images of
            the labelled generators. For real images, whether they apply to further sources or only
            to further images of the labelled sources.
        """
        names = [
            () if self._names is None else self._names[np.isin(self._kinds, kind_filter)]
            for kind_filter in (tuple(kinds), ("real",))
        ]
        return IntervalInfo.from_names(*names)

    def common_info(self, kinds: Sequence[str]) -> IntervalInfo:
        """Return the one meaning of intervals that are shown together for several kinds of fakes.

        The meaning is whether intervals apply to further generators and sources. If the labels name
        too few generators of one kind, the intervals of all kinds apply only to further images of
        the labelled generators and sources.

        Args:
            kinds: Kinds of fakes, such as `whole` and `local`.

        Returns:
            The generators and sources to which the intervals apply.
        """
        infos = [self.read_info((kind,)) for kind in kinds]
        image_info = next((info for info in infos if info.fakes == "images"), None)
        if image_info is not None and len(infos) > 1:
            return replace(image_info, reals="images")
        return infos[0] if len(infos) == 1 else self.facts

    def resample(
        self,
        images: ScoredImages,
        system: System,
        kinds: Sequence[str],
        *,
        is_of_images: bool = False,
    ) -> Resampled:
        """Return images in the groups that the jackknife leaves out to compute an interval.

        The groups are generators and sources if the labels name enough of them, else random groups.

        Args:
            images: The images that the metrics are computed from: all real images, and the fakes of
                `kinds`.
            system: The detector or ensemble that scored the images.
            kinds: Kinds of fakes, such as `whole`.
            is_of_images: Whether to use random groups in any case. Intervals then apply only to
                further images of the labelled generators and sources.

        Returns:
            A sample of the images, in groups by generator or source, or in random groups.
        """
        facts = self.read_info(kinds)
        if is_of_images or facts.is_for_images or self._sample is None:
            return self.resample_images(images)
        scores = np.asarray(self._sample[f"score:{system.name}"].fill_null(np.nan))
        is_selected = np.isfinite(scores) & np.isin(self._kinds, (*kinds, "real"))
        names = self._names[is_selected] if self._names is not None else None
        return Resampled.in_groups(
            scores[is_selected],
            self._kinds[is_selected] != "real",
            names,
            totals=(images.n_fake, images.n_real),
            seed=self._seed,
            **system.cut,
        )

    def resample_images(self, images: ScoredImages) -> Resampled:
        """Return the images in random groups for the jackknife.

        Intervals from random groups apply only to further images of the labelled generators and
        sources.
        """
        return Resampled.in_blocks(images, self._seed)

    def resample_view(self, images: ScoredImages) -> Resampled | None:
        """Return the perturbed copies of images in random groups for the jackknife.

        The result is None if there are more than MAX_IN_VIEW images, because the jackknife would
        take too long for all perturbations.
        """
        return self.resample_images(images) if len(images) <= MAX_IN_VIEW else None

    def add_to_averages(
        self, averages: Metrics, rates: Sequence[tuple[int, int]], tpr: MetricValue
    ) -> dict[str, MetricValue]:
        """Add 95 % intervals to means of the true-positive rate (TPR) over generators.

        Args:
            averages: The metrics `tpr_mean`, in which each generator counts once, and
                `tpr_weighted`, in which each image counts once.
            rates: For each generator, the number of detected fakes and the number of fakes.
            tpr: The true-positive rate of all fakes together, with its interval.

        Returns:
            The metrics. `tpr_mean` has an interval only if the labels name enough generators. The
            interval then also applies to further generators. `tpr_weighted` then has the interval
            of `tpr`. Otherwise, it keeps its own, which applies only to further images.
        """
        metrics = dict(averages)
        is_of_generators = self.facts.fakes == "generators"
        mean = metrics["tpr_mean"]
        if mean.value is not None:
            fractions = np.array([hits / n for hits, n in rates if n])
            metrics["tpr_mean"] = _add_mean_interval(mean, fractions, is_of_generators)
        if is_of_generators and tpr.interval and metrics["tpr_weighted"].value is not None:
            metrics["tpr_weighted"] = metrics["tpr_weighted"].with_interval(
                tpr.interval, tpr.method
            )
        return metrics

    def add_to_verdicts(
        self, verdict_metrics: Metrics, counts: VerdictCounts
    ) -> dict[str, MetricValue]:
        """Add 95 % intervals to metrics of verdicts, from the verdicts of the sample.

        If images are grouped by generator or source, intervals apply to further generators or
        sources. Otherwise, proportions keep the intervals that they have, and only
        `balanced_accuracy_strict` gets an interval. It applies to further images of the labelled
        generators and sources. Without a sample, the metrics are returned unchanged.

        Args:
            verdict_metrics: The metrics, from `metrics.detection.measure_verdicts`.
            counts: The verdicts of all images.

        Returns:
            The metrics with intervals.
        """
        if self._sample is None or not len(self._sample):
            return dict(verdict_metrics)
        verdicts = np.asarray(self._sample["verdict"].fill_null("unscored").to_pylist(), object)
        fake = self._kinds != "real"
        sample = Resampled.in_groups(
            np.zeros(len(fake)), fake, self._names, totals=counts.totals, seed=self._seed
        )
        hit = verdicts == np.where(fake, "fake", "real")
        metrics = dict(verdict_metrics)
        for name, (hits, counted) in _FRACTIONS.items():
            if verdict_metrics[name].value is not None and sample.is_grouped:
                among = (
                    np.ones(len(fake), np.bool_) if counted is None else np.isin(verdicts, counted)
                )
                if name.startswith(("tpr", "tnr")):
                    among &= fake == name.startswith("tpr")
                is_hit = hit if hits == _CORRECT else np.isin(verdicts, hits)
                metrics[name] = _add_grouped_interval(verdict_metrics[name], is_hit, among, sample)
        balanced = metrics["balanced_accuracy_strict"]
        if balanced.value is not None:
            metrics["balanced_accuracy_strict"] = _add_balanced_interval(balanced, hit, sample)
        return metrics


def _add_mean_interval(
    mean: MetricValue, fractions: npt.NDArray[np.float64], is_of_generators: bool
) -> MetricValue:
    k = len(fractions)
    if not is_of_generators or k < uncertainty.MIN_GROUPS:
        reason = (
            f"an interval of a mean over generators is for further generators, and needs at least "
            f"{uncertainty.MIN_GROUPS}"
        )
        return replace(mean, why=reason)
    value = float(fractions.mean())
    part = Replicates((value * k - fractions) / (k - 1), np.full(k, 1 / k))
    interval = uncertainty.jackknife(value, [part])
    if interval is None:
        exact = uncertainty.fraction_interval(value, k)
        return mean.with_interval(exact, uncertainty.CLOPPER_PEARSON)
    return mean.with_interval(interval, uncertainty.JACKKNIFE)


def _add_grouped_interval(
    fraction: MetricValue, is_hit: Bools, among: Bools, sample: Resampled
) -> MetricValue:
    """Add the exact interval of a fraction.

    The number of images is the number of independent images that the grouped ones are worth.
    """
    strata = [
        (stratum._replace(codes=stratum.codes[among[mask]]), mask[among])
        for stratum, mask in sample.strata
        if among[mask].any()
    ]
    value = fraction.value or 0.0
    if not any(stratum.is_grouped for stratum, _ in strata):
        return fraction
    n_effective = uncertainty.effective_count(is_hit[among], strata, value, fraction.n)
    interval = uncertainty.proportion_interval(value * n_effective, n_effective)
    return fraction.with_interval(interval, uncertainty.CLOPPER_PEARSON)


def _add_balanced_interval(metric: MetricValue, is_hit: Bools, sample: Resampled) -> MetricValue:
    """Add the jackknife's interval of the mean of both classes' fractions."""
    parts = []
    rates = [float(is_hit[mask].mean()) for _, mask in sample.strata]
    for (stratum, mask), rate in zip(sample.strata, rates, strict=True):
        [part] = uncertainty.mean_replicates(
            is_hit[mask].astype(np.float64), [(stratum, np.ones(int(mask.sum()), np.bool_))]
        )
        parts.append(part._replace(values=sum(rates) / 2 + (part.values - rate) / 2))
    value = metric.value or 0.0
    interval = uncertainty.jackknife(value, parts) if len(parts) == 2 else None
    if interval is None:
        n_groups = min((stratum.groups for stratum, _ in sample.strata), default=1)
        exact = uncertainty.fraction_interval(value, n_groups)
        return metric.with_interval(exact, uncertainty.CLOPPER_PEARSON)
    low, high = min(value, interval[0]), max(value, interval[1])
    return MetricValue(value, low, high, metric.n, uncertainty.JACKKNIFE)


def read_group_names(sample: pa.Table) -> Names:
    """Return for each row (m,) of the sample the name of its group, for the jackknife.

    The jackknife leaves out one group at a time. A fake is named by its generator, and a real image
    by its source. A real image without a source is named by the column `generator`, such as
    `real:coco`.
    """
    generators = np.asarray(sample["generator"].to_pylist(), object)
    if "source" not in sample.column_names:
        return generators
    sources = np.asarray(sample["source"].to_pylist(), object)
    has_source = np.array(
        [source is not None and bool(source.strip()) for source in sources], np.bool_
    ) & (np.asarray(sample["kind"].to_pylist()) == "real")
    return np.where(has_source, sources, generators)
