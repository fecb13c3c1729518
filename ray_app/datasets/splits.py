"""Labelled images → training, validation and test, divided by group and by generator, never by row.
Reads no image.

`make_splits` follows a training's `Data`; `divide` follows the shares of `touchstone data split`.

A group is what must not be divided: images of one prompt, scene or pair; a row without a group is
its own. Its place follows from its name alone, so that images added later move none of an unchanged
group.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.datasets import config, near_duplicates
from ray_app.datasets.labels import coded, fakes, texts
from ray_app.errors import ConfigError

Rows = npt.NDArray[np.bool_]

_SALT = b"touchstone groups"
_KEPT, _VALIDATION, _TEST = 0, 1, 2

SPLITS = ("train", "validation", "test", "aside")
TRAIN, VALIDATION, TEST, ASIDE = range(4)
FREE = -1

Places = npt.NDArray[np.int8]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Splits:
    """Labelled tables, disjoint where they come from the same sources. `set_aside`: rows of the
    training sources that are in none, with a column `why`. `findings`, plain JSON:

    `splits`: for each its `images`, `real`, `fake`, `generators` {name: images} and `digest`, the
    SHA-256 over its rows' ids and labels in order · `set_aside`: `images` and `why` {reason:
    images} · `leakage`: see `ray_app.datasets.near_duplicates`.
    """

    train: pa.Table
    validation: pa.Table
    test: pa.Table | None
    set_aside: pa.Table
    findings: dict[str, Any]


def make_splits(
    data: config.Data,
    open_source: Callable[[config.DatasetSource], pa.Table],
    *,
    one_class: bool = False,
) -> Splits:
    """The splits of `data`; `open_source` gives a source's labelled table. `one_class`: a split may
    hold fakes alone, or reals.

    Raises ConfigError where a split has no source, is empty, or of one class; where held-out
    generators are not there; where validation, which chooses the checkpoint, would read rows of a
    test split.
    """
    require_sources(data)
    given = _joined(data.train, open_source)
    place, why = _divided(given, data)
    splits = {"train": given.filter(pa.array((place == _KEPT) & (why == "")))}
    for number, name in ((_VALIDATION, "validation"), (_TEST, "test")):
        wanted = getattr(data, name)
        if isinstance(wanted, config.HeldOut):
            splits[name] = given.filter(pa.array((place == number) & (why == "")))
        elif wanted:
            splits[name] = _joined(wanted, open_source)
    _refuse_test_rows(splits["validation"], data)
    for name, table in splits.items():
        _refuse_one_class(name, table, allowed=one_class)
    is_aside = pa.array(why != "")
    set_aside = given.filter(is_aside).append_column("why", pa.array(why[why != ""], pa.string()))
    findings = {
        "splits": {name: counted(table) for name, table in splits.items()},
        "set_aside": {"images": len(set_aside), "why": _tally(set_aside["why"])},
        "leakage": near_duplicates.leakage(splits),
    }
    return Splits(splits["train"], splits["validation"], splits.get("test"), set_aside, findings)


def require_sources(data: config.Data) -> None:
    """Raises ConfigError where training or validation has no source."""
    for name in ("train", "validation"):
        if not getattr(data, name):
            raise ConfigError(
                f"data.{name}: no source is given",
                hint="validation: {groups: 0.1} holds out a tenth of all groups",
            )


def divide(
    rows: pa.Table,
    groups: near_duplicates.Codes,
    count: int,
    pins: Places,
    *,
    shares: Sequence[float],
    held_out: Sequence[str] = (),
    even: bool = False,
    seed: int = 0,
) -> Places:
    """(N,) the place of every row among SPLITS. `pins` (N,): rows that stay where they are, FREE =
    the others.

    `shares`: of train, validation and test, together 1. `held_out`: generators whose fakes are in
    test alone. `even`: every label and generator is divided evenly, as far as groups allow; then
    added images may move others.

    A group with pinned rows goes where the first of them are, train before validation before test:
    what was learnt from is measured on never again. A group whose fakes are all by held-out
    generators is in test; their other fakes are there or aside.
    """
    is_held = held_rows(rows, held_out)
    is_fake = fakes(rows)
    numbers = group_numbers(rows, groups, count, seed)
    numbers = _evened(rows, groups, numbers) if even else numbers
    places = np.searchsorted(np.cumsum(shares)[:2], numbers, side="right").astype(np.int8)
    places[_only(groups, is_held, is_fake, count)] = TEST
    pinned = np.full(count, ASIDE, np.int8)
    np.minimum.at(pinned, groups[pins >= 0], pins[pins >= 0])
    places = np.where(pinned < ASIDE, pinned, places)
    found: Places = np.where(pins >= 0, pins, places[groups]).astype(np.int8)
    found[is_held & (found != TEST)] = ASIDE
    return found


def chosen_generators(rows: pa.Table, requested: Sequence[str], seed: int) -> tuple[str, ...]:
    """The generators to hold out: names, or a share 0 < s < 1 of all, at least one. Raises
    ConfigError for a name that is not there.
    """
    codes, names = coded(rows, "generator")
    there = sorted(names[code] for code in np.unique(codes[fakes(rows)]).tolist() if code >= 0)
    found: set[str] = set()
    for one in requested:
        if (share := _share(one)) is not None and one not in there:
            ranked = sorted(there, key=lambda name: _number(name.encode(), seed))
            found |= {name for name in ranked if _number(name.encode(), seed) < share} or set(
                ranked[:1]
            )
        elif one in there:
            found.add(one)
        else:
            raise ConfigError(
                f"no fake is by the held-out generator '{one}'",
                hint=f"there are {', '.join(there[:20])}",
            )
    if found and len(found) == len(there):
        raise ConfigError(
            "all generators are held out, so that nothing is left to learn from",
            hint=f"there are {', '.join(there[:20])}",
        )
    return tuple(sorted(found))


def counted(table: pa.Table) -> dict[str, Any]:
    """What `Splits.findings` holds of one split."""
    is_fake = fakes(table)
    digest = hashlib.sha256(
        np.ascontiguousarray(table["image_id"].to_numpy(), "<i8").tobytes() + is_fake.tobytes()
    )
    return {
        "images": len(table),
        "real": int((~is_fake).sum()),
        "fake": int(is_fake.sum()),
        "generators": _tally(texts(table, "generator")),
        "digest": digest.hexdigest(),
    }


def held_rows(rows: pa.Table, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(N,) fakes by these generators."""
    codes, there = coded(rows, "generator")
    return np.asarray(
        np.isin(codes, [there.index(name) for name in names if name in there]) & fakes(rows)
    )


def group_numbers(rows: pa.Table, groups: near_duplicates.Codes, count: int, seed: int) -> Numbers:
    """(count,) one number 0 … 1 for each group: of the least of its rows' words, a row's word being
    of its `group`, or else of its id.
    """
    codes, names = coded(rows, "group")
    words = rows["image_id"].to_numpy().view(np.uint64).copy()
    named = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    words[codes >= 0] = np.frombuffer(b"".join(named), ">u8").astype(np.uint64)[codes[codes >= 0]]
    least = np.full(count, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, groups, words)
    return np.array(
        [
            _number(word, seed)
            for word in map(bytes, least.astype(">u8").reshape(-1, 1).view(np.uint8))
        ]
    )


def strata_of(rows: pa.Table) -> tuple[near_duplicates.Codes, list[tuple[str, str]]]:
    """(N,) the stratum of every row, and each one's label and generator, real before fake."""
    codes, names = coded(rows, "generator")
    keys = fakes(rows) * (len(names) + 1) + codes + 1
    found, strata = np.unique(keys, return_inverse=True)
    kinds = [
        ("fake" if key > len(names) else "real", (["", *names])[int(key) % (len(names) + 1)])
        for key in found
    ]
    return strata.astype(np.int64), kinds


def _joined(
    sources: Sequence[config.DatasetSource], open_source: Callable[[config.DatasetSource], pa.Table]
) -> pa.Table:
    return pa.concat_tables([open_source(source) for source in sources], promote_options="default")


def _divided(
    rows: pa.Table, data: config.Data
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.object_]]:
    """(N,) which split a row's group belongs to, and (N,) why the row is in none, "" where it is.

    A group is held out if its number is within the share, or if it has fakes and all are of
    held-out generators. A fake of a held-out generator is in that split alone, and where a split
    names generators, its fakes are of those alone.
    """
    groups, numbers = _groups(rows)
    is_fake = fakes(rows)
    wanted = {
        number: held
        for number, held in ((_VALIDATION, data.validation), (_TEST, data.test))
        if isinstance(held, config.HeldOut)
    }
    named = {number: is_fake & _is_by(rows, held.generators) for number, held in wanted.items()}
    place, start = np.zeros(len(numbers), np.int8), 0.0
    for number, held in wanted.items():
        within = (numbers >= start) & (numbers < start + held.groups)
        place[(place == _KEPT) & (within | _only(groups, named[number], is_fake, len(numbers)))] = (
            number
        )
        start += held.groups
    if start >= 1:
        raise ConfigError(
            f"data: {start:g} of all groups are held out, so nothing is left to train on"
        )
    place = place[groups]
    why = np.full(len(rows), "", object)
    is_held = np.logical_or.reduce([np.zeros(len(rows), bool), *named.values()])
    for number in (_KEPT, *wanted):
        names_some = number in wanted and bool(wanted[number].generators)
        out = (is_fake & ~named[number]) if names_some else is_held
        why[(place == number) & out] = (
            "fakes of other generators than the split's"
            if names_some
            else "fakes of held-out generators"
        )
    repeated = np.ones(len(rows), bool)
    repeated[np.unique(rows["image_id"].to_numpy(), return_index=True)[1]] = False
    why[repeated] = "the same image a second time"
    return place, why


def _is_by(rows: pa.Table, wanted: Sequence[str]) -> Rows:
    """(N,) whether a row is of one of these generators. Raises ConfigError for one that no row is
    of.
    """
    codes, names = coded(rows, "generator")
    if missing := sorted(set(wanted) - set(names)):
        hint = f"there are {', '.join(sorted(names)[:20])}"
        raise ConfigError(f"data: no image is by the held-out generator '{missing[0]}'", hint=hint)
    return np.asarray(np.isin(codes, [names.index(name) for name in wanted]))


def _groups(rows: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(N,) every row's group, and (groups,) the number of each, spread evenly over 0 … 1."""
    codes, names = coded(rows, "group")
    is_alone = codes < 0
    groups = np.where(is_alone, len(names) + np.cumsum(is_alone) - 1, codes).astype(np.int64)
    words = b"".join(
        hashlib.blake2b(name.encode(), digest_size=8, key=_SALT).digest() for name in names
    )
    own = rows["image_id"].to_numpy()[is_alone].view(np.uint64)  # the head of a SHA-256 already
    return groups, np.concatenate([np.frombuffer(words, ">u8").astype(np.uint64), own]) / 2.0**64


def _only(groups: npt.NDArray[np.int64], these: Rows, is_fake: Rows, count: int) -> Rows:
    """(groups,) whether a group has fakes, and all of them are among these."""
    ours, all_of_them = (np.bincount(groups[which], minlength=count) for which in (these, is_fake))
    return np.asarray((ours > 0) & (ours == all_of_them))


def _refuse_test_rows(validation: pa.Table, data: config.Data) -> None:
    is_held_out = isinstance(data.validation, config.HeldOut)
    for name in pc.unique(texts(validation, "split")).to_pylist():
        if name is not None and name.lower().startswith("test"):
            raise ConfigError(
                f"data.validation reads rows of the split '{name}': a checkpoint is never selected on a test split",
                hint="say of the training sources which split is for training: split: train"
                if is_held_out
                else "give them as data.test, and hold out a part of the training images: validation: {groups: 0.1}",
            )


def _refuse_one_class(name: str, table: pa.Table, *, allowed: bool) -> None:
    is_fake = fakes(table)
    if not len(table):
        raise ConfigError(f"data.{name}: no images are left for it")
    if not allowed and (is_fake.all() or not is_fake.any()):
        raise ConfigError(f"data.{name}: all {len(table)} images are {'fake' if is_fake.all() else 'real'}",
                          hint="reals come into a held-out split by groups: {generators: […], groups: 0.1}")  # fmt: skip


def _tally(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each text is there, the most frequent first."""
    counts = ((str(one["values"]), one["counts"]) for one in pc.value_counts(column).to_pylist())
    return dict(sorted(counts, key=lambda item: (-item[1], item[0])))


def _evened(rows: pa.Table, groups: near_duplicates.Codes, numbers: Numbers) -> Numbers:
    """(groups,) in place of its number, the share of its stratum's images before a group; a group
    is of the rarest stratum it has.
    """
    strata, kinds = strata_of(rows)
    sizes = np.bincount(strata, minlength=len(kinds))
    rank = np.empty(len(kinds), np.int64)
    rank[np.argsort(sizes, kind="stable")] = np.arange(len(kinds))
    rarest = np.full(len(numbers), len(kinds), np.int64)
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
    return (
        int.from_bytes(
            hashlib.blake2b(name, digest_size=8, key=f"touchstone split {seed}".encode()).digest()
        )
        / 2.0**64
    )
