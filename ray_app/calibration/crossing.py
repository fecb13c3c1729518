"""Which two images in different parts hang together, and how: what a refused division says. Knows one group at a time."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import NoReturn

import numpy as np

from ray_app.calibration.grouping import generators_of
from ray_app.calibration.labelled import Labelled, Places
from ray_app.datasets.leakage import NEAR_BITS
from ray_app.errors import ConfigError

_COMPARED = 2_000  # images of each part whose looks are compared


def refuse_crossings(labelled: Labelled, groups: Places, parts: Places, crossing: Places, names: Sequence[str]) -> NoReturn:
    """Raises ConfigError that names two images of the first of these groups, in different parts, and what they have in common."""
    members = np.flatnonzero(groups == crossing[0])
    one, other, why = _tied(labelled.take(members), parts[members])
    first, second = (_named(labelled, int(members[place]), names[parts[members[place]]]) for place in (one, other))
    more = f"; {len(crossing):,} groups of images are divided so" if len(crossing) > 1 else ""
    raise ConfigError(
        f"labels: {first} and {second} {why}{more}",
        hint="--regroup moves each such group whole to the part that most of its images are in",
    )


def _named(labelled: Labelled, place: int, part: str) -> str:
    return f"image {labelled.image_id[place]} (sha256 {labelled.sha256[place][:12]}…, part {part})"


def _tied(group: Labelled, parts: Places) -> tuple[int, int, str]:
    """Two places of a group in different parts, and what ties them."""
    shared: list[tuple[Sequence[str | None], Callable[[str], str]]] = [
        (group.sha256, lambda _: "are the same file"),
        (group.source, lambda name: f"share the source '{name}'"),
        (generators_of(group), lambda name: f"are both by {name}"),
    ]
    for column, words in shared:
        seen: dict[str, int] = {}
        for place, key in enumerate(column):
            if key is not None and parts[seen.setdefault(key, place)] != parts[place]:
                return seen[key], place, words(key)
    return _alike(group, parts)


def _alike(group: Labelled, parts: Places) -> tuple[int, int, str]:
    """Two in different parts that look alike; where none of those compared do, two that hang together by way of others."""
    hashed = [place for place, phash in enumerate(group.phash) if phash is not None]
    for part in np.unique(parts):
        mine, others = (list(islice((p for p in hashed if (parts[p] == part) == same), _COMPARED)) for same in (True, False))
        hashes = [np.array([int(str(group.phash[place]), 16) for place in places], np.uint64) for places in (mine, others)]
        near = np.argwhere(np.bitwise_count(hashes[0][:, None] ^ hashes[1][None, :]) <= NEAR_BITS)
        if len(near):
            return mine[near[0, 0]], others[near[0, 1]], "look alike"
    return 0, int(np.flatnonzero(parts != parts[0])[0]), "hang together by way of others that look alike"
