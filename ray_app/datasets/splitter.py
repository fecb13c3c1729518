"""Divide labelled images into parts, such as train and test, without dividing a group (`split`).

A group is images that must be in one part, such as those of one prompt or equal images. `split`
uses a hash of each group and pandas. scikit-learn's splitters would move unchanged groups to other
parts when data are added, and `StratifiedGroupKFold` takes minutes for 100,000 groups.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.datasets.labels import coded

Keys = npt.NDArray[np.uint64]
Codes = npt.NDArray[np.int64]
Positions = npt.NDArray[np.float64]
Parts = npt.NDArray[np.int8]


def split(groups: Keys, strata: Codes | None, shares: Sequence[float], seed: int = 0) -> Parts:
    """Divide rows into parts, such as train and test, and return the part of each row.

    All rows of a group are in one part. Without strata, the part of a group depends only on its
    key, the fractions, and the seed, so an unchanged group keeps its part when data are added. With
    strata, every stratum is divided in these fractions as evenly as its groups allow, and added
    data may move groups.

    Args:
        groups: (N,) key of each row's group, as `group_keys` returns it.
        strata: (N,) number of each row's stratum, such as its label and generator, or None.
        shares: Fraction of each part. They sum to 1.
        seed: Seed of the division.

    Returns:
        (N,) index of each row's part in `shares`.
    """
    keys, codes = np.unique(groups, return_inverse=True)
    positions = np.array([draw(key.to_bytes(8), seed) for key in keys.tolist()])
    if strata is not None:
        positions = _spread_evenly(codes, strata, positions)
    parts = np.searchsorted(np.cumsum(shares)[:-1], positions, side="right")
    return parts[codes].astype(np.int8)


def group_keys(rows: pa.Table, groups: Codes | None = None) -> Keys:
    """Return a key for each row's group, by which `split` chooses the part of the group.

    The key of a group does not depend on other groups, so an unchanged group keeps its key when
    data are added.

    Args:
        rows: Rows of an index, with `image_id` and `input`.
        groups: (N,) number of each row's group. None uses the label `group`: rows with equal values
            are a group, and a row without a value is a group of its own.

    Returns:
        (N,) keys, equal for all rows of a group. A key is the lowest of the rows' own keys, which
        are the hash of the label `group`, or the `image_id` of a row without this label.
    """
    codes, names = coded(rows, "group")
    keys: Keys = rows["image_id"].to_numpy().view(np.uint64).copy()
    hashes = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    has_name = codes >= 0
    keys[has_name] = np.frombuffer(b"".join(hashes), ">u8").astype(np.uint64)[codes[has_name]]
    if groups is None:
        return keys
    lowest = np.full(int(groups.max(initial=-1)) + 1, np.iinfo(np.uint64).max)
    np.minimum.at(lowest, groups, keys)
    return lowest[groups]


def draw(name: bytes, seed: int) -> float:
    """Return a pseudo-random number from 0 to 1 that depends only on a name and a seed.

    Use it to choose names at random, so that each choice is independent of other names.
    """
    key = f"touchstone split {seed}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8, key=key).digest()) / 2.0**64


def _spread_evenly(codes: npt.NDArray[np.intp], strata: Codes, positions: Positions) -> Positions:
    """Replace the position of each group, so that every stratum is divided evenly.

    The new position is the fraction of its stratum's images before the middle of the group. A group
    belongs to the rarest stratum of its images.
    """
    import pandas as pd

    by_size = np.argsort(np.bincount(strata), kind="stable")
    rarity = np.argsort(by_size)[strata]
    groups = pd.DataFrame({"group": codes, "rarity": rarity}).groupby("group")["rarity"]
    table = pd.DataFrame({"stratum": groups.min(), "images": groups.size(), "position": positions})
    ordered = table.sort_values("position", kind="stable")
    images = ordered.groupby("stratum")["images"]
    middles = (images.cumsum() - ordered["images"] / 2) / images.transform("sum")
    return np.asarray(middles.sort_index(), np.float64)
