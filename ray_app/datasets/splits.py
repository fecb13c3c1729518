"""Divide the images for a training run into training, validation, and test (`make_splits`).

The config of the run states whether validation and test have their own sources, or are held
out from the training sources. Images are held out by group (the images of one prompt, scene, or
pair) and by generator. No image is read.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import filterfalse
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.datasets import config, near_duplicates
from ray_app.datasets.labels import coded, fakes, is_real_generator, texts, warn_of_spellings
from ray_app.datasets.splitter import Codes, Parts, group_keys, split
from ray_app.errors import ConfigError

Rows = npt.NDArray[np.bool_]

# The order of their ranges. A test fraction that is added later leaves validation as it is.
_VALIDATION, _TEST, _TRAIN = range(3)

# `data split` uses seeds from 0. With an equal seed, the groups of its part `train` would not be
# held out in the requested fractions.
_SEED = -1


@dataclass(frozen=True)
class Splits:
    """The labelled rows for a training run, divided into training, validation, and test.

    A validation or test split that is held out from the training sources shares no row with the
    training split. A split that is read from its own sources may share rows with the training
    split. `findings` counts shared rows under `leakage`.

    Attributes:
        test: The test rows. None if there is no test split.
        set_aside: Rows of the training sources that are in no split. The column `why` has the
            reason.
        findings: Counts as plain JSON, under three keys. `splits` has for each split the numbers
            `images`, `real`, and `fake`, the images of each of its `generators`, and `digest`, the
            SHA-256 over the ids and labels of its rows in order. `set_aside` has the number of
            `images`, and under `why` that of each reason. `leakage` is the result of
            `near_duplicates.leakage`, which counts images that two splits share.
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
    """Read the data sources of a training run, and divide their rows into splits.

    `one_class` allows splits of one class, for networks that predict the generator or the prompt.
    Raises ConfigError if a split is empty or has one class only, a held-out generator does not
    exist, or a validation row is labelled with a test split. The checkpoint is selected on
    validation, which must not have test images.
    """
    require_sources(data)
    rows = _concatenate(data.train, open_source)
    parts, reasons = _divide(rows, data)
    splits = {"train": rows.filter(pa.array((parts == _TRAIN) & (reasons == "")))}
    for part, name in ((_VALIDATION, "validation"), (_TEST, "test")):
        held_out = getattr(data, name)
        if isinstance(held_out, config.HeldOut):
            splits[name] = rows.filter(pa.array((parts == part) & (reasons == "")))
        elif held_out:
            splits[name] = _concatenate(held_out, open_source)
    _refuse_test_rows(splits["validation"], data)
    for name, table in splits.items():
        _refuse_one_class(name, table, allowed=one_class)
    all_names = (name for table in splits.values() for name in coded(table, "generator")[1])
    warn_of_spellings(filterfalse(is_real_generator, all_names), "data")
    is_aside = pa.array(reasons != "")
    set_aside = rows.filter(is_aside).append_column(
        "why", pa.array(reasons[reasons != ""], pa.string())
    )
    findings = {
        "splits": {name: summarize_split(table) for name, table in splits.items()},
        "set_aside": {"images": len(set_aside), "why": _tally(set_aside["why"])},
        "leakage": near_duplicates.leakage(splits),
    }
    return Splits(splits["train"], splits["validation"], splits.get("test"), set_aside, findings)


def require_sources(data: config.Data) -> None:
    """Raise ConfigError if training or validation has no source."""
    for name in ("train", "validation"):
        if not getattr(data, name):
            raise ConfigError(
                f"data.{name}: no source is set",
                hint="add a source; for validation, {groups: 0.1} holds out a tenth of all groups",
            )


def summarize_split(table: pa.Table) -> dict[str, Any]:
    """Return the counts and the digest of one split, for `Splits.findings`.

    The keys are `images`, `real`, `fake`, `generators` (images per generator), and `digest` (the
    SHA-256 over ids and labels).
    """
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


def _concatenate(
    sources: Sequence[config.DatasetSource], open_source: Callable[[config.DatasetSource], pa.Table]
) -> pa.Table:
    return pa.concat_tables([open_source(source) for source in sources], promote_options="default")


def _divide(rows: pa.Table, data: config.Data) -> tuple[Parts, npt.NDArray[np.object_]]:
    """Return (N,) the part of each row's group, and (N,) why the row is in no split, "" if it is.

    A group is held out if it falls into the held-out fraction, or if it has fakes and all of them
    are by held-out generators. A fake by a held-out generator is in that split only, and if a split
    names generators, its fakes are by those only.
    """
    held_out = {
        part: split_config
        for part, split_config in ((_VALIDATION, data.validation), (_TEST, data.test))
        if isinstance(split_config, config.HeldOut)
    }
    fractions = [
        held_out[part].groups if part in held_out else 0.0 for part in (_VALIDATION, _TEST)
    ]
    if sum(fractions) >= 1:
        raise ConfigError(
            f"data: the sum of validation.groups and test.groups must be below 1, got {sum(fractions):g}"
        )
    keys = group_keys(rows)
    parts = split(keys, None, [*fractions, 1 - sum(fractions)], _SEED)
    groups = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    is_fake = fakes(rows)
    is_named_by_part = {
        part: is_fake & _is_by(rows, part_held.generators) for part, part_held in held_out.items()
    }
    for part, is_named in is_named_by_part.items():
        parts[(parts > part) & _are_only(groups, is_named, is_fake)] = part
    reasons = np.full(len(rows), "", object)
    is_held = np.logical_or.reduce([np.zeros(len(rows), bool), *is_named_by_part.values()])
    for part in (_TRAIN, *held_out):
        names_generators = part in held_out and bool(held_out[part].generators)
        is_left_out = (is_fake & ~is_named_by_part[part]) if names_generators else is_held
        reasons[(parts == part) & is_left_out] = (
            "fakes of other generators than the split's"
            if names_generators
            else "fakes of held-out generators"
        )
    is_repeated = np.ones(len(rows), bool)
    is_repeated[np.unique(rows["image_id"].to_numpy(), return_index=True)[1]] = False
    reasons[is_repeated] = "the same image a second time"
    return parts, reasons


def _is_by(rows: pa.Table, generators: Sequence[str]) -> Rows:
    """Return (N,) whether a row is of one of these generators; raise ConfigError if none is."""
    codes, names = coded(rows, "generator")
    if missing := sorted(set(generators) - set(names)):
        hint = f"use one of {', '.join(sorted(names)[:20])}"
        raise ConfigError(f"data: no image is by the held-out generator '{missing[0]}'", hint=hint)
    return np.asarray(np.isin(codes, [names.index(name) for name in generators]))


def _are_only(groups: Codes, is_named: Rows, is_fake: Rows) -> Rows:
    """Return (N,) whether the row's group has fakes and all of them are named."""
    count = int(groups.max(initial=-1)) + 1
    named_counts, fake_counts = (
        np.bincount(groups[mask], minlength=count) for mask in (is_named, is_fake)
    )
    return np.asarray((named_counts > 0) & (named_counts == fake_counts))[groups]


def _refuse_test_rows(validation: pa.Table, data: config.Data) -> None:
    is_held_out = isinstance(data.validation, config.HeldOut)
    for name in pc.unique(texts(validation, "split")).to_pylist():
        if name is not None and name.lower().startswith("test"):
            raise ConfigError(
                f"data.validation reads rows of the split '{name}': a checkpoint is never selected on a test split",
                hint="set split: train in the training sources"
                if is_held_out
                else "move the source to data.test, and hold out a part of the training images: validation: {groups: 0.1}",
            )


def _refuse_one_class(name: str, table: pa.Table, *, allowed: bool) -> None:
    is_fake = fakes(table)
    if not len(table):
        raise ConfigError(
            f"data.{name}: the split has no images",
            hint="check that its sources have images, and that held-out groups or generators do not take all or none of them",
        )
    if not allowed and (is_fake.all() or not is_fake.any()):
        raise ConfigError(f"data.{name}: all {len(table)} images are {'fake' if is_fake.all() else 'real'}, but both classes are needed",
                          hint="hold out groups, too, since groups have images of both classes: {generators: […], groups: 0.1}")  # fmt: skip


def _tally(column: pa.ChunkedArray) -> dict[str, int]:
    """Count each string, the most frequent first."""
    counts = (
        (str(entry["values"]), entry["counts"]) for entry in pc.value_counts(column).to_pylist()
    )
    return dict(sorted(counts, key=lambda item: (-item[1], item[0])))
