"""One system's section of the document (`system_of`): its figures as a whole, by kind, generator
and stratum, its curves, and paired tests.

Intervals of its figures as a whole are of one meaning (ray_app.evaluation.interval_sample), those
of its parts of these parts' images.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.evaluation import accumulate
from ray_app.evaluation.interval_sample import Intervals, Meaning, names_of
from ray_app.evaluation.labels import FAKE_KINDS, EvaluationGroup
from ray_app.evaluation.systems import System, combined_overlap, is_named, training_overlap
from ray_app.metrics import calibration, detection, intervals, operating_points, significance
from ray_app.metrics.arrays import Bools, ScoreHistogram
from ray_app.metrics.registry import (
    METRICS,
    Resampled,
    ScoredImages,
    measure,
    measure_difference,
)
from ray_app.metrics.values import MetricValue, undefined
from ray_app.reports.evaluation import model, system_model
from ray_app.runs.summary import EDGES

NO_OTHERS = "there are no images of the other class"


@dataclass(frozen=True)
class SystemOptions:
    """What is computed beside the usual. `extras`: figures of a generator that the protocol's table
    holds; `members`: of the ensemble. `traits`: facts about generators of fakes (`released`,
    `architecture`) by their names; `paired`: as a protocol's. `identity`: the run's, which says of
    what kind its views are, and which of them are not there.
    """

    intervals: Intervals
    extras: frozenset[str] = frozenset()
    members: Sequence[System] = ()
    traits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    paired: Mapping[str, Sequence[str]] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)


def system_of(
    system: System, cells: accumulate.Cells, options: SystemOptions
) -> system_model.SystemFacts:
    """The document's entry of one system."""
    groups = sorted({cell.group for cell, _, _ in cells.rows})
    scores = _scores(system, cells, cells.scores(system.name))
    images = scores.images
    sample = options.intervals.resample(images, system, FAKE_KINDS)
    figures = scores.figures(images, sample)
    scored = {group.kind for group, (_, n) in scores.right.items() if n}
    by_kind = options.intervals.alike([kind for kind in FAKE_KINDS if kind in scored])
    labelled: Counter[EvaluationGroup] = Counter()  # rows of each group, with a score or without
    for (cell, _, _), count in cells.rows.items():
        labelled[cell.group] += count
    generators = [_generator(group, scores, labelled[group], options) for group in groups]
    curves = not scores.binary
    return system_model.SystemFacts(
        **{
            name: getattr(system, name)
            for name in ("name", "kind", "title", "calibrated", "threshold", "strict", "late")
        },
        output="binary" if scores.binary else "continuous",
        n_real=images.n_real,
        n_fake=images.n_fake,
        unscored=cells.joined - len(images),
        figures=figures,
        decided=_decided(cells, options) if system.decides else None,
        averages=_averages(scores, groups, options, figures["tpr"]),
        kinds={kind: _of_kind(kind, scores, options, figures, by_kind) for kind in FAKE_KINDS},
        kinds_intervals=by_kind,
        generators=tuple(generators),
        roc=tuple(operating_points.curve_points(*scores.classes)) if curves else (),
        precision_recall=tuple(operating_points.precision_recall_points(*scores.classes))
        if curves
        else (),
        reliability=tuple(
            system_model.ReliabilityBin(**one)
            for one in calibration.reliability(*scores.classes, system.calibration)
        )
        if curves
        else (),
        histogram=_histogram(scores),
        risk_coverage=_risk(scores),
        report=detection.classification_report(
            images.found,
            images.n_fake - images.found,
            images.alarms,
            images.n_real - images.alarms,
        ),
        strata=tuple(_strata(scores, options)),
        views=tuple(_views(scores, cells, options)),
    )


def paired_tests(
    sample: pa.Table, systems: Sequence[System], binary: Mapping[str, bool], meaning: Meaning
) -> list[model.PairedFacts]:
    """Test the difference of two AUCs, or of two accuracies if one of the systems is binary, on
    images that both score.

    The jackknife leaves out generators and sources if labels name enough of them, unless intervals
    are of further images. `difference` is b's metric less a's; `p_holm` is corrected for all pairs.
    """
    if not len(sample):
        return []
    fakes = np.asarray(sample["kind"]) != "real"
    names = names_of(sample) if meaning == "generators" else None
    scores = {
        one.name: np.asarray(sample[f"score:{one.name}"].fill_null(np.nan)) for one in systems
    }
    tests = []
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
        tests.append((one.name, other.name, name, first.is_grouped, found, p))
    corrected = significance.holm([p for *_, p in tests])
    return [
        model.PairedFacts(
            a=a,
            b=b,
            test=f"clustered {name}" if is_grouped else name,
            n=found.n,
            difference=found,
            p=p,
            why=None if p is not None else found.why,
            p_holm=p_holm,
        )
        for (a, b, name, is_grouped, found, p), p_holm in zip(tests, corrected, strict=True)
    ]


@dataclass(frozen=True)
class _Scores:
    """The scores of one system, from the highest score down, with the cell of each image."""

    system: System
    images: ScoredImages
    cells: npt.NDArray[np.int32]
    of_cells: Sequence[accumulate.FileCell]
    binary: bool

    def mask(self, is_chosen: Callable[[accumulate.FileCell], bool]) -> Bools:
        """Which images (n,) are in some of the cells."""
        chosen = np.array([is_chosen(cell) for cell in self.of_cells], np.bool_)
        return chosen[self.cells]

    def select(self, is_chosen: Callable[[accumulate.FileCell], bool]) -> ScoredImages:
        """The images of some of the cells."""
        return self.images.select(self.mask(is_chosen))

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

    @cached_property
    def classes(self) -> tuple[ScoreHistogram, ScoreHistogram]:
        """Distinct scores of fakes and of reals, for curves."""
        fakes, reals = (
            ScoreHistogram.of(self.images.scores[mine])
            for mine in (self.images.is_fake, ~self.images.is_fake)
        )
        return fakes, reals


def _scores(system: System, cells: accumulate.Cells, column: accumulate.Column) -> _Scores:
    order = np.argsort(-column.scores, kind="stable")
    scores, codes = column.scores[order], column.cells[order]
    is_fake = np.array([cell.group.kind != "real" for cell in cells.cells], np.bool_)[codes]
    replies = bool(len(scores)) and bool(np.isin(scores, (-1.0, 1.0)).all())
    images = ScoredImages(scores, is_fake, **system.cut)
    return _Scores(system, images, codes, cells.cells, system.binary or replies)


def _of_kind(
    kind: str,
    scores: _Scores,
    options: SystemOptions,
    figures: dict[str, MetricValue],
    by_kind: system_model.IntervalFacts,
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
    scores: _Scores, groups: Iterable[EvaluationGroup], options: SystemOptions, tpr: MetricValue
) -> dict[str, MetricValue]:
    rates: dict[str, tuple[int, int]] = {}
    for group in groups:
        if group.kind != "real":
            hits, n = scores.right.get(group, (0, 0))
            before = rates.get(group.generator, (0, 0))
            rates[group.generator] = (before[0] + hits, before[1] + n)
    averages = operating_points.averages(rates)
    return options.intervals.add_to_averages(averages, list(rates.values()), tpr)


def _generator(
    group: EvaluationGroup, scores: _Scores, labelled: int, options: SystemOptions
) -> system_model.GeneratorFacts:
    hits, n = scores.right.get(group, (0, 0))
    is_real = group.kind == "real"
    images = scores.select(
        lambda cell: cell.group == group or (cell.group.kind == "real") is not is_real
    )
    sample = None if scores.binary else options.intervals.resample_images(images)
    sources = [
        source
        for source, globs in options.paired.items()
        if any(is_named(group.generator, glob) for glob in globs)
    ]
    traits = {
        name: known.get(group.generator)
        for name, known in options.traits.items()
        if group.kind != "real"
    }
    extras = {
        name: _extra(name, images, group, sources, scores)
        for name in ("average_precision", "oracle_accuracy")
        if name in options.extras
    }
    return system_model.GeneratorFacts(
        name=group.generator,
        label=group.label,
        kind=group.kind,
        seen=_seen(scores.system, group.generator, options),
        released=traits.get("released"),
        architecture=traits.get("architecture"),
        n=n,
        unscored=labelled - n,
        rate=intervals.proportion(hits, n, "none of these images was scored"),
        auc=scores.ranked("auc", images, sample),
        **extras,
    )


def _extra(
    name: str,
    images: ScoredImages,
    group: EvaluationGroup,
    sources: Sequence[str],
    scores: _Scores,
) -> MetricValue:
    """A metric of a protocol's table, against all images of the other class, or against the paired
    sources of real images as if they were as many.
    """
    if scores.binary:
        return undefined(detection.NO_RANKING)
    if sources:
        images = scores.select(
            lambda cell: (
                cell.group == group
                or (
                    cell.group.kind == "real"
                    and any(is_named(cell.group.generator, glob) for glob in sources)
                )
            )
        )
        name = "average_precision_even" if name == "average_precision" else name
    if not images.n_fake or not images.n_real:
        return undefined(NO_OTHERS)
    return measure(METRICS[name], images)


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


def _histogram(scores: _Scores) -> system_model.ClassHistogram:
    counted = {
        name: np.histogram(np.clip(scores.images.scores[mine], EDGES[0], EDGES[-1]), EDGES)[0]
        .astype(int)
        .tolist()
        for name, mine in (("real", ~scores.images.is_fake), ("fake", scores.images.is_fake))
    }
    return system_model.ClassHistogram(edges=EDGES.tolist(), **counted)


def _risk(scores: _Scores) -> system_model.RiskCoverage:
    if scores.binary:
        return system_model.RiskCoverage(
            points=(), aurc=undefined("binary replies say nothing of how sure they are")
        )
    system = scores.system
    return system_model.RiskCoverage(
        **detection.risk_coverage(*scores.classes, system.threshold, strict=system.strict)
    )


def _strata(scores: _Scores, options: SystemOptions) -> list[system_model.FormatStratum]:
    """Metrics within images of one format and one size, where neither can separate the classes."""
    bands = (*accumulate.BANDS, accumulate.UNKNOWN)
    there = np.bincount(scores.cells, minlength=len(scores.of_cells)) > 0
    known = {
        (cell.format, cell.size) for cell, has in zip(scores.of_cells, there, strict=True) if has
    }
    strata = []
    for form, size in sorted(known, key=lambda one: (one[0], bands.index(one[1]))):
        chosen = [(cell.format, cell.size) == (form, size) for cell in scores.of_cells]
        images = scores.images.select(np.array(chosen, np.bool_)[scores.cells])
        sample = options.intervals.resample_images(images)
        strata.append(
            system_model.FormatStratum(
                format=form,
                size=size,
                n_real=images.n_real,
                n_fake=images.n_fake,
                auc=scores.ranked("auc", images, sample),
                balanced_accuracy=measure(METRICS["balanced_accuracy"], images, sample),
            )
        )
    return strata


def _views(
    scores: _Scores, cells: accumulate.Cells, options: SystemOptions
) -> list[system_model.ViewFacts]:
    """Metrics of perturbed pixels, in the order of the run's views; at the end those that are not
    there.
    """
    views, kinds = [], options.identity.get("perturb_kinds", {})
    for view, column in cells.views(scores.system.name):
        images = _scores(scores.system, cells, column).images
        sample = options.intervals.resample_view(images)
        views.append(
            system_model.ViewFacts(
                name=view,
                kind=kinds.get(view, "degradation"),
                n_real=images.n_real,
                n_fake=images.n_fake,
                figures=scores.figures(images, sample),
            )
        )
    absent = options.identity.get("perturb_absent", {}) if views else {}
    return views + [system_model.ViewFacts(name=name, **facts) for name, facts in absent.items()]
