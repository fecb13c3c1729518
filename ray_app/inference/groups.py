"""Divide detectors into groups that each fit into the memory of a process (`group_detectors`).

The sizes of the detectors come from their cards (YAML descriptions). Importing this module does not
import torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ray_app.inference.spec import PROCESS_BYTES, ResourceEstimate, ScoringSpec

Group = tuple[str, ...]

# Prepared images that a process keeps while groups of detectors take turns on them. Fewer images
# would take less memory, and more loads for each image.
KEPT_BYTES = 2**29


@dataclass(frozen=True)
class DetectorGroups:
    """Groups of detectors. A process has one group at a time in memory (see `GroupScorer`).

    Attributes:
        groups: The names of the detectors in each group. No group has detectors of both stages of a
            cascade. If the ensemble has a describer, which guesses prompts, the last group has only
            its name.
        process_bytes: Maximum memory of a process in bytes, including `kept_bytes`.
        kept_bytes: Memory in bytes for decoded images, which are kept until all groups have scored
            them.
        weights_bytes: Size of the weights of all groups together in bytes.
    """

    groups: tuple[Group, ...]
    process_bytes: int
    kept_bytes: int
    weights_bytes: int


def group_detectors(spec: ScoringSpec, limit_bytes: float) -> DetectorGroups | None:
    """Divide the detectors into groups, each of which fits into a process of `limit_bytes`.

    Detectors that share a backbone in one precision stay together. The largest detectors are
    assigned first. A group that cannot be made smaller may exceed the limit.

    Returns:
        The groups. None if all detectors together need no more than `limit_bytes`, so that groups
        are not needed.
    """
    if estimate_total_bytes(spec) <= limit_bytes:
        return None
    groups = [
        group
        for units in _list_units(spec)
        for group in _pack_units(spec, units, limit_bytes - KEPT_BYTES)
    ]
    return DetectorGroups(
        tuple(groups),
        process_bytes=max(group_bytes(spec, group) for group in groups) + KEPT_BYTES,
        kept_bytes=KEPT_BYTES,
        weights_bytes=sum(_sum_weights_bytes(spec, group) for group in groups),
    )


def estimate_total_bytes(spec: ScoringSpec) -> int:
    """Return the maximum memory in bytes that all detectors of a spec need at the same time.

    If the cards of some detectors request their own processes, the memory of these processes is
    included.
    """
    return ResourceEstimate.from_spec(spec).process_bytes + (len(spec.pools) - 1) * PROCESS_BYTES


def largest_unit(spec: ScoringSpec) -> Group:
    """Return the names of the detectors that must be loaded together and need the most memory.

    Detectors that share a backbone are loaded together. Any other detector, or a describer, can be
    loaded alone. A process in which groups take turns needs at least the memory of this set, and
    `KEPT_BYTES` for images.
    """
    return max(
        (unit for units in _list_units(spec) for unit in units),
        key=lambda unit: group_bytes(spec, unit),
    )


def group_bytes(spec: ScoringSpec, group: Group) -> int:
    """Return the maximum memory in bytes of a process that holds one group of detectors."""
    if spec.describer is not None and group == (spec.describer.name,):
        return PROCESS_BYTES + 2 * _sum_weights_bytes(spec, group)
    return ResourceEstimate.from_spec(spec.select_detectors(group, spec.views)).process_bytes


def _sum_weights_bytes(spec: ScoringSpec, group: Group) -> int:
    sizes = {name: card.size.parameters for name, card in spec.cards.items() if card.size}
    if spec.describer is not None:
        sizes[spec.describer.name] = spec.describer.parameters or 0
    return sum(4 * sizes.get(name, 0) for name in group)


def _list_units(spec: ScoringSpec) -> list[list[Group]]:
    """Return, by stage, the detectors that must stay in one group, the largest first.

    The describer is in a stage of its own.
    """
    stages = []
    for stage in spec.stages:
        units: dict[Group, Group] = {}
        for name in stage.detectors:
            backbone = spec.cards[name].backbone
            key = (name,) if backbone is None else (backbone.name, spec.precision[name])
            units[key] = (*units.get(key, ()), name)
        stages.append(sorted(units.values(), key=lambda unit: -group_bytes(spec, unit)))
    return stages if spec.describer is None else [*stages, [(spec.describer.name,)]]


def _pack_units(spec: ScoringSpec, units: Iterable[Group], limit_bytes: float) -> list[Group]:
    """Put each unit into the first group that has enough memory left for it."""
    groups: list[Group] = []
    for unit in units:
        for index, group in enumerate(groups):
            joined = tuple(name for name in spec.cards if name in {*group, *unit})
            if group_bytes(spec, joined) <= limit_bytes:
                groups[index] = joined
                break
        else:
            groups.append(unit)
    return groups
