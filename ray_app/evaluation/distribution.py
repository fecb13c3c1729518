"""Fakes in and out of distribution, by groups of generators: the section `groups` of an evaluation. Knows names; computes no figure itself.

A protocol's groups are rows of its table. Elsewhere the classes of the run's identifier tell which generators were in training: by
themselves, by their family alone, or not at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray_app.evaluation.answering import Answers
from ray_app.evaluation.attributing import group_identification
from ray_app.evaluation.conventions import told_right
from ray_app.evaluation.naming import Names
from ray_app.evaluation.prompting import Prompts
from ray_app.evaluation.protocols import Protocol
from ray_app.metrics.figure import Figure, figure_rows, undefined

Document = dict[str, Any]
Distribution = Literal["in", "out"]
KNOWN, NEW_VERSION, NEW_FAMILY = "generators of the training", "other generators of their families", "other families"
_TOTALS: Mapping[Distribution, str] = {"in": "all in distribution", "out": "all out of distribution"}
_NONE = "no image of these generators"


@dataclass(frozen=True)
class Grouped:
    """Generators, by their names in the labels. `total`: of all groups with that distribution."""

    name: str
    distribution: Distribution
    generators: frozenset[str]
    total: bool = False


@dataclass(frozen=True)
class Grouping:
    """`by`: what tells the groups apart. Those without an image are there too."""

    by: Literal["protocol", "identifier"]
    groups: tuple[Grouped, ...]

    @property
    def all(self) -> list[Grouped]:
        """The groups, and their totals where a distribution has several."""
        totals = []
        for distribution, name in _TOTALS.items():
            mine = [one for one in self.groups if one.distribution == distribution]
            if len(mine) > 1:
                totals.append(Grouped(name, distribution, frozenset().union(*[one.generators for one in mine]), total=True))
        return [*self.groups, *totals]


def grouping_of(protocol: Protocol | None, names: Names, systems: Sequence[Document]) -> Grouping | None:
    """The groups of a document's fakes; None where nobody tells what was in training."""
    fakes = [one for one in (systems[0]["generators"] if systems else ()) if one["label"] == "fake"]
    if protocol and protocol.groups:
        rows = {row.name: row for row in protocol.rows}
        told: tuple[tuple[Distribution, tuple[str, ...]], ...] = (("in", protocol.groups.inside), ("out", protocol.groups.out))
        held = {name: frozenset(one["name"] for one in fakes if rows[name].holds(one)) for _, some in told for name in some}
        return Grouping("protocol", tuple(Grouped(name, side, held[name]) for side, some in told for name in some))
    if names.classes is None:
        return None
    found: dict[str, set[str]] = {KNOWN: set(), NEW_VERSION: set(), NEW_FAMILY: set()}
    for one in fakes:
        found[_place(names, one["name"])].add(one["name"])
    return Grouping("identifier", tuple(Grouped(name, "in" if name == KNOWN else "out", frozenset(mine)) for name, mine in found.items()))


def groups_section(
    grouping: Grouping, systems: Sequence[Document], answers: Answers | None, prompts: Prompts | None, top_k: Sequence[int]
) -> Document:
    """The section `groups`: per group its generators, images, and figures of detection (by system), identification and prompts."""
    return {
        "by": grouping.by,
        "groups": [
            {
                "name": one.name,
                "distribution": one.distribution,
                "total": one.total,
                "generators": sorted(one.generators),
                "n": max((sum(row["n"] + row["unscored"] for row in _mine(one, system)) for system in systems), default=0),
                "detection": {system["name"]: figure_rows(_detection(_mine(one, system))) for system in systems},
                "identification": figure_rows(group_identification(answers, one.generators, top_k)) if answers else None,
                "prompts": figure_rows(prompts.of(one.generators)) if prompts else None,
            }
            for one in grouping.all
        ],
    }


def _place(names: Names, generator: str) -> str:
    key = names.label(generator)
    if names.classes and key in names.classes:
        return KNOWN
    return NEW_VERSION if names.class_families and names.family(key) in names.class_families else NEW_FAMILY


def _mine(group: Grouped, system: Document) -> list[Document]:
    return [one for one in system["generators"] if one["label"] == "fake" and one["name"] in group.generators]


def _detection(generators: Sequence[Document]) -> dict[str, Figure]:
    """Fakes found at the threshold, and the AUC against all real images, which is the mean over their images."""
    there = [one for one in generators if one["n"]]
    if not there:
        return dict.fromkeys(("tpr", "auc"), undefined(_NONE))
    n = sum(one["n"] for one in there)
    missing = next((one["auc"]["why"] for one in there if one["auc"]["value"] is None), None)
    auc = undefined(missing, n) if missing else Figure(sum(one["n"] * one["auc"]["value"] for one in there) / n, n=n)
    return {"tpr": told_right(there), "auc": auc}
