"""Generators that a run named, against the labels: the section `identification` of an evaluation, and the same by groups of generators.

Knows counted answers; how names are compared, and DFLIP's own marks, are known elsewhere.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ray_app.evaluation.answering import Answer, Answers
from ray_app.evaluation.dflip import dflip_v1
from ray_app.evaluation.naming import REAL, Names
from ray_app.evaluation.protocols import IdentificationRules
from ray_app.metrics.attribution import Attribution, attribution_of_pairs, open_set_auroc
from ray_app.metrics.figure import Figure, figure_rows
from ray_app.metrics.intervals import proportion

Document = dict[str, Any]
_NO_KNOWN = "no image of a known generator"
_NO_UNKNOWN = "no image of an unknown generator"
_NO_LIST = "no list of known generators"


def identification_of(answers: Answers, *, rules: IdentificationRules | None = None, missing: int = 0) -> Document:
    """The section `identification`.

    Plain figures are of fakes whose generator the identifier knows (all, where nobody tells which those are): those of
    `metrics.attribution`, an image without a name counts as wrong; `top_…` by the rows' rankings, whether a name was given or not.
    `abstained_known`, `abstained_unknown`: the shares of the images asked that were taken for none of the known. `reals_named`: the share
    of reals that got a generator's name. `families` has the same of base architectures. Under `dflip-v1` the section is theirs, with its
    flaws, and the plain figures stand in `plain`; `missing`: labels without a row, which count as wrong there.
    """
    rules = rules or IdentificationRules()
    if rules.protocol == "dflip-v1":
        return dflip_v1(answers.words, answers.names, missing) | {"plain": _plain(answers, rules)}
    return {"protocol": "plain", **_plain(answers, rules)}


def group_identification(answers: Answers, generators: Collection[str], top_k: Sequence[int]) -> Mapping[str, Figure]:
    """Figures of the fakes of some generators, by their names in the labels: of generators, of families, and how often it abstained."""
    names = answers.names
    keys = {names.label(name) for name in generators}
    mine = Counter({one: n for one, n in answers.counts.items() if one.label == "fake" and one.generator in keys})
    single, families = _Level(mine, answers, names.classes), _Level(_by_family(mine, names), answers, names.class_families)
    found = single.found(top_k).figures
    kept = {name: found[name] for name in ("accuracy", *[f"top_{k}" for k in top_k], "macro_f1")}
    return kept | {"family_accuracy": families.found(()).figures["accuracy"], "abstained": _abstained(mine.items(), "no image was asked")}


class _Level:
    """Figures of generators, or of their families."""

    def __init__(self, counts: Counter[Answer], answers: Answers, known: frozenset[str] | None) -> None:
        self._counts, self._answers, self.known = counts, answers, known

    def found(self, top_k: Sequence[int]) -> Attribution:
        """The figures of `metrics.attribution`, names as keys."""
        pairs: Counter[tuple[str, str | None]] = Counter()
        for one, n in self._counts.items():
            pairs[one.generator, one.said] += n
        found = attribution_of_pairs(pairs, known=self.known, top_k=top_k)
        if self._answers.ranked:
            found.figures.update({f"top_{k}": self._among(k) for k in top_k})
        return found

    def _among(self, k: int) -> Figure:
        known = [(one, n) for one, n in self._counts.items() if self.is_known(one)]
        return proportion(sum(n for one, n in known if one.place is not None and one.place < k), sum(n for _, n in known), _NO_KNOWN)

    def is_known(self, one: Answer) -> bool:
        """Whether the identifier could have named the truth."""
        return self.known is None or one.generator in self.known

    def abstained(self) -> dict[str, Figure]:
        """Of known and of unknown ones."""
        known = [(one, n) for one, n in self._counts.items() if self.is_known(one)]
        others = [(one, n) for one, n in self._counts.items() if not self.is_known(one)]
        why = _NO_LIST if self.known is None else _NO_UNKNOWN
        return {"abstained_known": _abstained(known, _NO_KNOWN), "abstained_unknown": _abstained(others, why)}


def _plain(answers: Answers, rules: IdentificationRules) -> Document:
    names = answers.names
    fakes = Counter({one: n for one, n in answers.counts.items() if one.label == "fake"})
    families = _by_family(fakes, names)
    single = _section(_Level(fakes, answers, names.classes), rules.top_k, lambda key: str(names.shown(key)))
    single |= {"reals_named": _reals_named(answers).row(), "open_set_auroc": _auroc(answers, names).row()}
    return {
        **single,
        "families": _section(_Level(families, answers, names.class_families), rules.top_k, str),
        "known": None if names.classes is None else sorted(str(names.shown(key)) for key in names.classes),
        "without_prediction": sum(n for one, n in fakes.items() if one.said is None),
        "not_asked": sum(n for one, n in fakes.items() if not one.asked),
        "notes": list(_notes(answers)),
    }


def _section(level: _Level, top_k: Sequence[int], shown: Any) -> Document:
    found = level.found(top_k)
    figures = {name: figure for name, figure in found.figures.items() if name != "open_set_auroc"} | level.abstained()
    return {
        **figure_rows(figures),
        "pairs": [[shown(truth), None if said is None else shown(said), n] for truth, said, n in found.pairs],
        "classes": [
            {name: value.row() if isinstance(value, Figure) else value for name, value in row.items()} | {"name": shown(row["name"])}
            for row in found.classes
        ],
    }


def _by_family(counts: Counter[Answer], names: Names) -> Counter[Answer]:
    """The same answers with families for generators."""
    found: Counter[Answer] = Counter()
    for one, n in counts.items():
        said = None if one.said is None else names.family(one.said)
        found[one._replace(generator=names.family(one.generator), said=said, place=one.family_place)] += n
    return found


def _abstained(counts: Iterable[tuple[Answer, int]], why: str) -> Figure:
    asked = [(one, n) for one, n in counts if one.asked]
    return proportion(sum(n for one, n in asked if one.said is None), sum(n for _, n in asked), why)


def _auroc(answers: Answers, names: Names) -> Figure:
    """Of the fakes that have a confidence."""
    if not answers.confidences:
        return open_set_auroc([], names.classes, None)
    truth = [key for key, parts in answers.confidences.items() for _ in range(sum(map(len, parts)))]
    return open_set_auroc(truth, names.classes, np.concatenate([part for parts in answers.confidences.values() for part in parts]))


def _reals_named(answers: Answers) -> Figure:
    """The share of reals for which a generator was named."""
    reals = [(one, n) for one, n in answers.counts.items() if one.label == "real"]
    return proportion(sum(n for one, n in reals if one.said not in (None, REAL)), sum(n for _, n in reals), "no real image")


def _notes(answers: Answers) -> Iterable[str]:
    """What has to be known to read the figures."""
    yield "Names are compared through the index of generators: spellings, aliases and families; another version is another generator."
    if answers.ranked:
        yield "top-k is by the ranking, which names the nearest known generators also where the image was taken for none of them."
        yield "A row's ranking has five generators, so the families among the first k can be fewer than k."
    if answers.names.classes is None:
        yield "The run does not say which generators could be named: all count as known."
