"""Generators that a run named, against the labels: the sections `identification`
(`identification_of`) and `groups` (`groups_section`).

`answers_of` counts generator, answer, and where the truth stands in the ranking. A protocol's
groups are rows of its table. Elsewhere the classes of the run's identifier decide which generators
were in training: by themselves, by their family alone, or not at all.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.evaluation import dflip, join, protocols
from ray_app.evaluation.generator_names import REAL, Names
from ray_app.evaluation.prompts import Prompts
from ray_app.metrics import attribution, intervals, values
from ray_app.reports.evaluation import model, system_model
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
Document = dict[str, Any]
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


class AttributionAnswer(NamedTuple):
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
class AttributionAnswers:
    """Of all images. `words`: label, generator, verdict and prediction as they stand in the rows.
    `confidences`: of fakes, by the key of their generator.
    """

    names: Names
    counts: Counter[AttributionAnswer] = field(default_factory=Counter)
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

    def _answer(self, row: dict[str, Any]) -> AttributionAnswer:
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
        return AttributionAnswer(
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


@dataclass(frozen=True)
class Grouped:
    """Generators, by their names in the labels. `total`: of all groups with that distribution."""

    name: str
    distribution: Distribution
    generators: frozenset[str]
    total: bool = False


@dataclass(frozen=True)
class Grouping:
    """`by`: what divides the groups. Those without an image are there too."""

    by: Literal["protocol", "identifier"]
    groups: tuple[Grouped, ...]

    @property
    def all(self) -> list[Grouped]:
        """The groups, and their totals where a distribution has several."""
        totals = []
        for distribution, name in _TOTALS.items():
            mine = [one for one in self.groups if one.distribution == distribution]
            if len(mine) > 1:
                totals.append(
                    Grouped(
                        name,
                        distribution,
                        frozenset().union(*[one.generators for one in mine]),
                        total=True,
                    )
                )
        return [*self.groups, *totals]


def answers_of(tables: join.Tables, names: Names) -> AttributionAnswers | None:
    """All of a run's answers; None where no image has one."""
    found = AttributionAnswers(names)
    for table in tables(COLUMNS):
        found.add(table)
    return found if any(one.asked for one in found.counts) else None


def identification_of(
    answers: AttributionAnswers,
    *,
    rules: protocols.IdentificationRules | None = None,
    missing: int = 0,
) -> Document:
    """The section `identification`.

    Plain figures are of fakes whose generator the identifier knows (all, where those are not
    recorded): those of `metrics.attribution`, an image without a name counts as wrong; `top_…` by
    the rows' rankings, whether a name was given or not. `abstained_known`, `abstained_unknown`: the
    shares of the images with an answer that is none of the known. `reals_named`: the share of reals
    that got a generator's name. `families` has the same of base architectures. Under `dflip-v1` the
    section is theirs, with its flaws, and the plain figures stand in `plain`; `missing`: labels
    without a row, which count as wrong there.
    """
    rules = rules or protocols.IdentificationRules()
    if rules.protocol == "dflip-v1":
        return dflip.dflip_v1(answers.words, answers.names, missing) | {
            "plain": _plain(answers, rules)
        }
    return {"protocol": "plain", **_plain(answers, rules)}


def grouping_of(
    protocol: protocols.Protocol | None, names: Names, systems: Sequence[system_model.SystemFacts]
) -> Grouping | None:
    """The groups of a document's fakes; None where it is not known what was in training."""
    fakes = [one for one in (systems[0].generators if systems else ()) if one.label == "fake"]
    if protocol and protocol.groups:
        rows = {row.name: row for row in protocol.rows}
        sides: tuple[tuple[Distribution, tuple[str, ...]], ...] = (
            ("in", protocol.groups.inside),
            ("out", protocol.groups.out),
        )
        held = {
            name: frozenset(one.name for one in fakes if rows[name].holds(one))
            for _, some in sides
            for name in some
        }
        return Grouping(
            "protocol",
            tuple(Grouped(name, side, held[name]) for side, some in sides for name in some),
        )
    if names.classes is None:
        return None
    found: dict[str, set[str]] = {KNOWN: set(), NEW_VERSION: set(), NEW_FAMILY: set()}
    for one in fakes:
        found[_distribution_of(names, one.name)].add(one.name)
    return Grouping(
        "identifier",
        tuple(
            Grouped(name, "in" if name == KNOWN else "out", frozenset(mine))
            for name, mine in found.items()
        ),
    )


def groups_section(
    grouping: Grouping,
    systems: Sequence[system_model.SystemFacts],
    answers: AttributionAnswers | None,
    prompts: Prompts | None,
    top_k: Sequence[int],
) -> model.GroupFacts:
    """The section `groups`: per group its generators, images, and figures of detection (by system),
    identification and prompts.
    """
    rows = [
        model.GroupRow(
            name=one.name,
            distribution=one.distribution,
            total=one.total,
            generators=tuple(sorted(one.generators)),
            n=max(
                (sum(row.n + row.unscored for row in _mine(one, system)) for system in systems),
                default=0,
            ),
            detection={system.name: _detection(_mine(one, system)) for system in systems},
            identification=group_identification(answers, one.generators, top_k)
            if answers
            else None,
            prompts=prompts.of(one.generators) if prompts else None,
        )
        for one in grouping.all
    ]
    return model.GroupFacts(by=grouping.by, groups=tuple(rows))


def group_identification(
    answers: AttributionAnswers, generators: Collection[str], top_k: Sequence[int]
) -> Mapping[str, values.MetricValue]:
    """Figures of the fakes of some generators, by their names in the labels: of generators, of
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


def _plain(answers: AttributionAnswers, rules: protocols.IdentificationRules) -> Document:
    names = answers.names
    fakes = Counter({one: n for one, n in answers.counts.items() if one.label == "fake"})
    families = _by_family(fakes, names)
    single = _section(
        _Level(fakes, answers, names.classes), rules.top_k, lambda key: str(names.shown(key))
    )
    single |= {
        "reals_named": _reals_named(answers).to_dict(),
        "open_set_auroc": _auroc(answers, names).to_dict(),
    }
    return {
        **single,
        "families": _section(_Level(families, answers, names.class_families), rules.top_k, str),
        "known": None
        if names.classes is None
        else sorted(str(names.shown(key)) for key in names.classes),
        "without_prediction": sum(n for one, n in fakes.items() if one.predicted is None),
        "not_asked": sum(n for one, n in fakes.items() if not one.asked),
        "notes": list(_notes(answers)),
    }


class _Level:
    """Figures of generators, or of their families."""

    def __init__(
        self,
        counts: Counter[AttributionAnswer],
        answers: AttributionAnswers,
        known: frozenset[str] | None,
    ) -> None:
        self._counts, self._answers, self.known = counts, answers, known

    def found(self, top_k: Sequence[int]) -> attribution.Attribution:
        """The figures of `metrics.attribution`, names as keys."""
        pairs: Counter[tuple[str, str | None]] = Counter()
        for one, n in self._counts.items():
            pairs[one.generator, one.predicted] += n
        found = attribution.attribution_of_pairs(pairs, known=self.known, top_k=top_k)
        if self._answers.ranked:
            found.figures.update({f"top_{k}": self._among(k) for k in top_k})
        return found

    def _among(self, k: int) -> values.MetricValue:
        known = [(one, n) for one, n in self._counts.items() if self.is_known(one)]
        return intervals.proportion(
            sum(n for one, n in known if one.place is not None and one.place < k),
            sum(n for _, n in known),
            _NO_KNOWN,
        )

    def is_known(self, one: AttributionAnswer) -> bool:
        """Whether the identifier could have named the truth."""
        return self.known is None or one.generator in self.known

    def abstained(self) -> dict[str, values.MetricValue]:
        """Of known and of unknown ones."""
        known = [(one, n) for one, n in self._counts.items() if self.is_known(one)]
        others = [(one, n) for one, n in self._counts.items() if not self.is_known(one)]
        why = _NO_LIST if self.known is None else _NO_UNKNOWN
        return {
            "abstained_known": _abstained(known, _NO_KNOWN),
            "abstained_unknown": _abstained(others, why),
        }


def _section(level: _Level, top_k: Sequence[int], shown: Any) -> Document:
    found = level.found(top_k)
    figures = {
        name: figure for name, figure in found.figures.items() if name != "open_set_auroc"
    } | level.abstained()
    return {
        **{name: figure.to_dict() for name, figure in figures.items()},
        "pairs": [
            [shown(truth), None if predicted is None else shown(predicted), n]
            for truth, predicted, n in found.pairs
        ],
        "classes": [
            {
                name: value.to_dict() if isinstance(value, values.MetricValue) else value
                for name, value in row.items()
            }
            | {"name": shown(row["name"])}
            for row in found.classes
        ],
    }


def _by_family(counts: Counter[AttributionAnswer], names: Names) -> Counter[AttributionAnswer]:
    """The same answers with families for generators."""
    found: Counter[AttributionAnswer] = Counter()
    for one, n in counts.items():
        predicted = None if one.predicted is None else names.family(one.predicted)
        found[
            one._replace(
                generator=names.family(one.generator), predicted=predicted, place=one.family_place
            )
        ] += n
    return found


def _abstained(counts: Iterable[tuple[AttributionAnswer, int]], why: str) -> values.MetricValue:
    asked = [(one, n) for one, n in counts if one.asked]
    return intervals.proportion(
        sum(n for one, n in asked if one.predicted is None), sum(n for _, n in asked), why
    )


def _auroc(answers: AttributionAnswers, names: Names) -> values.MetricValue:
    """Of the fakes that have a confidence."""
    if not answers.confidences:
        return attribution.open_set_auroc([], names.classes, None)
    truth = [key for key, parts in answers.confidences.items() for _ in range(sum(map(len, parts)))]
    return attribution.open_set_auroc(
        truth,
        names.classes,
        np.concatenate([part for parts in answers.confidences.values() for part in parts]),
    )


def _reals_named(answers: AttributionAnswers) -> values.MetricValue:
    """The share of reals for which a generator was named."""
    reals = [(one, n) for one, n in answers.counts.items() if one.label == "real"]
    return intervals.proportion(
        sum(n for one, n in reals if one.predicted not in (None, REAL)),
        sum(n for _, n in reals),
        "no real image",
    )


def _notes(answers: AttributionAnswers) -> Iterable[str]:
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


def _mine(group: Grouped, system: system_model.SystemFacts) -> list[system_model.GeneratorFacts]:
    return [
        one for one in system.generators if one.label == "fake" and one.name in group.generators
    ]


def _detection(generators: Sequence[system_model.GeneratorFacts]) -> dict[str, values.MetricValue]:
    """Fakes found at the threshold, and the AUC against all real images, which is the mean over
    their images.
    """
    there = [one for one in generators if one.n]
    if not there:
        return dict.fromkeys(("tpr", "auc"), values.undefined(_NONE))
    n = sum(one.n for one in there)
    missing = [one.auc.why for one in there if one.auc.value is None]
    mean = values.MetricValue(value=sum(one.n * (one.auc.value or 0.0) for one in there) / n, n=n)
    return {
        "tpr": protocols.correct_share(there),
        "auc": values.undefined(missing[0], n) if missing else mean,
    }
