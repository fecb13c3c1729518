"""Measure a detector or ensemble (`measure_system`), and compare pairs of them (`paired_tests`).

A system is a detector or the ensemble of a run. Its metrics are computed for all images and for
parts of the images: whole fakes and local edits, each generator, each format and size, and
perturbed images.

The 95 % intervals of metrics of all images, of whole fakes, and of local edits may also apply to
generators that the labels do not have. `ray_app.evaluation.interval_sample` decides whether they
do. The intervals of other metrics apply only to further images like the labelled ones.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.evaluation import accumulate
from ray_app.evaluation.groups import FAKE_KINDS, EvaluationGroup
from ray_app.evaluation.interval_sample import Intervals, Meaning, read_group_names
from ray_app.evaluation.systems import System, combined_overlap, is_named, training_overlap
from ray_app.metrics import curves, detection, intervals, significance
from ray_app.metrics.arrays import Bools
from ray_app.metrics.registry import (
    METRICS,
    Resampled,
    ScoredImages,
    descending_order,
    measure,
    measure_difference,
)
from ray_app.metrics.table import ALL, MetricRow, build_rows
from ray_app.metrics.values import MetricValue, undefined
from ray_app.reports.evaluation.result import (
    AVERAGES,
    DECIDED,
    ClassHistogram,
    Curves,
    GeneratorInfo,
    IntervalInfo,
    PairedTest,
    Points,
    ReliabilityBin,
    StratumInfo,
    SystemInfo,
    ViewInfo,
    kind_scope,
)
from ray_app.runs.summary import EDGES

NONE_SCORED = "none of these images was scored"


@dataclass(frozen=True)
class SystemOptions:
    """Inputs that the measurements of all detectors and ensembles of a run share.

    Attributes:
        intervals: Chooses the groups of images that the jackknife leaves out to compute intervals.
        generators: The generators and sources that labels name.
        members: The detectors of the ensemble.
        identity: The section `identity` of `run.json`, which has the kind of each perturbation and
            the perturbations whose scores are missing.
    """

    intervals: Intervals
    generators: Sequence[GeneratorInfo] = ()
    members: Sequence[System] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)


class MeasuredSystem(NamedTuple):
    """The measurements of one detector or ensemble.

    Attributes:
        info: Facts such as the threshold and the number of scored images of each generator.
        rows: Its metrics, as rows of the metrics table.
        curves: Points of its charts, such as the ROC curve.
    """

    info: SystemInfo
    rows: list[MetricRow]
    curves: Curves


def list_generators(
    cells: accumulate.Cells, traits: Mapping[str, Mapping[str, str]]
) -> list[GeneratorInfo]:
    """Return the generators of fakes and the sources of real images that the labels name.

    No scores are read yet. The field `unscored` of each entry is therefore the number of all its
    images.

    Args:
        cells: Counts of the labelled images.
        traits: Facts about generators of fakes (`released`, `architecture`), by generator name.

    Returns:
        An entry for each generator and kind of fake, and for each source.
    """
    labelled: Counter[EvaluationGroup] = Counter()
    for (cell, _, _), count in cells.rows.items():
        labelled[cell.group] += count
    generators = []
    for group in sorted(labelled):
        group_traits = {} if group.kind == "real" else traits
        generators.append(
            GeneratorInfo(
                name=group.generator,
                label=group.label,
                kind=group.kind,
                released=group_traits.get("released", {}).get(group.generator),
                architecture=group_traits.get("architecture", {}).get(group.generator),
                unscored=labelled[group],
            )
        )
    return generators


def measure_system(
    scores: "SystemScores", cells: accumulate.Cells, options: SystemOptions
) -> MeasuredSystem:
    """Return the facts, the metrics, and the curves of one detector or ensemble.

    Args:
        scores: The scores of the detector or ensemble.
        cells: Counts of the labelled images, and functions that read scores of perturbed images.
        options: Inputs that the measurements of all detectors and ensembles share.

    Returns:
        The measurements.
    """
    system, images = scores.system, scores.images
    metrics = scores.measure(images, options.intervals.resample(images, system, FAKE_KINDS))
    scored = {group.kind for group, (_, n) in scores.correct_counts.items() if n}
    by_kind = options.intervals.common_info([kind for kind in FAKE_KINDS if kind in scored])
    generators = [_add_counts(generator, scores, options) for generator in options.generators]
    strata = _measure_strata(scores, options)
    views = list(_measure_views(scores, cells, options))
    risk = _measure_risk(scores)
    parts: dict[str, Mapping[str, MetricValue]] = {
        ALL: metrics | {"aurc": risk.aurc},
        DECIDED: _measure_verdicts(cells, options) if system.decides else {},
        AVERAGES: _measure_averages(scores, generators, options, metrics["tpr"]),
        **{
            kind_scope(kind): _measure_kind(kind, scores, options, metrics, by_kind)
            for kind in FAKE_KINDS
        },
        **{
            generator.scope: _measure_generator(generator, scores, options)
            for generator in generators
        },
        **{stratum.scope: values for stratum, values in strata},
        **_build_report(images),
    }
    rows = [
        row
        for scope, values in parts.items()
        for row in build_rows(values, system.name, scope=scope)
    ]
    for view, values in views:
        rows += build_rows(values, system.name, view=view.name)
    info = SystemInfo(
        name=system.name,
        kind=system.kind,
        title=system.title,
        output="binary" if scores.binary else "continuous",
        calibrated=system.calibrated,
        threshold=system.threshold,
        strict=system.strict,
        late=system.late,
        n_real=images.n_real,
        n_fake=images.n_fake,
        unscored=cells.joined - len(images),
        kinds_intervals=by_kind,
        generators=tuple(generators),
        strata=tuple(stratum for stratum, _ in strata),
        views=tuple(view for view, _ in views),
    )
    return MeasuredSystem(info, rows, _build_curves(scores, risk.points))


def paired_tests(
    sample: pa.Table, systems: Sequence[System], binary: Mapping[str, bool], meaning: Meaning
) -> tuple[list[PairedTest], list[MetricRow]]:
    """Test for each pair of detectors or ensembles if one is better, on images that both scored.

    The metric is the AUC, or the accuracy if one of the two replies only yes or no. The difference
    is the metric of the second minus that of the first. The p-value `p_holm` is corrected for the
    number of pairs.

    Args:
        sample: The sample of the labelled rows.
        systems: The detectors and ensembles.
        binary: Whether each of them replies only yes or no, by name.
        meaning: `generators` to leave out one generator or source at a time in the jackknife, which
            requires that the labels name enough of them. `images` to leave out random groups of
            images.

    Returns:
        The tests, and the differences with their intervals.
    """
    if not len(sample):
        return [], []
    fakes = np.asarray(sample["kind"]) != "real"
    names = read_group_names(sample) if meaning == "generators" else None
    scores = {
        system.name: np.asarray(sample[f"score:{system.name}"].fill_null(np.nan))
        for system in systems
    }
    tests, rows = [], []
    for system_a, system_b in combinations(systems, 2):
        both = np.isfinite(scores[system_a.name]) & np.isfinite(scores[system_b.name])
        if not both.any():
            continue
        pair_names = None if names is None else names[both]
        first, second = (
            Resampled.in_groups(scores[system.name][both], fakes[both], pair_names, **system.cut)
            for system in (system_a, system_b)
        )
        name = "accuracy" if binary[system_a.name] or binary[system_b.name] else "auc"
        difference, p = measure_difference(METRICS[name], first, second)
        test_name = f"clustered {name}" if first.is_grouped else name
        test = PairedTest(system_a.name, system_b.name, test_name, difference.n, p)
        tests.append(test)
        rows.append(MetricRow(system_b.name, "", test.scope, test_name, difference))
    corrected = significance.holm([test.p for test in tests])
    return [
        replace(test, p_holm=p_holm) for test, p_holm in zip(tests, corrected, strict=True)
    ], rows


@dataclass(frozen=True)
class SystemScores:
    """The scores of one detector or ensemble, from the highest score down.

    A cell is a set of images of one kind, generator, file format, and range of sizes.

    Attributes:
        system: The detector or ensemble.
        images: The scored images (n,).
        cells: Index (n,) of each image's cell in `file_cells`.
        file_cells: All cells.
        binary: Whether all scores are yes or no.
    """

    system: System
    images: ScoredImages
    cells: npt.NDArray[np.intp]
    file_cells: Sequence[accumulate.FileCell]
    binary: bool

    def mask(self, predicate: Callable[[accumulate.FileCell], bool]) -> Bools:
        """Return for each image (n,) whether `predicate` is True for its cell.

        The cell has the image's kind, generator, file format, and range of sizes.
        """
        is_selected = np.array([predicate(cell) for cell in self.file_cells], np.bool_)
        return is_selected[self.cells]

    def select(self, predicate: Callable[[accumulate.FileCell], bool]) -> ScoredImages:
        """Return the images for whose cell `predicate` is True.

        The cell has the image's kind, generator, file format, and range of sizes.
        """
        return self.images.select(self.mask(predicate))

    def select_against(
        self, groups: Collection[EvaluationGroup], others: Sequence[str] = ()
    ) -> ScoredImages:
        """Return images of some generators or sources, and images of the other class to compare.

        Args:
            groups: The generators of fakes, or the sources of real images.
            others: Globs that select sources or generators of the other class; empty for all.

        Returns:
            The images of both classes.
        """
        is_real = any(group.kind == "real" for group in groups)

        def is_selected(cell: accumulate.FileCell) -> bool:
            if cell.group in groups:
                return True
            is_other = (cell.group.kind == "real") is not is_real
            return is_other and (
                not others or any(is_named(cell.group.generator, glob) for glob in others)
            )

        return self.select(is_selected)

    def count_correct(self, groups: Iterable[EvaluationGroup]) -> tuple[int, int]:
        """Return the numbers of correctly classified and of scored images of some generators.

        Args:
            groups: The generators of fakes, each with a kind, or the sources of real images.

        Returns:
            The number of correctly classified images, and the number of scored images.
        """
        counts = [self.correct_counts.get(group, (0, 0)) for group in groups]
        return sum(hits for hits, _ in counts), sum(n for _, n in counts)

    def measure(
        self, images: ScoredImages, sample: Resampled | None = None
    ) -> dict[str, MetricValue]:
        """Return all detection metrics of some images, such as TPR and AUC, by name.

        Args:
            images: The images.
            sample: The images in the groups that the jackknife leaves out to compute intervals. If
                None, only proportions, such as the TPR, have intervals.
        """
        return detection.measure_detection(images, sample, continuous=not self.binary)

    def measure_ranking(
        self, name: str, images: ScoredImages, sample: Resampled | None
    ) -> MetricValue:
        """Return a metric that ranks images by score; undefined if all scores are yes or no.

        Args:
            name: The name of the metric, such as `auc`.
            images: The images.
            sample: The images in the groups that the jackknife leaves out; None for no interval.

        Returns:
            The metric with its interval.
        """
        if self.binary:
            return undefined(detection.NO_RANKING, len(images))
        return measure(METRICS[name], images, sample)

    @cached_property
    def correct_counts(self) -> Mapping[EvaluationGroup, tuple[int, int]]:
        """Number of correctly classified images and of scored images, by kind and generator."""
        is_right = self.images.flagged == self.images.is_fake
        n = np.bincount(self.cells, minlength=len(self.file_cells))
        hits = np.bincount(self.cells[is_right], minlength=len(self.file_cells))
        counts: dict[EvaluationGroup, tuple[int, int]] = {}
        for cell, n_hits, count in zip(self.file_cells, hits.tolist(), n.tolist(), strict=True):
            previous = counts.get(cell.group, (0, 0))
            counts[cell.group] = previous[0] + n_hits, previous[1] + count
        return counts


def collect_scores(
    system: System, cells: accumulate.Cells, column: accumulate.ScoreColumn | None = None
) -> SystemScores:
    """Read the scores of a detector or ensemble, and sort them from the highest score down.

    Args:
        system: The detector or ensemble.
        cells: The labelled images, with the functions that read scores.
        column: Scores to use instead, such as those of perturbed images.

    Returns:
        The sorted scores, with the kind, generator, format, and size of each image.
    """
    column = column or cells.scores(system.name)
    order = descending_order(column.scores)
    # NumPy would convert smaller indices before each use.
    scores, codes = column.scores[order], column.cells[order].astype(np.intp)
    is_fake = np.array([cell.group.kind != "real" for cell in cells.cells], np.bool_)[codes]
    replies = bool(len(scores)) and bool(np.isin(scores, (-1.0, 1.0)).all())
    images = ScoredImages(scores, is_fake, **system.cut)
    return SystemScores(system, images, codes, cells.cells, system.binary or replies)


def _measure_kind(
    kind: str,
    scores: SystemScores,
    options: SystemOptions,
    metrics: dict[str, MetricValue],
    by_kind: IntervalInfo,
) -> dict[str, MetricValue]:
    """Return metrics of whole fakes, or of local edits, against all real images.

    Args:
        kind: The kind of the fakes.
        scores: The scores of the system.
        options: Inputs that all systems share.
        metrics: Metrics of all fakes, which are returned if all fakes are of this kind.
        by_kind: The meaning of the intervals, common to both kinds.
    """
    images = scores.select(lambda cell: cell.group.kind in (kind, "real"))
    if images.n_fake == scores.images.n_fake and images.n_fake:
        return metrics
    if not images.n_fake:
        reason = f"no {kind} fake was scored" if kind == "whole" else "no local edit was scored"
        return dict.fromkeys(metrics, undefined(reason, images.n_real))
    is_of_images = by_kind.fakes == "images"
    sample = options.intervals.resample(images, scores.system, (kind,), is_of_images=is_of_images)
    return scores.measure(images, sample)


def _measure_verdicts(cells: accumulate.Cells, options: SystemOptions) -> dict[str, MetricValue]:
    counts = _count_verdicts(cells)
    return options.intervals.add_to_verdicts(detection.measure_verdicts(counts), counts)


def _measure_averages(
    scores: SystemScores,
    generators: Iterable[GeneratorInfo],
    options: SystemOptions,
    tpr: MetricValue,
) -> dict[str, MetricValue]:
    rates: dict[str, tuple[int, int]] = {}
    for generator in generators:
        if generator.label == "fake":
            hits, n = scores.count_correct([get_group(generator)])
            previous = rates.get(generator.name, (0, 0))
            rates[generator.name] = (previous[0] + hits, previous[1] + n)
    averages = detection.average_rates(rates)
    return options.intervals.add_to_averages(averages, list(rates.values()), tpr)


def get_group(generator: GeneratorInfo) -> EvaluationGroup:
    """Return the group (kind and generator) of the images of a generator or source."""
    return EvaluationGroup(generator.kind, generator.name)


def _add_counts(
    generator: GeneratorInfo, scores: SystemScores, options: SystemOptions
) -> GeneratorInfo:
    n = scores.count_correct([get_group(generator)])[1]
    overlap = _find_overlap(scores.system, generator.name, options)
    return replace(generator, seen=overlap, n=n, unscored=generator.unscored - n)


def _measure_generator(
    generator: GeneratorInfo, scores: SystemScores, options: SystemOptions
) -> dict[str, MetricValue]:
    """Return the fraction of a generator's images that are judged correctly, and its AUC.

    The AUC is against all images of the other class.
    """
    group = get_group(generator)
    images = scores.select_against([group])
    sample = None if scores.binary else options.intervals.resample_images(images)
    return {
        "rate": intervals.proportion(*scores.count_correct([group]), NONE_SCORED),
        "auc": scores.measure_ranking("auc", images, sample),
    }


def _find_overlap(system: System, generator: str, options: SystemOptions) -> str:
    cards = (
        [system.card] if system.kind == "detector" else [member.card for member in options.members]
    )
    return combined_overlap(
        "unknown" if card is None else training_overlap(card, generator) for card in cards
    )


def _count_verdicts(cells: accumulate.Cells) -> detection.VerdictCounts:
    counts = dict.fromkeys(
        (
            f"{label}_{verdict}"
            for label in ("fake", "real")
            for verdict in ("fake", "real", "abstain", "unscored")
        ),
        0,
    )
    for (cell, _, verdict), count in cells.rows.items():
        counts[f"{cell.group.label}_{verdict or 'unscored'}"] += count
    return detection.VerdictCounts(**counts)


def _build_curves(scores: SystemScores, risk: Sequence[Sequence[float]]) -> Curves:
    images = scores.images
    edges = np.clip(images.scores, EDGES[0], EDGES[-1])
    real, fake = (
        tuple(np.histogram(edges[mask], EDGES)[0].tolist())
        for mask in (~images.is_fake, images.is_fake)
    )
    histogram = ClassHistogram(tuple(EDGES.tolist()), real, fake)
    if scores.binary:
        return Curves(histogram=histogram)
    return Curves(
        roc=_to_points(curves.roc_points(images)),
        precision_recall=_to_points(curves.precision_recall_points(images)),
        risk_coverage=_to_points(risk),
        reliability=tuple(
            ReliabilityBin(**bin_fields) for bin_fields in curves.reliability(images)
        ),
        histogram=histogram,
    )


def _to_points(points: Iterable[Sequence[float | None]]) -> Points:
    return tuple(map(tuple, points))


def _measure_risk(scores: SystemScores) -> curves.RiskCoverage:
    if scores.binary:
        return curves.RiskCoverage([], undefined("binary replies have no confidence"))
    return curves.risk_coverage(scores.images)


def _build_report(images: ScoredImages) -> dict[str, dict[str, MetricValue]]:
    """Return the metrics of scikit-learn's classification report by scope."""
    report = detection.build_classification_report(
        images.true_positives,
        images.n_fake - images.true_positives,
        images.false_positives,
        images.n_real - images.false_positives,
    )
    return {
        report_scope(name): {
            metric: MetricValue(value, n=round(entries["support"]))
            for metric, value in entries.items()
            if metric != "support"
        }
        for name, entries in report.items()
        if isinstance(entries, Mapping)
    }


def report_scope(name: str) -> str:
    """Return the scope under which the metrics table has a line of the classification report.

    The report is scikit-learn's. For the line `macro avg`, the scope is `report: macro avg`.
    """
    return f"report: {name}"


def _measure_strata(
    scores: SystemScores, options: SystemOptions
) -> list[tuple[StratumInfo, dict[str, MetricValue]]]:
    """Measure images of one format and one size.

    Within such a stratum, neither format nor size can separate the classes.
    """
    bands = (*accumulate.BANDS, accumulate.UNKNOWN)
    has_images = np.bincount(scores.cells, minlength=len(scores.file_cells)) > 0
    strata_keys = {
        (cell.format, cell.size)
        for cell, has in zip(scores.file_cells, has_images, strict=True)
        if has
    }
    strata = []
    for form, size in sorted(strata_keys, key=lambda key: (key[0], bands.index(key[1]))):
        images = scores.select(partial(_is_in_stratum, form, size))
        sample = options.intervals.resample_images(images)
        metrics = {
            "auc": scores.measure_ranking("auc", images, sample),
            "balanced_accuracy": measure(METRICS["balanced_accuracy"], images, sample),
        }
        strata.append((StratumInfo(form, size, images.n_real, images.n_fake), metrics))
    return strata


def _is_in_stratum(form: str, size: str, cell: accumulate.FileCell) -> bool:
    return (cell.format, cell.size) == (form, size)


def _measure_views(
    scores: SystemScores, cells: accumulate.Cells, options: SystemOptions
) -> Iterator[tuple[ViewInfo, dict[str, MetricValue]]]:
    """Yield the metrics of each view in the run's order, then the views that are missing."""
    kinds, has_views = options.identity.get("perturb_kinds", {}), False
    for view, column in cells.views(scores.system.name):
        images = collect_scores(scores.system, cells, column).images
        sample = options.intervals.resample_view(images)
        info = ViewInfo(
            view, kinds.get(view, "degradation"), n_real=images.n_real, n_fake=images.n_fake
        )
        has_views = True
        yield info, scores.measure(images, sample)
    if has_views:
        for name, view_info in options.identity.get("perturb_absent", {}).items():
            yield ViewInfo(name=name, **view_info), {}
