"""Measure the generators that a run named (`identification_of`), and groups of generators in and
out of the distribution of training (`groups_of`, `measure_groups`).

`answers_of` counts generator, answer, and the place of the truth in the ranking. A protocol's
groups are rows of its table. Otherwise the classes of the run's identifier decide which generators
were in training: by themselves, by their family alone, or not at all.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.evaluation import dflip, join, protocols
from ray_app.evaluation.generator_names import REAL, Names
from ray_app.evaluation.system_metrics import SystemScores, group_of
from ray_app.metrics import identification, intervals, values
from ray_app.metrics.table import MetricRow, rows_of
from ray_app.metrics.values import MetricValue
from ray_app.reports.evaluation.result import (
    ClassInfo,
    GeneratorInfo,
    GroupInfo,
    IdentificationInfo,
)
from ray_app.runs.current import numbers

COLUMNS = (
    "label",
    "generator",
    "verdict",
    "predicted_generator",
    "generator_ranking",
    "generator_confidence",
)
_BETWEEN = "\x1f"  # no name holds it
Words = tuple[str, str, str | None, str | None]
Floats = npt.NDArray[np.float64]
_NO_KNOWN = "no image of a known generator"
_NO_UNKNOWN = "no image of an unknown generator"
_NO_LIST = "no list of known generators"
Distribution = Literal["in", "out"]
KNOWN, NEW_VERSION, NEW_FAMILY = (
    "generators of the training",
    "other generators of their families",
    "other families",
)
_TOTALS: Mapping[Distribution, str] = {
    "in": "all in distribution",
    "out": "all out of distribution",
}
_NONE = "no image of these generators"


class IdentificationAnswer(NamedTuple):
    """Of one image. `generator`, `predicted`: keys of names, None = none was named. `asked`:
    whether there was an answer at all, be it "none of the known". `place`, `family_place`: of the
    truth in the ranking, 0 = first; None = not there.
    """

    label: str
    generator: str
    predicted: str | None
    asked: bool
    place: int | None
    family_place: int | None


@dataclass
class IdentificationAnswers:
    """Of all images. `words`: label, generator, verdict and prediction as they stand in the rows.
    `confidences`: of fakes, by the key of their generator.
    """

    names: Names
    counts: Counter[IdentificationAnswer] = field(default_factory=Counter)
    words: Counter[Words] = field(default_factory=Counter)
    confidences: dict[str, list[Floats]] = field(default_factory=dict)
    ranked: bool = False

    def add(self, table: pa.Table) -> None:
        """Joined rows with `COLUMNS`."""
        plain = {name: table[name].cast(pa.string()) for name in COLUMNS[:4]}
        confidence = numbers(table["generator_confidence"])
        ranking = table["generator_ranking"]  # each as one text
        ranking = (
            pc.binary_join(ranking, _BETWEEN)
            if pa.types.is_list(ranking.type)
            else ranking.cast(pa.string())
        )
        self.ranked = self.ranked or ranking.null_count < len(ranking)
        sure = pa.array(np.isfinite(confidence))
        columns = pa.table(plain | {"ranking": ranking, "sure": sure})
        # In the order of the rows: the first spelling of a name is the one that is shown.
        counted = columns.group_by(columns.column_names, use_threads=False).aggregate(
            [([], "count_all")]
        )
        for row in counted.to_pylist():
            self.words[
                row["label"], row["generator"], row["verdict"], row["predicted_generator"]
            ] += row["count_all"]
            self.counts[self._answer(row)] += row["count_all"]
        self._keep(table, confidence)

    def _answer(self, row: dict[str, Any]) -> IdentificationAnswer:
        names = self.names
        truth, predicted = (
            names.label(row["generator"]),
            names.predicted(dflip.name_in(row["predicted_generator"])),
        )
        ranking = (
            [names.predicted(name) for name in row["ranking"].split(_BETWEEN)]
            if row["ranking"]
            else []
        )
        families = list(dict.fromkeys(names.family(name) for name in ranking if name))
        asked = bool(predicted or ranking or row["sure"])
        return IdentificationAnswer(
            row["label"],
            truth,
            predicted,
            asked,
            _place(truth, ranking),
            _place(names.family(truth), families),
        )

    def _keep(self, table: pa.Table, confidence: Floats) -> None:
        kept = np.isfinite(confidence) & np.asarray(
            pc.equal(table["label"].cast(pa.string()), "fake")
        )
        if kept.any():
            makers = table["generator"].cast(pa.string()).combine_chunks().dictionary_encode()
            codes = np.asarray(makers.indices)
            for code, name in enumerate(makers.dictionary.to_pylist()):
                if len(mine := confidence[kept & (codes == code)]):
                    self.confidences.setdefault(self.names.label(name), []).append(mine)


def answers_of(tables: join.Tables, names: Names) -> IdentificationAnswers | None:
    """All of a run's answers; None where no image has one."""
    found = IdentificationAnswers(names)
    for table in tables(COLUMNS):
        found.add(table)
    return found if any(one.asked for one in found.counts) else None


def identification_of(
    answers: IdentificationAnswers,
    *,
    rules: protocols.IdentificationRules | None = None,
    missing: int = 0,
) -> tuple[list[IdentificationInfo], list[MetricRow]]:
    """Measure the generators that were named: the scope `identification` and those below it.

    Plain metrics are of fakes whose generator the identifier knows (all, if those are not
    recorded): those of `metrics.identification`; an image without a name counts as wrong. `top_…` is
    by the rows' rankings, whether a name was given or not. `abstained_known` and
    `abstained_unknown` are the fractions of the images with an answer that is none of the known.
    `reals_named` is the fraction of real images that got the name of a generator.
    `identification, families` has the same of families. By the rules of `dflip-v1` the scope has
    their metrics, with their flaws, and `identification, plain` has ours.

    Args:
        answers: The answers of all images.
        rules: The rules of the protocol.
        missing: Labels without a row, which count as wrong by the rules of `dflip-v1`.
    """
    rules = rules or protocols.IdentificationRules()
    if rules.protocol == "dflip-v1":
        theirs, rows = dflip.dflip_v1(answers.words, answers.names, missing)
        ours, plain = _measure_plain(
            answers, rules, "identification, plain", "Generators named, by ours"
        )
        return [*theirs, *ours], [*rows, *plain]
    return _measure_plain(answers, rules, "identification", "Generators named")


def groups_of(
    protocol: protocols.Protocol | None, names: Names, generators: Sequence[GeneratorInfo]
) -> tuple[str, list[GroupInfo]]:
    """Return what divides the fakes (`protocol`, `identifier`, or nothing), and the groups.

    Those without an image are among them, and totals of distributions that have several groups.
    """
    fakes = [one for one in generators if one.label == "fake"]
    held: list[tuple[str, Distribution, list[GeneratorInfo]]] = []
    if protocol and protocol.groups:
        by, rows = "protocol", {row.name: row for row in protocol.rows}
        for name in protocol.groups.inside:
            held.append((name, "in", [one for one in fakes if rows[name].holds(one)]))
        for name in protocol.groups.out:
            held.append((name, "out", [one for one in fakes if rows[name].holds(one)]))
    elif names.classes is not None:
        by = "identifier"
        for name in (KNOWN, NEW_VERSION, NEW_FAMILY):
            mine = [one for one in fakes if _distribution_of(names, one.name) == name]
            held.append((name, "in" if name == KNOWN else "out", mine))
    else:
        return "", []
    groups = [_group(name, distribution, mine) for name, distribution, mine in held]
    for distribution, name in _TOTALS.items():
        parts = [mine for _, side, mine in held if side == distribution]
        if len(parts) > 1:
            members = {(one.kind, one.name): one for mine in parts for one in mine}
            groups.append(_group(name, distribution, list(members.values()), total=True))
    return by, groups


def _group(
    name: str, distribution: str, generators: Sequence[GeneratorInfo], *, total: bool = False
) -> GroupInfo:
    names = tuple(sorted({one.name for one in generators}))
    n = sum(one.n + one.unscored for one in generators)
    return GroupInfo(name, distribution, total, names, n)


def measure_groups(
    groups: Sequence[GroupInfo], scores: SystemScores, generators: Sequence[GeneratorInfo]
) -> list[MetricRow]:
    """Measure how one system detects each group: the fakes found, and the AUC against all real
    images.
    """
    rows: list[MetricRow] = []
    for group in groups:
        mine = [
            group_of(one)
            for one in generators
            if one.label == "fake" and one.name in group.generators and one.n
        ]
        found = dict.fromkeys(("tpr", "auc"), values.undefined(_NONE))
        if mine:
            hits, n = scores.correct(mine)
            found = {
                "tpr": intervals.proportion(hits, n, _NONE),
                "auc": scores.ranked("auc", scores.against(mine), None),
            }
        rows += rows_of(found, scores.system.name, scope=group.scope)
    return rows


def group_identification(
    answers: IdentificationAnswers, generators: Collection[str], top_k: Sequence[int]
) -> dict[str, MetricValue]:
    """Metrics of the fakes of some generators, by their names in the labels: of generators, of
    families, and how often it abstained.
    """
    names = answers.names
    keys = {names.label(name) for name in generators}
    mine = Counter(
        {
            one: n
            for one, n in answers.counts.items()
            if one.label == "fake" and one.generator in keys
        }
    )
    single, families = (
        _Level(mine, answers, names.classes),
        _Level(_by_family(mine, names), answers, names.class_families),
    )
    found = single.found(top_k).figures
    kept = {name: found[name] for name in ("accuracy", *[f"top_{k}" for k in top_k], "macro_f1")}
    return kept | {
        "family_accuracy": families.found(()).figures["accuracy"],
        "abstained": _abstained(mine.items(), "no image was asked"),
    }


def _measure_plain(
    answers: IdentificationAnswers, rules: protocols.IdentificationRules, scope: str, title: str
) -> tuple[list[IdentificationInfo], list[MetricRow]]:
    names = answers.names
    fakes = Counter({one: n for one, n in answers.counts.items() if one.label == "fake"})
    single, rows = _measure_level(
        _Level(fakes, answers, names.classes),
        rules.top_k,
        scope,
        title,
        lambda key: str(names.shown(key)),
    )
    beside = {
        "reals_named": _reals_named(answers),
        "open_set_auroc": _auroc(answers, names),
    }
    families, family_rows = _measure_level(
        _Level(_by_family(fakes, names), answers, names.class_families),
        rules.top_k,
        f"{scope}, families",
        "Families named",
        str,
    )
    counts = {
        "without_prediction": sum(n for one, n in fakes.items() if one.predicted is None),
        "not_asked": sum(n for one, n in fakes.items() if not one.asked),
    }
    single = replace(single, notes=tuple(_notes(answers)), counts=counts)
    return [single, families], [*rows, *rows_of(beside, scope=scope), *family_rows]


class _Level:
    """Figures of generators, or of their families."""

    def __init__(
        self,
        counts: Counter[IdentificationAnswer],
        answers: IdentificationAnswers,
        known: frozenset[str] | None,
    ) -> None:
        self._counts, self._answers, self.known = counts, answers, known

    def found(self, top_k: Sequence[int]) -> identification.Identification:
        """The figures of `metrics.identification`, names as keys."""
        pairs: Counter[tuple[str, str | None]] = Counter()
        for one, n in self._counts.items():
            pairs[one.generator, one.predicted] += n
        found = identification.measure_pairs(pairs, known=self.known, top_k=top_k)
        if self._answers.ranked:
            found.figures.update({f"top_{k}": self._among(k) for k in top_k})
        return found

    def _among(self, k: int) -> MetricValue:
        known = [(one, n) for one, n in self._counts.items() if self.is_known(one)]
        return intervals.proportion(
            sum(n for one, n in known if one.place is not None and one.place < k),
            sum(n for _, n in known),
            _NO_KNOWN,
        )

    def is_known(self, one: IdentificationAnswer) -> bool:
        """Whether the identifier could have named the truth."""
        return self.known is None or one.generator in self.known

    def abstained(self) -> dict[str, MetricValue]:
        """Of known and of unknown ones."""
        known = [(one, n) for one, n in self._counts.items() if self.is_known(one)]
        others = [(one, n) for one, n in self._counts.items() if not self.is_known(one)]
        why = _NO_LIST if self.known is None else _NO_UNKNOWN
        return {
            "abstained_known": _abstained(known, _NO_KNOWN),
            "abstained_unknown": _abstained(others, why),
        }


def _measure_level(
    level: _Level,
    top_k: Sequence[int],
    scope: str,
    title: str,
    shown: Callable[[str], str],
) -> tuple[IdentificationInfo, list[MetricRow]]:
    found = level.found(top_k)
    figures = {
        name: figure for name, figure in found.figures.items() if name != "open_set_auroc"
    } | level.abstained()
    info = IdentificationInfo(
        scope,
        title,
        classes=tuple(
            ClassInfo(shown(row["name"]), row["n"], row["predicted"]) for row in found.classes
        ),
        pairs=tuple(
            (shown(truth), None if predicted is None else shown(predicted), n)
            for truth, predicted, n in found.pairs
        ),
    )
    rows = list(rows_of(figures, scope=scope))
    for row in found.classes:
        measured = {name: value for name, value in row.items() if isinstance(value, MetricValue)}
        rows += rows_of(measured, scope=info.scope_of(shown(row["name"])))
    return info, rows


def _by_family(
    counts: Counter[IdentificationAnswer], names: Names
) -> Counter[IdentificationAnswer]:
    """The same answers with families for generators."""
    found: Counter[IdentificationAnswer] = Counter()
    for one, n in counts.items():
        predicted = None if one.predicted is None else names.family(one.predicted)
        found[
            one._replace(
                generator=names.family(one.generator), predicted=predicted, place=one.family_place
            )
        ] += n
    return found


def _abstained(counts: Iterable[tuple[IdentificationAnswer, int]], why: str) -> MetricValue:
    asked = [(one, n) for one, n in counts if one.asked]
    return intervals.proportion(
        sum(n for one, n in asked if one.predicted is None), sum(n for _, n in asked), why
    )


def _auroc(answers: IdentificationAnswers, names: Names) -> MetricValue:
    """Of the fakes that have a confidence."""
    if not answers.confidences:
        return identification.measure_open_set([], names.classes, None)
    truth = [key for key, parts in answers.confidences.items() for _ in range(sum(map(len, parts)))]
    return identification.measure_open_set(
        truth,
        names.classes,
        np.concatenate([part for parts in answers.confidences.values() for part in parts]),
    )


def _reals_named(answers: IdentificationAnswers) -> MetricValue:
    """The share of reals for which a generator was named."""
    reals = [(one, n) for one, n in answers.counts.items() if one.label == "real"]
    return intervals.proportion(
        sum(n for one, n in reals if one.predicted not in (None, REAL)),
        sum(n for _, n in reals),
        "no real image",
    )


def _notes(answers: IdentificationAnswers) -> Iterable[str]:
    """What has to be known to read the figures."""
    yield "Names are compared through the index of generators: spellings, aliases and families; another version is another generator."
    if answers.ranked:
        yield "top-k is by the ranking, which names the nearest known generators also where the image was taken for none of them."
        yield "A row's ranking has five generators, so the families among the first k can be fewer than k."
    if answers.names.classes is None:
        yield "The run does not say which generators could be named: all count as known."


def _place(name: str, ranking: list[Any]) -> int | None:
    return ranking.index(name) if name in ranking else None


def _distribution_of(names: Names, generator: str) -> str:
    key = names.label(generator)
    if names.classes and key in names.classes:
        return KNOWN
    return (
        NEW_VERSION
        if names.class_families and names.family(key) in names.class_families
        else NEW_FAMILY
    )
