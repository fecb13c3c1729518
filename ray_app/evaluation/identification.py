"""Measure how well a run named the generators of its images.

`collect_answers` counts the predicted names, `measure_answers` measures them for all images, and
`measure_group` for the fakes of some generators. An answer is the name that a run predicted for an
image, possibly with a ranking of further names.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.evaluation import dflip, join, protocols
from ray_app.evaluation.generator_names import REAL, Names
from ray_app.metrics import intervals
from ray_app.metrics.identification import Identification, measure_open_set, measure_pairs
from ray_app.metrics.table import MetricRow, build_rows
from ray_app.metrics.values import MetricValue
from ray_app.reports.evaluation.result import ClassInfo, IdentificationInfo
from ray_app.runs.current import numbers

COLUMNS = (
    "label",
    "generator",
    "verdict",
    "predicted_generator",
    "generator_ranking",
    "generator_confidence",
)
_SEPARATOR = "\x1f"
"""Joins the names of a ranking. No name has it."""
_NO_KNOWN = "no image of a known generator"
_NO_UNKNOWN = "no image of an unknown generator"
_NO_LIST = "no list of known generators"
RowLabels = tuple[str, str, str | None, str | None]
Floats = npt.NDArray[np.float64]


class Answer(NamedTuple):
    """The answer of a run about the generator of an image.

    The identifier of the run, a model that names generators, gives the answer. Names are stored as
    keys, which are equal for all spellings of one generator (`Names`).

    Attributes:
        label: `real` or `fake`.
        generator: Key of the true name.
        predicted: Key of the predicted name; None if no generator was named.
        has_answer: Whether the identifier processed the image. It is also True if the result is
            that no known generator fits.
        place: Index of the true name in the ranking of names, from 0; None if it is not in the
            ranking.
        family_place: Index of the true family among the families of the ranking, from 0; None if it
            is not among them.
    """

    label: str
    generator: str
    predicted: str | None
    has_answer: bool
    place: int | None
    family_place: int | None


@dataclass
class Answers:
    """Counts of the generators that a run named, over all labelled images.

    Attributes:
        names: Maps names of generators to keys, which are equal for all spellings of a generator.
        counts: Number of images by answer. The names in an answer are keys.
        row_counts: Number of images by label, generator, verdict, and predicted name, with names
            spelled as in the rows.
        confidences: The run's confidences that the generator of a fake is one that the run can
            name. They are arrays, by the key of the true generator.
        is_ranked: Whether any row has a ranking of names.
    """

    names: Names
    counts: Counter[Answer] = field(default_factory=Counter)
    row_counts: Counter[RowLabels] = field(default_factory=Counter)
    confidences: dict[str, list[Floats]] = field(default_factory=dict)
    is_ranked: bool = False

    def add(self, table: pa.Table) -> None:
        """Count the predicted generators in labelled rows, which have the columns `COLUMNS`."""
        columns = {name: table[name].cast(pa.string()) for name in COLUMNS[:4]}
        ranking, confidence = table["generator_ranking"], numbers(table["generator_confidence"])
        self.is_ranked = self.is_ranked or ranking.null_count < len(ranking)
        columns["ranking"] = (
            pc.binary_join(ranking, _SEPARATOR)
            if pa.types.is_list(ranking.type)
            else ranking.cast(pa.string())
        )
        columns["has_confidence"] = pa.array(np.isfinite(confidence))
        # Rows stay in order, because the first spelling of a name is the one that is shown.
        counted = (
            pa.table(columns)
            .group_by(list(columns), use_threads=False)
            .aggregate([([], "count_all")])
        )
        for row in counted.to_pylist():
            row_labels = row["label"], row["generator"], row["verdict"], row["predicted_generator"]
            self.row_counts[row_labels] += row["count_all"]
            self.counts[self._read_answer(row)] += row["count_all"]
        self._keep_confidences(table, confidence)

    def _read_answer(self, row: dict[str, Any]) -> Answer:
        names = self.names
        truth = names.label(row["generator"])
        predicted = names.predicted(dflip.extract_name(row["predicted_generator"]))
        ranked_names = row["ranking"].split(_SEPARATOR) if row["ranking"] else []
        ranking = [names.predicted(name) for name in ranked_names]
        families = list(dict.fromkeys(names.family(key) for key in ranking if key))
        family = names.family(truth)
        return Answer(
            row["label"],
            truth,
            predicted,
            bool(predicted or ranking or row["has_confidence"]),
            ranking.index(truth) if truth in ranking else None,
            families.index(family) if family in families else None,
        )

    def _keep_confidences(self, table: pa.Table, confidence: Floats) -> None:
        is_fake = np.asarray(pc.equal(table["label"].cast(pa.string()), "fake"))
        selected = np.isfinite(confidence) & is_fake
        if not selected.any():
            return
        generators = table["generator"].cast(pa.string()).combine_chunks().dictionary_encode()
        codes = np.asarray(generators.indices)
        for code, name in enumerate(generators.dictionary.to_pylist()):
            values = confidence[selected & (codes == code)]
            if len(values):
                self.confidences.setdefault(self.names.label(name), []).append(values)


def collect_answers(tables: join.Tables, names: Names) -> Answers | None:
    """Count the generators that a run predicted for its labelled rows.

    The result is None if the run predicted no generator, ranking, or confidence for any image.
    """
    answers = Answers(names)
    for table in tables(COLUMNS):
        answers.add(table)
    return answers if any(answer.has_answer for answer in answers.counts) else None


def measure_answers(
    answers: Answers,
    *,
    rules: protocols.IdentificationRules | None = None,
    missing: int = 0,
) -> tuple[list[IdentificationInfo], list[MetricRow]]:
    """Measure how well a run named the generators of images.

    The metrics are in the scope `identification`, and for families in `identification, families`.
    The identifier is the model that named the generators, and known generators are those that it
    can name. The plain metrics, such as accuracy and F1, are those of `metrics.identification`.
    They cover the fakes of known generators, or all fakes if the run does not record which are
    known. An image without a name counts as wrong. These metrics are added:

    - `top_k`: the fraction of images whose true name is among the first k names of the ranking,
      even if no name was predicted.
    - `abstained_known`: among fakes of known generators with an answer, the fraction that the
      identifier attributed to no known generator.
    - `abstained_unknown`: among fakes of other generators with an answer, the fraction that the
      identifier attributed to no known generator.
    - `reals_named`: the fraction of real images that were attributed to a generator.

    With the rules `dflip-v1`, the scope `identification` has metrics by the rules of the DFLIP-3K
    paper, some of which are flawed. The plain metrics are then in `identification, plain`.

    Args:
        answers: The answers of all images.
        rules: The rules of the protocol; None for the plain ones.
        missing: Number of labels without a row, which count as wrong by the rules of `dflip-v1`.

    Returns:
        The facts of each scope, such as confused names, and the metrics of all scopes.
    """
    rules = rules or protocols.IdentificationRules()
    if rules.protocol == "plain":
        return _measure_plain(answers, rules, "identification", "Generators named")
    dflip_infos, rows = dflip.dflip_v1(answers.row_counts, answers.names, missing)
    plain, plain_rows = _measure_plain(
        answers, rules, "identification, plain", "Generators named, by plain rules"
    )
    return [*dflip_infos, *plain], [*rows, *plain_rows]


def measure_group(
    answers: Answers, generators: Collection[str], top_k: Sequence[int]
) -> dict[str, MetricValue]:
    """Measure how well a run named the generators and families of the fakes of some generators.

    Args:
        answers: The answers of all images.
        generators: Names of generators in the labels.
        top_k: Values of k for top-k accuracies.

    Returns:
        `accuracy`, `top_1` and so on, `macro_f1`, `family_accuracy`, and `abstained`. The last one
        is the fraction of images attributed to no known generator, among images with an answer.
    """
    names = answers.names
    keys = {names.label(name) for name in generators}
    fakes = Counter(
        {
            answer: n
            for answer, n in answers.counts.items()
            if answer.label == "fake" and answer.generator in keys
        }
    )
    by_generator = _Level(fakes, names.classes, answers.is_ranked).measure(top_k).figures
    families = _Level(_by_family(fakes, names), names.class_families, answers.is_ranked)
    metrics = {name: by_generator[name] for name in ("accuracy", *(f"top_{k}" for k in top_k))}
    return metrics | {
        "macro_f1": by_generator["macro_f1"],
        "family_accuracy": families.measure(()).figures["accuracy"],
        "abstained": _measure_abstained(fakes.items(), "no image has an answer"),
    }


def _measure_plain(
    answers: Answers, rules: protocols.IdentificationRules, scope: str, title: str
) -> tuple[list[IdentificationInfo], list[MetricRow]]:
    names = answers.names
    fakes = Counter({answer: n for answer, n in answers.counts.items() if answer.label == "fake"})
    generators, rows = _measure_level(
        _Level(fakes, names.classes, answers.is_ranked),
        rules.top_k,
        scope,
        title,
        lambda key: str(names.shown(key)),
    )
    families, family_rows = _measure_level(
        _Level(_by_family(fakes, names), names.class_families, answers.is_ranked),
        rules.top_k,
        f"{scope}, families",
        "Families named",
        str,
    )
    counts = {
        "without_prediction": sum(n for answer, n in fakes.items() if answer.predicted is None),
        "not_asked": sum(n for answer, n in fakes.items() if not answer.has_answer),
    }
    further_metrics = {
        "reals_named": _measure_reals(answers),
        "open_set_auroc": _measure_open_set(answers),
    }
    generators = replace(generators, notes=tuple(_describe_metrics(answers)), counts=counts)
    return [generators, families], [*rows, *build_rows(further_metrics, scope=scope), *family_rows]


@dataclass(frozen=True)
class _Level:
    """The answers on generators, or on their families.

    Attributes:
        counts: Number of images by answer.
        known: Keys that the identifier can predict; None if they are not recorded.
        is_ranked: Whether rows have a ranking.
    """

    counts: Counter[Answer]
    known: frozenset[str] | None
    is_ranked: bool

    def measure(self, top_k: Sequence[int]) -> Identification:
        """Measure the answers, with keys as names."""
        pairs: Counter[tuple[str, str | None]] = Counter()
        for answer, n in self.counts.items():
            pairs[answer.generator, answer.predicted] += n
        measured = measure_pairs(pairs, known=self.known, top_k=top_k)
        if not self.is_ranked:
            return measured
        known_answers, _ = self.divide()
        n_known = sum(n for _, n in known_answers)
        top = {}
        for k in top_k:
            hits = sum(
                n for answer, n in known_answers if answer.place is not None and answer.place < k
            )
            top[f"top_{k}"] = intervals.proportion(hits, n_known, _NO_KNOWN)
        return replace(measured, figures=measured.figures | top)

    def divide(self) -> tuple[list[tuple[Answer, int]], list[tuple[Answer, int]]]:
        """Return the answers for known names, and those for other names."""
        known_answers: list[tuple[Answer, int]] = []
        other_answers: list[tuple[Answer, int]] = []
        for answer, n in self.counts.items():
            is_known = self.known is None or answer.generator in self.known
            (known_answers if is_known else other_answers).append((answer, n))
        return known_answers, other_answers


def _measure_level(
    level: _Level, top_k: Sequence[int], scope: str, title: str, show: Callable[[str], str]
) -> tuple[IdentificationInfo, list[MetricRow]]:
    measured, (known_answers, other_answers) = level.measure(top_k), level.divide()
    metrics = {
        name: metric for name, metric in measured.figures.items() if name != "open_set_auroc"
    }
    metrics["abstained_known"] = _measure_abstained(known_answers, _NO_KNOWN)
    reason = _NO_LIST if level.known is None else _NO_UNKNOWN
    metrics["abstained_unknown"] = _measure_abstained(other_answers, reason)
    info = IdentificationInfo(
        scope,
        title,
        classes=tuple(
            ClassInfo(show(row["name"]), row["n"], row["predicted"]) for row in measured.classes
        ),
        pairs=tuple(
            (show(truth), None if predicted is None else show(predicted), n)
            for truth, predicted, n in measured.pairs
        ),
    )
    rows = list(build_rows(metrics, scope=scope))
    for row in measured.classes:
        class_metrics = {name: row[name] for name in ("precision", "recall", "f1")}
        rows += build_rows(class_metrics, scope=info.get_scope(show(row["name"])))
    return info, rows


def _by_family(counts: Counter[Answer], names: Names) -> Counter[Answer]:
    """Return the answers with families in place of generators."""
    families: Counter[Answer] = Counter()
    for answer, n in counts.items():
        answer_on_family = answer._replace(
            generator=names.family(answer.generator),
            predicted=None if answer.predicted is None else names.family(answer.predicted),
            place=answer.family_place,
        )
        families[answer_on_family] += n
    return families


def _measure_abstained(counts: Iterable[tuple[Answer, int]], reason: str) -> MetricValue:
    answered = [(answer, n) for answer, n in counts if answer.has_answer]
    abstained = sum(n for answer, n in answered if answer.predicted is None)
    return intervals.proportion(abstained, sum(n for _, n in answered), reason)


def _measure_open_set(answers: Answers) -> MetricValue:
    """Measure the AUROC of the confidence, over the fakes that have one."""
    if not answers.confidences:
        return measure_open_set([], answers.names.classes, None)
    truth: list[str] = []
    confidences: list[Floats] = []
    for key, parts in answers.confidences.items():
        truth += [key] * sum(map(len, parts))
        confidences += parts
    return measure_open_set(truth, answers.names.classes, np.concatenate(confidences))


def _measure_reals(answers: Answers) -> MetricValue:
    """Return the fraction of real images that were attributed to a generator."""
    reals = [(answer, n) for answer, n in answers.counts.items() if answer.label == "real"]
    n_named = sum(n for answer, n in reals if answer.predicted not in (None, REAL))
    return intervals.proportion(n_named, sum(n for _, n in reals), "no real image")


def _describe_metrics(answers: Answers) -> Iterable[str]:
    """Yield notes on how to read the metrics."""
    yield "Names are compared through the index of generators by spellings, aliases, and families; another version is another generator."
    if answers.is_ranked:
        yield "top-k uses the ranking, which has the nearest known generators even if the image was attributed to none of them."
        yield "A row's ranking has five generators, so the families among the first k can be fewer than k."
    if answers.names.classes is None:
        yield "The run does not record which generators could be named, so all count as known."
