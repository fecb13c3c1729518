"""One system's section of the document (`system_of`): its figures as a whole, by kind, generator
and stratum, its curves, and paired tests.

Intervals of its figures as a whole are of one meaning (ray_app.evaluation.interval_sample), those
of its parts of these parts' images.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.evaluation import accumulate, protocols
from ray_app.evaluation.interval_sample import Intervals, Meaning, names_of
from ray_app.evaluation.labels import FAKE_KINDS, EvaluationGroup
from ray_app.evaluation.systems import System, combined_overlap, is_named, training_overlap
from ray_app.metrics import calibration, detection, intervals, operating_points, significance
from ray_app.metrics.arrays import FigureFacts, ScoreHistogram, undefined
from ray_app.reports.evaluation import model, system_model
from ray_app.runs.summary import EDGES

NO_OTHERS = "there are no images of the other class"
_Way = Callable[[ScoreHistogram, ScoreHistogram], FigureFacts]


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
    system: System, cells: accumulate.Cells, asked: SystemOptions
) -> system_model.SystemFacts:
    """The document's entry of one system."""
    groups = sorted({cell.group for cell, _, _ in cells.rows})
    scores = _scores(system, cells, groups)
    figures = asked.intervals.of(
        scores.figures(scores.fakes, scores.reals), system, (scores.fakes, scores.reals), FAKE_KINDS
    )
    scored = {group.kind for group, one in scores.by_group.items() if one.n}
    by_kind = asked.intervals.alike([kind for kind in FAKE_KINDS if kind in scored])
    labelled: Counter[EvaluationGroup] = Counter()  # rows of each group, with a score or without
    for (cell, _, _), count in cells.rows.items():
        labelled[cell.group] += count
    generators = [_generator(group, scores, labelled[group], asked) for group in groups]
    confusion = operating_points.Confusion.at(
        scores.fakes, scores.reals, system.threshold, system.strict
    )
    curves = not scores.binary
    return system_model.SystemFacts(
        **{
            name: getattr(system, name)
            for name in ("name", "kind", "title", "calibrated", "threshold", "strict", "late")
        },
        output="binary" if scores.binary else "continuous",
        n_real=scores.reals.n,
        n_fake=scores.fakes.n,
        unscored=cells.joined - scores.reals.n - scores.fakes.n,
        figures=figures,
        decided=_decided(cells, asked) if system.decides else None,
        averages=_averages(scores, groups, asked, figures["tpr"]),
        kinds={kind: _of_kind(kind, scores, asked, figures, by_kind) for kind in FAKE_KINDS},
        kinds_intervals=by_kind,
        generators=tuple(generators),
        roc=tuple(operating_points.curve_points(scores.fakes, scores.reals)) if curves else (),
        precision_recall=tuple(operating_points.precision_recall_points(scores.fakes, scores.reals))
        if curves
        else (),
        reliability=tuple(
            system_model.ReliabilityBin(**one)
            for one in calibration.reliability(scores.fakes, scores.reals, system.calibration)
        )
        if curves
        else (),
        histogram=_histogram(scores),
        risk_coverage=_risk(scores),
        report=detection.classification_report(
            confusion.fake_fake, confusion.fake_real, confusion.real_fake, confusion.real_real
        ),
        strata=tuple(_strata(scores)),
        views=tuple(_views(scores, cells, asked)),
    )


def paired_tests(
    sample: pa.Table, systems: Sequence[System], binary: Mapping[str, bool], meaning: Meaning
) -> list[model.PairedFacts]:
    """Tests of two AUCs, or of two shares judged correctly where one of the two is binary; on
    images that both score.

    By generator and source where labels name them (`significance`), unless intervals are of further
    images: then DeLong's, McNemar's. `difference` is b's figure less a's, as everywhere; `p_holm`
    is corrected for all pairs.
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
        first, second, truth = scores[one.name][both], scores[other.name][both], fakes[both]
        clusters = None if names is None else names[both]
        if binary[one.name] or binary[other.name]:
            test = significance.mcnemar(
                one.says_fake(first) == truth, other.says_fake(second) == truth, truth, clusters
            )
        else:
            test = significance.delong(first, second, truth, clusters)
        tests.append((one.name, other.name, test))
    corrected = significance.holm([test.p for _, _, test in tests])
    return [
        model.PairedFacts(
            a=a,
            b=b,
            test=test.test,
            n=test.n,
            difference=test.difference,
            p=test.p,
            why=test.why,
            p_holm=p,
        )
        for (a, b, test), p in zip(tests, corrected, strict=True)
    ]


@dataclass
class _Scores:
    """The scores of one system, by group and by class."""

    system: System
    by_cell: Mapping[accumulate.FileCell, ScoreHistogram]
    by_group: dict[EvaluationGroup, ScoreHistogram]
    binary: bool
    reals: ScoreHistogram = field(init=False)
    fakes: ScoreHistogram = field(init=False)

    def __post_init__(self) -> None:
        self.reals = self.of(lambda group: group.kind == "real")
        self.fakes = self.of(lambda group: group.kind != "real")

    def of(self, chosen: Callable[[EvaluationGroup], bool]) -> ScoreHistogram:
        """Those of some groups together."""
        return ScoreHistogram.merged(
            scores for group, scores in self.by_group.items() if chosen(group)
        )

    def figures(self, fakes: ScoreHistogram, reals: ScoreHistogram) -> dict[str, FigureFacts]:
        """All figures of detection of two histograms."""
        return detection.detection_of(fakes, reals, continuous=not self.binary, **self.system.cut)

    def auc(self, fakes: ScoreHistogram, reals: ScoreHistogram) -> FigureFacts:
        """The area under the ROC curve."""
        return (
            undefined(detection.NO_RANKING, fakes.n + reals.n)
            if self.binary
            else detection.auc_figure(fakes, reals)
        )

    def right(self, group: EvaluationGroup) -> tuple[int, int]:
        """Images judged correctly, and images with a score, of one group."""
        scores = self.by_group[group]
        counts = operating_points.Confusion.at(
            scores, scores, self.system.threshold, self.system.strict
        )
        return counts.real_real if group.kind == "real" else counts.fake_fake, scores.n


def _scores(system: System, cells: accumulate.Cells, groups: Iterable[EvaluationGroup]) -> _Scores:
    by_group: dict[EvaluationGroup, list[ScoreHistogram]] = {group: [] for group in groups}
    by_cell = cells.scores(system.name)
    for cell, scores in by_cell.items():
        by_group[cell.group].append(scores)
    merged = {group: ScoreHistogram.merged(some) for group, some in by_group.items()}
    values = np.unique(np.concatenate([np.empty(0), *[one.values[:3] for one in merged.values()]]))
    replies = (
        all(len(one.values) <= 2 for one in merged.values())
        and bool(len(values))
        and bool(np.isin(values, (-1.0, 1.0)).all())
    )
    return _Scores(system, by_cell, merged, system.binary or replies)


def _of_kind(
    kind: str,
    scores: _Scores,
    asked: SystemOptions,
    figures: dict[str, FigureFacts],
    by_kind: system_model.IntervalFacts,
) -> dict[str, FigureFacts]:
    """Figures of whole fakes, or of local edits, against all real images; those of all fakes where
    there are no others.

    Their intervals are of what `by_kind` says, the same for both.
    """
    fakes = scores.of(lambda group: group.kind == kind)
    if fakes.n == scores.fakes.n and fakes.n:
        return figures
    if not fakes.n:
        why = f"no {kind} fake was scored" if kind == "whole" else "no local edit was scored"
        return {
            name: undefined(why, scores.reals.n) for name in scores.figures(fakes, scores.reals)
        }
    own = scores.figures(fakes, scores.reals)
    return asked.intervals.of(
        own, scores.system, (fakes, scores.reals), (kind,), images=by_kind.fakes == "images"
    )


def _decided(cells: accumulate.Cells, asked: SystemOptions) -> dict[str, FigureFacts]:
    counts = _verdicts(cells)
    return asked.intervals.of_verdicts(detection.abstaining(counts), counts)


def _averages(
    scores: _Scores, groups: Iterable[EvaluationGroup], asked: SystemOptions, tpr: FigureFacts
) -> dict[str, FigureFacts]:
    rates: dict[str, tuple[int, int]] = {}
    for group in groups:
        if group.kind != "real":
            hits, n = scores.right(group)
            before = rates.get(group.generator, (0, 0))
            rates[group.generator] = (before[0] + hits, before[1] + n)
    return asked.intervals.of_averages(operating_points.averages(rates), list(rates.values()), tpr)


def _generator(
    group: EvaluationGroup, scores: _Scores, labelled: int, asked: SystemOptions
) -> system_model.GeneratorFacts:
    hits, n = scores.right(group)
    mine = scores.by_group[group]
    pair = (scores.fakes, mine) if group.kind == "real" else (mine, scores.reals)
    sources = [
        source
        for source, globs in asked.paired.items()
        if any(is_named(group.generator, glob) for glob in globs)
    ]
    against = (
        mine,
        scores.of(
            lambda one: (
                one.kind == "real" and any(is_named(one.generator, glob) for glob in sources)
            )
        ),
    )
    ways: dict[str, _Way] = {
        "average_precision": partial(_average_precision, even=bool(sources)),
        "oracle_accuracy": protocols.oracle_accuracy,
    }
    traits = {
        name: known.get(group.generator)
        for name, known in asked.traits.items()
        if group.kind != "real"
    }
    extras = {
        name: _ranked(scores, against if sources else pair, way)
        for name, way in ways.items()
        if name in asked.extras
    }
    return system_model.GeneratorFacts(
        name=group.generator,
        label=group.label,
        kind=group.kind,
        seen=_seen(scores.system, group.generator, asked),
        released=traits.get("released"),
        architecture=traits.get("architecture"),
        n=n,
        unscored=labelled - n,
        rate=intervals.proportion(hits, n, "none of these images was scored"),
        auc=scores.auc(*pair),
        **extras,
    )


def _average_precision(fakes: ScoreHistogram, reals: ScoreHistogram, *, even: bool) -> FigureFacts:
    return FigureFacts(
        value=operating_points.average_precision(fakes, reals, even=even), n=fakes.n + reals.n
    )


def _ranked(
    scores: _Scores, pair: tuple[ScoreHistogram, ScoreHistogram], figure: _Way
) -> FigureFacts:
    if scores.binary:
        return undefined(detection.NO_RANKING)
    return figure(*pair) if pair[0].n and pair[1].n else undefined(NO_OTHERS)


def _seen(system: System, generator: str, asked: SystemOptions) -> str:
    cards = (
        [system.card] if system.kind == "detector" else [member.card for member in asked.members]
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
        name: np.histogram(np.clip(one.values, EDGES[0], EDGES[-1]), EDGES, weights=one.counts)[0]
        .astype(int)
        .tolist()
        for name, one in (("real", scores.reals), ("fake", scores.fakes))
    }
    return system_model.ClassHistogram(edges=EDGES.tolist(), **counted)


def _risk(scores: _Scores) -> system_model.RiskCoverage:
    if scores.binary:
        return system_model.RiskCoverage(
            points=(), aurc=undefined("binary replies say nothing of how sure they are")
        )
    system = scores.system
    return system_model.RiskCoverage(
        **detection.risk_coverage(
            scores.fakes, scores.reals, system.threshold, strict=system.strict
        )
    )


def _strata(scores: _Scores) -> list[system_model.FormatStratum]:
    """Figures within images of one format and one size, where neither can separate the classes."""
    found: dict[tuple[str, str], dict[str, list[ScoreHistogram]]] = {}
    for cell, one in scores.by_cell.items():
        found.setdefault((cell.format, cell.size), {"real": [], "fake": []})[
            cell.group.label
        ].append(one)
    strata = []
    for (form, size), classes in sorted(
        found.items(),
        key=lambda one: (one[0][0], (*accumulate.BANDS, accumulate.UNKNOWN).index(one[0][1])),
    ):
        fakes, reals = (
            ScoreHistogram.merged(classes["fake"]),
            ScoreHistogram.merged(classes["real"]),
        )
        counts = operating_points.Confusion.at(
            fakes, reals, scores.system.threshold, scores.system.strict
        )
        figures = {
            "auc": scores.auc(fakes, reals),
            "balanced_accuracy": operating_points.rates_at(counts)["balanced_accuracy"],
        }
        strata.append(
            system_model.FormatStratum(
                format=form, size=size, n_real=reals.n, n_fake=fakes.n, **figures
            )
        )
    return strata


def _views(
    scores: _Scores, cells: accumulate.Cells, asked: SystemOptions
) -> list[system_model.ViewFacts]:
    """Figures of perturbed pixels, in the order of the run's views; at the end those that are not
    there.
    """
    views, kinds = [], asked.identity.get("perturb_kinds", {})
    for view, by_cell in cells.views(scores.system.name).items():
        fakes, reals = (
            ScoreHistogram.merged(one for cell, one in by_cell.items() if cell.group.label == label)
            for label in ("fake", "real")
        )
        figures = asked.intervals.of_view(
            scores.figures(fakes, reals), scores.system, (fakes, reals)
        )
        kind = kinds.get(view, "degradation")
        views.append(
            system_model.ViewFacts(
                name=view, kind=kind, n_real=reals.n, n_fake=fakes.n, figures=figures
            )
        )
    absent = asked.identity.get("perturb_absent", {}) if views else {}
    return views + [system_model.ViewFacts(name=name, **facts) for name, facts in absent.items()]
