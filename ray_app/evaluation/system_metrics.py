"""Measure one system (`measure_system`): as a whole, by kind, generator, and stratum, under
perturbation; its curves; and paired tests of two systems (`paired_tests`).

Intervals of a system as a whole are of one meaning (ray_app.evaluation.interval_sample), those of
its parts of these parts' images.
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
from ray_app.evaluation.interval_sample import Intervals, Meaning, names_of
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
from ray_app.metrics.table import ALL, MetricRow, rows_of
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
    """What the measurements of all systems share.

    Attributes:
        intervals: The groups that intervals are of.
        generators: The generators and sources that labels name.
        members: The detectors of the ensemble.
        identity: The run's identity, which has the kinds of its views and which are not there.
    """

    intervals: Intervals
    generators: Sequence[GeneratorInfo] = ()
    members: Sequence[System] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)


class MeasuredSystem(NamedTuple):
    """The facts of a system, its metrics, and its curves."""

    info: SystemInfo
    rows: list[MetricRow]
    curves: Curves


def generators_of(
    cells: accumulate.Cells, traits: Mapping[str, Mapping[str, str]]
) -> list[GeneratorInfo]:
    """Return the generators and sources that labels name, each with the number of its images as
    `unscored`.

    Args:
        cells: The labelled rows.
        traits: Facts about generators of fakes (`released`, `architecture`), by their names.
    """
    labelled: Counter[EvaluationGroup] = Counter()
    for (cell, _, _), count in cells.rows.items():
        labelled[cell.group] += count
    found = []
    for group in sorted(labelled):
        known = {} if group.kind == "real" else traits
        found.append(
            GeneratorInfo(
                name=group.generator,
                label=group.label,
                kind=group.kind,
                released=known.get("released", {}).get(group.generator),
                architecture=known.get("architecture", {}).get(group.generator),
                unscored=labelled[group],
            )
        )
    return found


def measure_system(
    scores: "SystemScores", cells: accumulate.Cells, options: SystemOptions
) -> MeasuredSystem:
    """Return the facts, the metrics, and the curves of one system."""
    system, images = scores.system, scores.images
    figures = scores.figures(images, options.intervals.resample(images, system, FAKE_KINDS))
    scored = {group.kind for group, (_, n) in scores.right.items() if n}
    by_kind = options.intervals.alike([kind for kind in FAKE_KINDS if kind in scored])
    generators = [_with_scores(one, scores, options) for one in options.generators]
    strata = _strata(scores, options)
    views = list(_views(scores, cells, options))
    risk = _risk(scores)
    parts: dict[str, Mapping[str, MetricValue]] = {
        ALL: figures | {"aurc": risk.aurc},
        DECIDED: _decided(cells, options) if system.decides else {},
        AVERAGES: _averages(scores, generators, options, figures["tpr"]),
        **{
            kind_scope(kind): _of_kind(kind, scores, options, figures, by_kind)
            for kind in FAKE_KINDS
        },
        **{one.scope: _generator_figures(one, scores, options) for one in generators},
        **{stratum.scope: found for stratum, found in strata},
        **_report(images),
    }
    rows = [
        row for scope, found in parts.items() for row in rows_of(found, system.name, scope=scope)
    ]
    for view, found in views:
        rows += rows_of(found, system.name, view=view.name)
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
    return MeasuredSystem(info, rows, _curves(scores, risk.points))


def paired_tests(
    sample: pa.Table, systems: Sequence[System], binary: Mapping[str, bool], meaning: Meaning
) -> tuple[list[PairedTest], list[MetricRow]]:
    """Test the difference of two AUCs, or of two accuracies if one of the systems is binary, on
    images that both score.

    The jackknife leaves out generators and sources if labels name enough of them, unless intervals
    are of further images. A difference is b's metric less a's; `p_holm` is corrected for all pairs.
    """
    if not len(sample):
        return [], []
    fakes = np.asarray(sample["kind"]) != "real"
    names = names_of(sample) if meaning == "generators" else None
    scores = {
        one.name: np.asarray(sample[f"score:{one.name}"].fill_null(np.nan)) for one in systems
    }
    tests, rows = [], []
    for one, other in combinations(systems, 2):
        both = np.isfinite(scores[one.name]) & np.isfinite(scores[other.name])
        if not both.any():
            continue
        owners = None if names is None else names[both]
        first, second = (
            Resampled.in_groups(scores[system.name][both], fakes[both], owners, **system.cut)
            for system in (one, other)
        )
        name = "accuracy" if binary[one.name] or binary[other.name] else "auc"
        found, p = measure_difference(METRICS[name], first, second)
        words = f"clustered {name}" if first.is_grouped else name
        test = PairedTest(one.name, other.name, words, found.n, p)
        tests.append(test)
        rows.append(MetricRow(other.name, "", test.scope, words, found))
    corrected = significance.holm([test.p for test in tests])
    return [
        replace(test, p_holm=p_holm) for test, p_holm in zip(tests, corrected, strict=True)
    ], rows


@dataclass(frozen=True)
class SystemScores:
    """The scores of one system, from the highest score down, with the cell of each image."""

    system: System
    images: ScoredImages
    cells: npt.NDArray[np.intp]
    of_cells: Sequence[accumulate.FileCell]
    binary: bool

    def mask(self, is_chosen: Callable[[accumulate.FileCell], bool]) -> Bools:
        """Which images (n,) are in some of the cells."""
        chosen = np.array([is_chosen(cell) for cell in self.of_cells], np.bool_)
        return chosen[self.cells]

    def select(self, is_chosen: Callable[[accumulate.FileCell], bool]) -> ScoredImages:
        """The images of some of the cells."""
        return self.images.select(self.mask(is_chosen))

    def against(
        self, groups: Collection[EvaluationGroup], others: Sequence[str] = ()
    ) -> ScoredImages:
        """The images of some groups of one class, and those of the other class.

        Args:
            groups: The groups.
            others: Globs of the sources or generators of the other class. None of them: all.
        """
        is_real = any(group.kind == "real" for group in groups)

        def is_chosen(cell: accumulate.FileCell) -> bool:
            if cell.group in groups:
                return True
            is_other = (cell.group.kind == "real") is not is_real
            return is_other and (
                not others or any(is_named(cell.group.generator, glob) for glob in others)
            )

        return self.select(is_chosen)

    def correct(self, groups: Iterable[EvaluationGroup]) -> tuple[int, int]:
        """Images of some groups that are judged correctly, and images with a score."""
        counts = [self.right.get(group, (0, 0)) for group in groups]
        return sum(hits for hits, _ in counts), sum(n for _, n in counts)

    def figures(
        self, images: ScoredImages, sample: Resampled | None = None
    ) -> dict[str, MetricValue]:
        """All metrics of detection of some images."""
        return detection.detection_of(images, sample, continuous=not self.binary)

    def ranked(self, name: str, images: ScoredImages, sample: Resampled | None) -> MetricValue:
        """A metric that needs scores which rank images."""
        if self.binary:
            return undefined(detection.NO_RANKING, len(images))
        return measure(METRICS[name], images, sample)

    @cached_property
    def right(self) -> Mapping[EvaluationGroup, tuple[int, int]]:
        """Images judged correctly, and images with a score, of each group."""
        is_right = self.images.flagged == self.images.is_fake
        n = np.bincount(self.cells, minlength=len(self.of_cells))
        hits = np.bincount(self.cells[is_right], minlength=len(self.of_cells))
        found: dict[EvaluationGroup, tuple[int, int]] = {}
        for cell, more, count in zip(self.of_cells, hits.tolist(), n.tolist(), strict=True):
            before = found.get(cell.group, (0, 0))
            found[cell.group] = before[0] + more, before[1] + count
        return found


def scores_of(
    system: System, cells: accumulate.Cells, column: accumulate.ScoreColumn | None = None
) -> SystemScores:
    """Return the scores of a system, or of another column, from the highest score down."""
    column = column or cells.scores(system.name)
    order = descending_order(column.scores)
    # NumPy converts smaller indices before each use.
    scores, codes = column.scores[order], column.cells[order].astype(np.intp)
    is_fake = np.array([cell.group.kind != "real" for cell in cells.cells], np.bool_)[codes]
    replies = bool(len(scores)) and bool(np.isin(scores, (-1.0, 1.0)).all())
    images = ScoredImages(scores, is_fake, **system.cut)
    return SystemScores(system, images, codes, cells.cells, system.binary or replies)


def _of_kind(
    kind: str,
    scores: SystemScores,
    options: SystemOptions,
    figures: dict[str, MetricValue],
    by_kind: IntervalInfo,
) -> dict[str, MetricValue]:
    """Metrics of whole fakes, or of local edits, against all real images; those of all fakes if
    there are no others.

    Their intervals are of what `by_kind` says, the same for both.
    """
    images = scores.select(lambda cell: cell.group.kind in (kind, "real"))
    if images.n_fake == scores.images.n_fake and images.n_fake:
        return figures
    if not images.n_fake:
        why = f"no {kind} fake was scored" if kind == "whole" else "no local edit was scored"
        return dict.fromkeys(figures, undefined(why, images.n_real))
    is_of_images = by_kind.fakes == "images"
    sample = options.intervals.resample(images, scores.system, (kind,), is_of_images=is_of_images)
    return scores.figures(images, sample)


def _decided(cells: accumulate.Cells, options: SystemOptions) -> dict[str, MetricValue]:
    counts = _verdicts(cells)
    return options.intervals.add_to_verdicts(detection.abstaining(counts), counts)


def _averages(
    scores: SystemScores,
    generators: Iterable[GeneratorInfo],
    options: SystemOptions,
    tpr: MetricValue,
) -> dict[str, MetricValue]:
    rates: dict[str, tuple[int, int]] = {}
    for one in generators:
        if one.label == "fake":
            hits, n = scores.correct([group_of(one)])
            before = rates.get(one.name, (0, 0))
            rates[one.name] = (before[0] + hits, before[1] + n)
    averages = detection.averages(rates)
    return options.intervals.add_to_averages(averages, list(rates.values()), tpr)


def group_of(generator: GeneratorInfo) -> EvaluationGroup:
    """Return the group of the labels that a generator is."""
    return EvaluationGroup(generator.kind, generator.name)


def _with_scores(
    generator: GeneratorInfo, scores: SystemScores, options: SystemOptions
) -> GeneratorInfo:
    n = scores.correct([group_of(generator)])[1]
    seen = _seen(scores.system, generator.name, options)
    return replace(generator, seen=seen, n=n, unscored=generator.unscored - n)


def _generator_figures(
    generator: GeneratorInfo, scores: SystemScores, options: SystemOptions
) -> dict[str, MetricValue]:
    """The fraction of a generator's images that are judged correctly, and its AUC against all
    images of the other class.
    """
    group = group_of(generator)
    images = scores.against([group])
    sample = None if scores.binary else options.intervals.resample_images(images)
    return {
        "rate": intervals.proportion(*scores.correct([group]), NONE_SCORED),
        "auc": scores.ranked("auc", images, sample),
    }


def _seen(system: System, generator: str, options: SystemOptions) -> str:
    cards = (
        [system.card] if system.kind == "detector" else [member.card for member in options.members]
    )
    return combined_overlap(
        "unknown" if card is None else training_overlap(card, generator) for card in cards
    )


def _verdicts(cells: accumulate.Cells) -> detection.VerdictCounts:
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


def _curves(scores: SystemScores, risk: Sequence[Sequence[float]]) -> Curves:
    images = scores.images
    edges = np.clip(images.scores, EDGES[0], EDGES[-1])
    real, fake = (
        tuple(np.histogram(edges[mine], EDGES)[0].tolist())
        for mine in (~images.is_fake, images.is_fake)
    )
    histogram = ClassHistogram(tuple(EDGES.tolist()), real, fake)
    if scores.binary:
        return Curves(histogram=histogram)
    return Curves(
        roc=_points(curves.roc_points(images)),
        precision_recall=_points(curves.precision_recall_points(images)),
        risk_coverage=_points(risk),
        reliability=tuple(ReliabilityBin(**one) for one in curves.reliability(images)),
        histogram=histogram,
    )


def _points(points: Iterable[Sequence[float | None]]) -> Points:
    return tuple(map(tuple, points))


def _risk(scores: SystemScores) -> curves.RiskCoverage:
    if scores.binary:
        return curves.RiskCoverage([], undefined("binary replies say nothing of how sure they are"))
    return curves.risk_coverage(scores.images)


def _report(images: ScoredImages) -> dict[str, dict[str, MetricValue]]:
    """scikit-learn's classification report: by scope its metrics."""
    report = detection.classification_report(
        images.found,
        images.n_fake - images.found,
        images.alarms,
        images.n_real - images.alarms,
    )
    return {
        report_scope(name): {
            figure: MetricValue(value, n=round(entries["support"]))
            for figure, value in entries.items()
            if figure != "support"
        }
        for name, entries in report.items()
        if isinstance(entries, Mapping)
    }


def report_scope(name: str) -> str:
    """Return the scope of a line of the classification report, such as `fake` or `macro avg`."""
    return f"report: {name}"


def _strata(
    scores: SystemScores, options: SystemOptions
) -> list[tuple[StratumInfo, dict[str, MetricValue]]]:
    """Metrics within images of one format and one size, where neither can separate the classes."""
    bands = (*accumulate.BANDS, accumulate.UNKNOWN)
    there = np.bincount(scores.cells, minlength=len(scores.of_cells)) > 0
    known = {
        (cell.format, cell.size) for cell, has in zip(scores.of_cells, there, strict=True) if has
    }
    strata = []
    for form, size in sorted(known, key=lambda one: (one[0], bands.index(one[1]))):
        images = scores.select(partial(_is_of, form, size))
        sample = options.intervals.resample_images(images)
        found = {
            "auc": scores.ranked("auc", images, sample),
            "balanced_accuracy": measure(METRICS["balanced_accuracy"], images, sample),
        }
        strata.append((StratumInfo(form, size, images.n_real, images.n_fake), found))
    return strata


def _is_of(form: str, size: str, cell: accumulate.FileCell) -> bool:
    return (cell.format, cell.size) == (form, size)


def _views(
    scores: SystemScores, cells: accumulate.Cells, options: SystemOptions
) -> Iterator[tuple[ViewInfo, dict[str, MetricValue]]]:
    """Metrics of perturbed pixels, in the order of the run's views; at the end those that are not
    there.
    """
    kinds, has_views = options.identity.get("perturb_kinds", {}), False
    for view, column in cells.views(scores.system.name):
        images = scores_of(scores.system, cells, column).images
        sample = options.intervals.resample_view(images)
        info = ViewInfo(
            view, kinds.get(view, "degradation"), n_real=images.n_real, n_fake=images.n_fake
        )
        has_views = True
        yield info, scores.figures(images, sample)
    if has_views:
        for name, facts in options.identity.get("perturb_absent", {}).items():
            yield ViewInfo(name=name, **facts), {}
