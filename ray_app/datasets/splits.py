"""Training, validation, and test images of a recipe, divided by group and by generator
(`make_splits`). Reads no image.
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
from ray_app.datasets.splitter import Codes, Parts, group_keys, split
from ray_app.errors import ConfigError

Rows = npt.NDArray[np.bool_]

# In the order of their ranges: a share of test that is added later leaves validation as it is.
_VALIDATION, _TEST, _TRAIN = range(3)

# `data split` takes seeds from 0 upwards. With one of these, the groups of its part `train` would
# not be held out in the requested shares.
_SEED = -1


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
    rows = _joined(data.train, open_source)
    parts, why = _divide(rows, data)
    splits = {"train": rows.filter(pa.array((parts == _TRAIN) & (why == "")))}
    for part, name in ((_VALIDATION, "validation"), (_TEST, "test")):
        held_out = getattr(data, name)
        if isinstance(held_out, config.HeldOut):
            splits[name] = rows.filter(pa.array((parts == part) & (why == "")))
        elif held_out:
            splits[name] = _joined(held_out, open_source)
    _refuse_test_rows(splits["validation"], data)
    for name, table in splits.items():
        _refuse_one_class(name, table, allowed=one_class)
    is_aside = pa.array(why != "")
    set_aside = rows.filter(is_aside).append_column("why", pa.array(why[why != ""], pa.string()))
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


def _joined(
    sources: Sequence[config.DatasetSource], open_source: Callable[[config.DatasetSource], pa.Table]
) -> pa.Table:
    return pa.concat_tables([open_source(source) for source in sources], promote_options="default")


def _divide(rows: pa.Table, data: config.Data) -> tuple[Parts, npt.NDArray[np.object_]]:
    """Return (N,) the part of each row's group, and (N,) why the row is in no split, "" if it is.

    A group is held out if it falls into the held-out share, or if it has fakes and all of them are
    by held-out generators. A fake by a held-out generator is in that split alone, and if a split
    names generators, its fakes are by those alone.
    """
    held_out = {
        part: wanted
        for part, wanted in ((_VALIDATION, data.validation), (_TEST, data.test))
        if isinstance(wanted, config.HeldOut)
    }
    shares = [held_out[part].groups if part in held_out else 0.0 for part in (_VALIDATION, _TEST)]
    if sum(shares) >= 1:
        raise ConfigError(
            f"data: {sum(shares):g} of all groups are held out, so nothing is left to train on"
        )
    keys = group_keys(rows)
    parts = split(keys, None, [*shares, 1 - sum(shares)], _SEED)
    groups = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    is_fake = fakes(rows)
    named = {part: is_fake & _is_by(rows, held.generators) for part, held in held_out.items()}
    for part, is_named in named.items():
        parts[(parts > part) & _are_only(groups, is_named, is_fake)] = part
    why = np.full(len(rows), "", object)
    is_held = np.logical_or.reduce([np.zeros(len(rows), bool), *named.values()])
    for part in (_TRAIN, *held_out):
        names_generators = part in held_out and bool(held_out[part].generators)
        is_out = (is_fake & ~named[part]) if names_generators else is_held
        why[(parts == part) & is_out] = (
            "fakes of other generators than the split's"
            if names_generators
            else "fakes of held-out generators"
        )
    is_repeated = np.ones(len(rows), bool)
    is_repeated[np.unique(rows["image_id"].to_numpy(), return_index=True)[1]] = False
    why[is_repeated] = "the same image a second time"
    return parts, why


def _is_by(rows: pa.Table, wanted: Sequence[str]) -> Rows:
    """(N,) whether a row is of one of these generators. Raises ConfigError for one that no row is
    of.
    """
    codes, names = coded(rows, "generator")
    if missing := sorted(set(wanted) - set(names)):
        hint = f"there are {', '.join(sorted(names)[:20])}"
        raise ConfigError(f"data: no image is by the held-out generator '{missing[0]}'", hint=hint)
    return np.asarray(np.isin(codes, [names.index(name) for name in wanted]))


def _are_only(groups: Codes, is_named: Rows, is_fake: Rows) -> Rows:
    """Return (N,) whether the row's group has fakes and all of them are named."""
    count = int(groups.max(initial=-1)) + 1
    named, all_fakes = (
        np.bincount(groups[which], minlength=count) for which in (is_named, is_fake)
    )
    return np.asarray((named > 0) & (named == all_fakes))[groups]


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
