"""Measure how well fakes of known and of new generators are detected.

`divide_generators` divides generators into groups that are in or out of the training distribution.
`measure_groups` measures how well a detector or ensemble detects each group. A protocol, the rules
for reproducing a paper's table, may define the groups: each one has the generators of a row of the
table. Otherwise, the run's identifier, a model that names generators, defines three groups. They
are generators that it was trained on, other generators of their families, and generators of other
families.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from ray_app.evaluation.generator_names import Names
from ray_app.evaluation.protocols import Protocol
from ray_app.evaluation.system_metrics import SystemScores, get_group
from ray_app.metrics import intervals, values
from ray_app.metrics.table import MetricRow, build_rows
from ray_app.reports.evaluation.result import GeneratorInfo, GroupInfo

Distribution = Literal["in", "out"]
IN_TRAINING, NEW_VERSION, NEW_FAMILY = (
    "generators of the training",
    "other generators of their families",
    "other families",
)
_TOTALS: Mapping[Distribution, str] = {
    "in": "all in distribution",
    "out": "all out of distribution",
}
_NO_IMAGE = "no image of these generators"


def divide_generators(
    protocol: Protocol | None, names: Names, generators: Sequence[GeneratorInfo]
) -> tuple[str, list[GroupInfo]]:
    """Divide the generators of fakes into groups in and out of the training distribution.

    If the protocol defines groups, each group has the generators of a row of its table. Otherwise,
    the run's identifier, a model that names generators, defines three groups. They are generators
    that it was trained on, other generators of their families, and generators of other families.

    Args:
        protocol: The rules for reproducing a published table, or None.
        names: The names of generators, with the classes of the run's identifier.
        generators: The generators and sources that the labels name.

    Returns:
        Where the groups come from (`protocol`, `identifier`, or "" without groups), and the groups.
        A group may have no image. If several groups are in the distribution, or out of it, a
        further group has all of them.
    """
    fakes = [generator for generator in generators if generator.label == "fake"]
    divided: list[tuple[str, Distribution, list[GeneratorInfo]]] = []
    if protocol and protocol.groups:
        divided_by, rows = "protocol", {row.name: row for row in protocol.rows}
        sides: list[tuple[Distribution, tuple[str, ...]]] = [
            ("in", protocol.groups.inside),
            ("out", protocol.groups.out),
        ]
        for distribution, row_names in sides:
            for name in row_names:
                members = [fake for fake in fakes if rows[name].matches(fake)]
                divided.append((name, distribution, members))
    elif names.classes is not None:
        divided_by = "identifier"
        for name in (IN_TRAINING, NEW_VERSION, NEW_FAMILY):
            members = [fake for fake in fakes if _name_group(names, fake.name) == name]
            divided.append((name, "in" if name == IN_TRAINING else "out", members))
    else:
        return "", []
    groups = [_describe_group(name, side, members) for name, side, members in divided]
    for distribution, name in _TOTALS.items():
        parts = [members for _, side, members in divided if side == distribution]
        if len(parts) > 1:
            distinct = {(fake.kind, fake.name): fake for members in parts for fake in members}
            total = _describe_group(name, distribution, list(distinct.values()), total=True)
            groups.append(total)
    return divided_by, groups


def _name_group(names: Names, generator: str) -> str:
    key = names.label(generator)
    if names.classes and key in names.classes:
        return IN_TRAINING
    if names.class_families and names.family(key) in names.class_families:
        return NEW_VERSION
    return NEW_FAMILY


def _describe_group(
    name: str, distribution: str, generators: Sequence[GeneratorInfo], *, total: bool = False
) -> GroupInfo:
    names = tuple(sorted({generator.name for generator in generators}))
    n = sum(generator.n + generator.unscored for generator in generators)
    return GroupInfo(name, distribution, total, names, n)


def measure_groups(
    groups: Sequence[GroupInfo], scores: SystemScores, generators: Sequence[GeneratorInfo]
) -> list[MetricRow]:
    """Measure how well a detector or ensemble detects the fakes of each group of generators.

    Args:
        groups: The groups, from `divide_generators`.
        scores: The scores of the detector or ensemble.
        generators: The generators and sources, with the number of scored images.

    Returns:
        For each group, the true-positive rate and the AUC against all real images.
    """
    rows: list[MetricRow] = []
    for group in groups:
        members = [
            get_group(generator)
            for generator in generators
            if generator.label == "fake" and generator.name in group.generators and generator.n
        ]
        metrics = dict.fromkeys(("tpr", "auc"), values.undefined(_NO_IMAGE))
        if members:
            hits, n = scores.count_correct(members)
            metrics = {
                "tpr": intervals.proportion(hits, n, _NO_IMAGE),
                "auc": scores.measure_ranking("auc", scores.select_against(members), None),
            }
        rows += build_rows(metrics, scores.system.name, scope=group.scope)
    return rows
