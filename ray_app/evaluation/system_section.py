"""What the document says of one system: its figures as a whole, by kind, by generator, by stratum, and its curves.

Knows cells and what to compute of them; every figure itself is of ray_app.metrics.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ray_app.evaluation.cells import BANDS, UNKNOWN, Cells
from ray_app.evaluation.conventions import oracle_accuracy
from ray_app.evaluation.groups import Group
from ray_app.evaluation.resampling import Resampling
from ray_app.evaluation.seen import seen, seen_by_any
from ray_app.evaluation.systems import System
from ray_app.evaluation.tally import Tally
from ray_app.metrics.bootstrap import rates_interval
from ray_app.metrics.chances import reliability
from ray_app.metrics.curves import average_precision, curve_points, precision_recall_points
from ray_app.metrics.detection import NO_RANKING, auc_figure, detection_of
from ray_app.metrics.figure import Figure, figure_rows, undefined
from ray_app.metrics.histograms import ScoreHistogram
from ray_app.metrics.intervals import proportion
from ray_app.metrics.operating import Confusion, averages, rates_at
from ray_app.metrics.risk import risk_coverage
from ray_app.metrics.verdicts import VerdictCounts, abstaining, classification_report
from ray_app.runs.summary import EDGES

NO_OTHERS = "there are no images of the other class"
Document = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What is computed beside the usual. `extras`: figures of a generator that the protocol's table holds; `members`: of the ensemble."""

    resampling: Resampling
    extras: frozenset[str] = frozenset()
    members: Sequence[System] = ()
    released: Callable[[str], str | None] = lambda _: None


@dataclass
class _Scores:
    """The scores of one system, by group and by class."""

    system: System
    by_group: dict[Group, ScoreHistogram]
    binary: bool
    reals: ScoreHistogram = field(init=False)
    fakes: ScoreHistogram = field(init=False)

    def __post_init__(self) -> None:
        self.reals = self.of(lambda group: group.kind == "real")
        self.fakes = self.of(lambda group: group.kind != "real")

    def of(self, chosen: Callable[[Group], bool]) -> ScoreHistogram:
        """Those of some groups together."""
        return ScoreHistogram.merged(scores for group, scores in self.by_group.items() if chosen(group))

    def figures(self, fakes: ScoreHistogram, reals: ScoreHistogram) -> dict[str, Figure]:
        """All figures of detection of two histograms."""
        system = self.system
        return detection_of(
            fakes, reals, threshold=system.threshold, strict=system.strict, continuous=not self.binary, calibration=system.calibration
        )

    def auc(self, fakes: ScoreHistogram, reals: ScoreHistogram) -> Figure:
        """The area under the ROC curve."""
        if self.binary:
            return undefined(NO_RANKING, fakes.n + reals.n)
        return auc_figure(fakes, reals)

    def right(self, group: Group) -> tuple[int, int]:
        """Images told right, and images with a score, of one group."""
        scores = self.by_group[group]
        counts = Confusion.at(scores, scores, self.system.threshold, self.system.strict)
        return counts.real_real if group.kind == "real" else counts.fake_fake, scores.n


def system_of(system: System, cells: Cells, asked: Asked) -> Document:
    """The document's entry of one system."""
    groups = sorted({cell.group for cell, _, _ in cells.rows})
    scores = _scores(system, cells, groups)
    figures = asked.resampling.with_intervals(scores.figures(scores.fakes, scores.reals), system, scores.by_group)
    labelled = _labelled(cells)
    generators = [_generator(group, scores, labelled[group], asked) for group in groups]
    confusion = Confusion.at(scores.fakes, scores.reals, system.threshold, system.strict)
    return {
        "name": system.name,
        "kind": system.kind,
        "title": system.title,
        "output": "binary" if scores.binary else "continuous",
        "calibrated": system.calibrated,
        "threshold": system.threshold,
        "strict": system.strict,
        "late": system.late,
        "n_real": scores.reals.n,
        "n_fake": scores.fakes.n,
        "unscored": cells.joined - scores.reals.n - scores.fakes.n,
        "figures": figure_rows(figures),
        "decided": figure_rows(abstaining(_verdicts(cells))) if system.decides else None,
        "averages": figure_rows(_averages(scores, groups)),
        "kinds": {kind: figure_rows(_of_kind(kind, scores, asked, figures)) for kind in ("whole", "local")},
        "generators": generators,
        "roc": [] if scores.binary else [list(point) for point in curve_points(scores.fakes, scores.reals)],
        "precision_recall": [] if scores.binary else [list(point) for point in precision_recall_points(scores.fakes, scores.reals)],
        "reliability": [] if scores.binary else reliability(scores.fakes, scores.reals, system.calibration),
        "histogram": _histogram(scores),
        "risk_coverage": _risk(scores),
        "report": classification_report(confusion.fake_fake, confusion.fake_real, confusion.real_fake, confusion.real_real),
        "strata": _strata(scores, cells),
        "views": _views(scores, cells, asked),
        "worst": _worst(generators),
    }


def _labelled(cells: Cells) -> Counter[Group]:
    """How many rows each group has, with a score or without."""
    found: Counter[Group] = Counter()
    for (cell, _, _), count in cells.rows.items():
        found[cell.group] += count
    return found


def _scores(system: System, cells: Cells, groups: Iterable[Group]) -> _Scores:
    by_group: dict[Group, list[Tally]] = {group: [] for group in groups}
    for (name, cell), tally in cells.scores.items():
        if name == system.name:
            by_group[cell.group].append(tally)
    merged = {group: _merged(some) for group, some in by_group.items()}
    values = np.unique(np.concatenate([np.empty(0), *[one.values[:3] for one in merged.values()]]))
    replies = all(len(one.values) <= 2 for one in merged.values()) and bool(len(values)) and bool(np.isin(values, (-1.0, 1.0)).all())
    return _Scores(system, merged, system.binary or replies)


def _merged(tallies: Iterable[Tally]) -> ScoreHistogram:
    return ScoreHistogram.merged(tally.histogram() for tally in tallies)


def _of_kind(kind: str, scores: _Scores, asked: Asked, figures: dict[str, Figure]) -> dict[str, Figure]:
    """Figures of whole fakes, or of local edits, against all real images; those of all fakes where there are no others."""
    fakes = scores.of(lambda group: group.kind == kind)
    if fakes.n == scores.fakes.n and fakes.n:
        return figures
    if not fakes.n:
        why = f"no {kind} fake was scored" if kind == "whole" else "no local edit was scored"
        return {name: undefined(why, scores.reals.n) for name in scores.figures(fakes, scores.reals)}
    chosen = {group: one for group, one in scores.by_group.items() if group.kind in ("real", kind)}
    return asked.resampling.with_intervals(scores.figures(fakes, scores.reals), scores.system, chosen)


def _averages(scores: _Scores, groups: Iterable[Group]) -> dict[str, Figure]:
    rates: dict[str, tuple[int, int]] = {}
    for group in groups:
        if group.kind != "real":
            hits, n = scores.right(group)
            before = rates.get(group.generator, (0, 0))
            rates[group.generator] = (before[0] + hits, before[1] + n)
    found = averages(rates)
    there = [rate for rate in rates.values() if rate[1]]
    if found["tpr_mean"].value is not None and (interval := rates_interval(there)) is not None:
        found["tpr_mean"] = replace(found["tpr_mean"], interval=(interval.low, interval.high), method=interval.method)
    return found


def _generator(group: Group, scores: _Scores, labelled: int, asked: Asked) -> Document:
    hits, n = scores.right(group)
    mine = scores.by_group[group]
    pair = (scores.fakes, mine) if group.kind == "real" else (mine, scores.reals)
    told = {
        "name": group.generator,
        "label": group.label,
        "kind": group.kind,
        "seen": _seen(scores.system, group.generator, asked),
        "released": asked.released(group.generator) if group.kind != "real" else None,
        "n": n,
        "unscored": labelled - n,
        "rate": proportion(hits, n, "none of these images was scored").row(),
        "auc": scores.auc(*pair).row(),
    }
    if "average_precision" in asked.extras:
        told["average_precision"] = _ranked(scores, pair, lambda fakes, reals: Figure(average_precision(fakes, reals), n=fakes.n + reals.n))
    if "oracle_accuracy" in asked.extras:
        told["oracle_accuracy"] = _ranked(scores, pair, oracle_accuracy)
    return told


def _ranked(
    scores: _Scores, pair: tuple[ScoreHistogram, ScoreHistogram], figure: Callable[[ScoreHistogram, ScoreHistogram], Figure]
) -> Document:
    if scores.binary:
        return undefined(NO_RANKING).row()
    return (figure(*pair) if pair[0].n and pair[1].n else undefined(NO_OTHERS)).row()


def _seen(system: System, generator: str, asked: Asked) -> str:
    cards = [system.card] if system.kind == "detector" else [member.card for member in asked.members]
    return seen_by_any("unknown" if card is None else seen(card, generator) for card in cards)


def _verdicts(cells: Cells) -> VerdictCounts:
    counts = dict.fromkeys((f"{label}_{said}" for label in ("fake", "real") for said in ("fake", "real", "abstain", "unscored")), 0)
    for (cell, _, verdict), count in cells.rows.items():
        counts[f"{cell.group.label}_{verdict or 'unscored'}"] += count
    return VerdictCounts(**counts)


def _histogram(scores: _Scores) -> Document:
    counted = {
        name: np.histogram(np.clip(one.values, EDGES[0], EDGES[-1]), EDGES, weights=one.counts)[0].astype(int).tolist()
        for name, one in (("real", scores.reals), ("fake", scores.fakes))
    }
    return {"edges": EDGES.tolist(), **counted}


def _risk(scores: _Scores) -> Document:
    if scores.binary:
        return {"points": [], "aurc": undefined("binary replies say nothing of how sure they are").row()}
    found = risk_coverage(scores.fakes, scores.reals, scores.system.threshold, strict=scores.system.strict)
    return {"points": found["points"], "aurc": found["aurc"].row()}


def _strata(scores: _Scores, cells: Cells) -> list[Document]:
    """Figures within images of one format and one size, where neither can be what tells them apart."""
    found: dict[tuple[str, str], dict[str, list[Tally]]] = {}
    for (name, cell), tally in cells.scores.items():
        if name == scores.system.name:
            found.setdefault((cell.format, cell.size), {"real": [], "fake": []})[cell.group.label].append(tally)
    told = []
    for (form, size), classes in sorted(found.items(), key=_in_order):
        fakes, reals = _merged(classes["fake"]), _merged(classes["real"])
        counts = Confusion.at(fakes, reals, scores.system.threshold, scores.system.strict)
        told.append({"format": form, "size": size, "n_real": reals.n, "n_fake": fakes.n, "auc": scores.auc(fakes, reals).row(),
                     "balanced_accuracy": rates_at(counts)["balanced_accuracy"].row()})  # fmt: skip
    return told


def _in_order(stratum: tuple[tuple[str, str], Any]) -> tuple[str, int]:
    form, size = stratum[0]
    return form, (*BANDS, UNKNOWN).index(size)


def _views(scores: _Scores, cells: Cells, asked: Asked) -> list[Document]:
    """Figures of perturbed pixels, in the order of the run's views."""
    told = []
    for view in dict.fromkeys(view for view, _, _ in cells.views):
        mine = {Group(kind, ""): tally.histogram() for (name, system, kind), tally in cells.views.items()
                if (name, system) == (view, scores.system.name)}  # fmt: skip
        fakes = ScoreHistogram.merged(one for group, one in mine.items() if group.kind != "real")
        reals = ScoreHistogram.merged(one for group, one in mine.items() if group.kind == "real")
        figures = asked.resampling.of_view(scores.figures(fakes, reals), scores.system, mine)
        told.append({"name": view, "n_real": reals.n, "n_fake": fakes.n, "figures": figure_rows(figures)})
    return told


def _worst(generators: Sequence[Document]) -> Document | None:
    """The fakes of which the fewest are found; of those with twenty images or more where there are any."""
    known = [one for one in generators if one["label"] == "fake" and one["rate"]["value"] is not None]
    many = [one for one in known if one["n"] >= 20] or known
    worst = min(many, key=lambda one: one["rate"]["value"], default=None)
    return None if worst is None else {"generator": worst["name"], "rate": worst["rate"]}
