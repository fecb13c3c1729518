"""Groups of images → splits: by a number that follows from a group's name and the seed, or evenly. Knows groups; reads no image.

A group's number does not depend on other groups, so images that are added later move none of an unchanged group.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.datasets.bonds import Codes
from ray_app.datasets.columns import coded, fakes
from ray_app.errors import ConfigError

SPLITS = ("train", "validation", "test", "aside")
TRAIN, VALIDATION, TEST, ASIDE = range(4)
FREE = -1

Places = npt.NDArray[np.int8]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Wanted:
    """`shares`: of train, validation and test, together 1. `held_out`: generators whose fakes are in test alone. `even`: every label and
    generator is divided evenly, as far as groups allow; then added images may move others.
    """

    shares: tuple[float, float, float]
    held_out: tuple[str, ...] = ()
    even: bool = False
    seed: int = 0


def divide(rows: pa.Table, groups: Codes, count: int, wanted: Wanted, pins: Places) -> Places:
    """(N,) the place of every row among SPLITS. `pins` (N,): rows that stay where they are, FREE = the others.

    A group with pinned rows goes where the first of them are, train before validation before test: what was learnt from is measured on
    never again. A group whose fakes are all by held-out generators is in test; their other fakes are there or aside.
    """
    is_held = held_rows(rows, wanted.held_out)
    is_fake = fakes(rows)
    numbers = group_numbers(rows, groups, count, wanted.seed)
    bounds = np.cumsum(wanted.shares)[:2]
    numbers = _evened(rows, groups, numbers) if wanted.even else numbers
    places = np.searchsorted(bounds, numbers, side="right").astype(np.int8)
    ours, all_of_them = (np.bincount(groups[which], minlength=count) for which in (is_held, is_fake))
    places[(ours > 0) & (ours == all_of_them)] = TEST
    pinned = np.full(count, ASIDE, np.int8)
    np.minimum.at(pinned, groups[pins >= 0], pins[pins >= 0])
    places = np.where(pinned < ASIDE, pinned, places)
    found: Places = np.where(pins >= 0, pins, places[groups]).astype(np.int8)
    found[is_held & (found != TEST)] = ASIDE
    return found


def chosen_generators(rows: pa.Table, asked: Sequence[str], seed: int) -> tuple[str, ...]:
    """The generators to hold out: names, or a share 0 < s < 1 of all, at least one. Raises ConfigError for a name that is not there."""
    codes, names = coded(rows, "generator")
    there = sorted(names[code] for code in np.unique(codes[fakes(rows)]).tolist() if code >= 0)
    found: set[str] = set()
    for one in asked:
        if (share := _share(one)) is not None and one not in there:
            ranked = sorted(there, key=lambda name: _number(name.encode(), seed))
            found |= {name for name in ranked if _number(name.encode(), seed) < share} or set(ranked[:1])
        elif one in there:
            found.add(one)
        else:
            raise ConfigError(f"no fake is by the held-out generator '{one}'", hint=f"there are {', '.join(there[:20])}")
    if found and len(found) == len(there):
        raise ConfigError("all generators are held out, so that nothing is left to learn from", hint=f"there are {', '.join(there[:20])}")
    return tuple(sorted(found))


def held_rows(rows: pa.Table, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(N,) fakes by these generators."""
    codes, there = coded(rows, "generator")
    return np.asarray(np.isin(codes, [there.index(name) for name in names if name in there]) & fakes(rows))


def group_numbers(rows: pa.Table, groups: Codes, count: int, seed: int) -> Numbers:
    """(count,) one number 0 … 1 for each group: of the least of its rows' words, a row's word being of its `group`, or else of its id."""
    codes, names = coded(rows, "group")
    words = rows["image_id"].to_numpy().view(np.uint64).copy()
    named = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    words[codes >= 0] = np.frombuffer(b"".join(named), ">u8").astype(np.uint64)[codes[codes >= 0]]
    least = np.full(count, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, groups, words)
    return np.array([_number(word, seed) for word in map(bytes, least.astype(">u8").reshape(-1, 1).view(np.uint8))])


def strata_of(rows: pa.Table) -> tuple[Codes, list[tuple[str, str]]]:
    """(N,) the stratum of every row, and each one's label and generator, real before fake."""
    codes, names = coded(rows, "generator")
    keys = fakes(rows) * (len(names) + 1) + codes + 1
    found, strata = np.unique(keys, return_inverse=True)
    told = [("fake" if key > len(names) else "real", (["", *names])[int(key) % (len(names) + 1)]) for key in found]
    return strata.astype(np.int64), told


def _evened(rows: pa.Table, groups: Codes, numbers: Numbers) -> Numbers:
    """(groups,) in place of its number, the share of its stratum's images before a group; a group is of the rarest stratum it has."""
    strata, told = strata_of(rows)
    sizes = np.bincount(strata, minlength=len(told))
    rank = np.empty(len(told), np.int64)
    rank[np.argsort(sizes, kind="stable")] = np.arange(len(told))
    rarest = np.full(len(numbers), len(told), np.int64)
    np.minimum.at(rarest, groups, rank[strata])
    images = np.bincount(groups, minlength=len(numbers))
    order = np.lexsort((numbers, rarest))
    upto = np.cumsum(images[order])
    starts = np.concatenate([[0], np.flatnonzero(np.diff(rarest[order])) + 1])
    lengths = np.diff(np.append(starts, len(order)))
    before = np.repeat(np.concatenate([[0], upto])[starts], lengths)
    whole = np.repeat(np.add.reduceat(images[order], starts), lengths)
    evened = np.empty(len(numbers))
    evened[order] = (upto - images[order] / 2 - before) / whole
    return evened


def _share(text: str) -> float | None:
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 < share < 1 else None


def _number(name: bytes, seed: int) -> float:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8, key=f"touchstone split {seed}".encode()).digest()) / 2.0**64
