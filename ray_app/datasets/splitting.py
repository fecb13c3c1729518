"""Sources → training, validation and test images, divided by group and by generator, never by row. Reads no image.

A group is what must not be divided: images of one prompt, scene or pair; a row without a group is its own. Whether a group is held out
follows from its name alone, so it stays where it is when images are added.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.datasets.columns import coded, fakes, texts
from ray_app.datasets.config import Data, HeldOut, Source
from ray_app.datasets.leakage import leakage
from ray_app.errors import ConfigError

Rows = npt.NDArray[np.bool_]

_SALT = b"touchstone groups"
_KEPT, _VALIDATION, _TEST = 0, 1, 2


@dataclass(frozen=True)
class Splits:
    """Labelled tables, disjoint where they come from the same sources. `set_aside`: rows of the training sources that are in none, with a
    column `why`. `findings`, plain JSON:

    `splits`: for each its `images`, `real`, `fake`, `generators` {name: images} and `digest`, the SHA-256 over its rows' ids and labels in
    order · `set_aside`: `images` and `why` {reason: images} · `leakage`: see `ray_app.datasets.leakage`.
    """

    train: pa.Table
    validation: pa.Table
    test: pa.Table | None
    set_aside: pa.Table
    findings: dict[str, Any]


def make_splits(data: Data, open_source: Callable[[Source], pa.Table], *, one_class: bool = False) -> Splits:
    """The splits of `data`; `open_source` gives a source's labelled table. `one_class`: a split may hold fakes alone, or reals.

    Raises ConfigError where a split is not told, empty, or of one class; where held-out generators are not there; where validation, which
    chooses the checkpoint, would look at rows of a test split.
    """
    require_sources(data)
    given = _joined(data.train, open_source)
    place, why = _divided(given, data)
    splits = {"train": given.filter(pa.array((place == _KEPT) & (why == "")))}
    for number, name in ((_VALIDATION, "validation"), (_TEST, "test")):
        wanted = getattr(data, name)
        if isinstance(wanted, HeldOut):
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
        "leakage": leakage(splits),
    }
    return Splits(splits["train"], splits["validation"], splits.get("test"), set_aside, findings)


def require_sources(data: Data) -> None:
    """Raises ConfigError where it is not said what to train on, or what to validate with."""
    for name in ("train", "validation"):
        if not getattr(data, name):
            raise ConfigError(f"data.{name}: no source is given", hint="validation: {groups: 0.1} holds out a tenth of all groups")


def _joined(sources: Sequence[Source], open_source: Callable[[Source], pa.Table]) -> pa.Table:
    return pa.concat_tables([open_source(source) for source in sources], promote_options="default")


def _divided(rows: pa.Table, data: Data) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.object_]]:
    """(N,) which split a row's group belongs to, and (N,) why the row is in none, "" where it is.

    A group is held out if its number is within the share, or if it has fakes and all are of held-out generators. A fake of a held-out
    generator is in that split alone, and where a split names generators, its fakes are of those alone.
    """
    groups, numbers = _groups(rows)
    is_fake = fakes(rows)
    wanted = {number: held for number, held in ((_VALIDATION, data.validation), (_TEST, data.test)) if isinstance(held, HeldOut)}
    named = {number: is_fake & _is_by(rows, held.generators) for number, held in wanted.items()}
    place, start = np.zeros(len(numbers), np.int8), 0.0
    for number, held in wanted.items():
        within = (numbers >= start) & (numbers < start + held.groups)
        place[(place == _KEPT) & (within | _only(groups, named[number], is_fake, len(numbers)))] = number
        start += held.groups
    if start >= 1:
        raise ConfigError(f"data: {start:g} of all groups are held out, so nothing is left to train on")
    place = place[groups]
    why = np.full(len(rows), "", object)
    is_held = np.logical_or.reduce([np.zeros(len(rows), bool), *named.values()])
    for number in (_KEPT, *wanted):
        names_some = number in wanted and bool(wanted[number].generators)
        out = (is_fake & ~named[number]) if names_some else is_held
        why[(place == number) & out] = "fakes of other generators than the split's" if names_some else "fakes of held-out generators"
    repeated = np.ones(len(rows), bool)
    repeated[np.unique(rows["image_id"].to_numpy(), return_index=True)[1]] = False
    why[repeated] = "the same image a second time"
    return place, why


def _is_by(rows: pa.Table, wanted: Sequence[str]) -> Rows:
    """(N,) whether a row is of one of these generators. Raises ConfigError for one that no row is of."""
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
    words = b"".join(hashlib.blake2b(name.encode(), digest_size=8, key=_SALT).digest() for name in names)
    own = rows["image_id"].to_numpy()[is_alone].view(np.uint64)  # the head of a SHA-256 already
    return groups, np.concatenate([np.frombuffer(words, ">u8").astype(np.uint64), own]) / 2.0**64


def _only(groups: npt.NDArray[np.int64], these: Rows, is_fake: Rows, count: int) -> Rows:
    """(groups,) whether a group has fakes, and all of them are among these."""
    ours, all_of_them = (np.bincount(groups[which], minlength=count) for which in (these, is_fake))
    return np.asarray((ours > 0) & (ours == all_of_them))


def _refuse_test_rows(validation: pa.Table, data: Data) -> None:
    is_held_out = isinstance(data.validation, HeldOut)
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


def counted(table: pa.Table) -> dict[str, Any]:
    """What `Splits.findings` says of one split."""
    is_fake = fakes(table)
    digest = hashlib.sha256(np.ascontiguousarray(table["image_id"].to_numpy(), "<i8").tobytes() + is_fake.tobytes())
    return {
        "images": len(table),
        "real": int((~is_fake).sum()),
        "fake": int(is_fake.sum()),
        "generators": _tally(texts(table, "generator")),
        "digest": digest.hexdigest(),
    }


def _tally(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each text is there, the most frequent first."""
    counts = ((str(one["values"]), one["counts"]) for one in pc.value_counts(column).to_pylist())
    return dict(sorted(counts, key=lambda item: (-item[1], item[0])))
