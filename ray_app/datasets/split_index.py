"""Divide an index of labelled images into train, validation, and test (`touchstone data split`).

`split_index` writes a copy of the index with splits and, next to it, split.json, which describes
the result. `check_splits` reports leaks: images of one split with a duplicate in another. Both need
a few hundred bytes of memory per image, and keep each prompt once. No image is read.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from ray_app.archives import read_block, read_blocks
from ray_app.config import Frozen
from ray_app.datasets import index, labels, near_duplicates
from ray_app.datasets.split_remarks import list_remarks
from ray_app.datasets.splitter import Codes, Parts, draw, group_keys, split
from ray_app.errors import ConfigError, IdentityError
from ray_app.storage import Store, strip_secrets

Rows = npt.NDArray[np.bool_]

SPLITS = ("train", "validation", "test", "aside")
TRAIN, VALIDATION, TEST, ASIDE = range(4)
FREE = -1

SCHEMA = 1
FILE = "split.json"
BY: tuple[near_duplicates.Kind, ...] = ("group", "prompt", "looks")
_ALWAYS: tuple[near_duplicates.Kind, ...] = ("image", "bytes")


class SplitConfig(Frozen):
    """Settings of `touchstone data split`, which divides an index into splits."""

    retired_keys: ClassVar[Mapping[str, str]] = {
        "prompts": "equal prompts stay together; give images of similar prompts one value in the column group of the index"
    }

    at: str = Field(description="the index that `touchstone data index` wrote")
    out: str = Field(description="directory of the divided index; any fsspec URL")
    train: float = Field(default=0.8, ge=0, le=1, description="fraction of images to learn from")
    validation: float = Field(
        default=0.1, ge=0, le=1, description="fraction of images to choose and calibrate with"
    )
    test: float = Field(
        default=0.1, ge=0, le=1, description="fraction of images that are only evaluated"
    )
    by: tuple[Literal["group", "prompt", "looks"], ...] = Field(
        default=("group", "prompt", "looks"), description="what keeps images together"
    )
    hold_out: tuple[str, ...] = Field(
        default=(), description="a generator that is in test alone, or a fraction of all generators"
    )
    keep: tuple[Literal["train", "validation", "test"], ...] = Field(
        default=(), description="a split of the index that stays as it is"
    )
    after: str | None = Field(
        default=None, description="an earlier split, none of whose images is moved"
    )
    even: bool = Field(
        default=False,
        description="divide every generator evenly; images added later may then move others, unless `after` is set",
    )
    seed: int = Field(default=0, ge=0, description="another seed divides differently")

    @model_validator(mode="after")
    def _whole(self) -> "SplitConfig":
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"train, validation, and test must sum to 1, got {sum(self.shares):g}")
        return self

    @property
    def shares(self) -> tuple[float, float, float]:
        """Fractions of train, validation, and test."""
        return self.train, self.validation, self.test


def split_index(
    config: SplitConfig, remarks: Callable[[], Sequence[str]] = tuple
) -> dict[str, Any]:
    """Divide an index into splits, write it to `config.out`, and return the content of split.json.

    The content has counts per split, images that splits share (`leaks`), and warnings for the user
    (`remarks`), to which the results of `remarks`, called when the rows are divided, are added.
    Raises ConfigError if a split stays empty or `out` has other files, and IdentityError if `out`
    has another index.
    """
    original, out = Store.open(config.at), Store.open(config.out)
    rows = _read(original)
    if original.url == out.url:
        raise ConfigError(
            f"{out.url}: --out must not be the index that is divided",
            hint="give another --out",
        )
    info = index.read_info(original)
    assert info is not None, "_read has read it"
    after = config.after and strip_secrets(config.after)
    source = {
        "split": config.model_dump(mode="json", exclude={"at", "out"})
        | {"of": info.digest, "after": after}
    }
    existing = index.read_info(out)
    if existing is not None and existing.source.get("split") != source["split"]:
        raise IdentityError(
            f"{out.url} has another index, or was divided by other settings",
            hint="give another --out",
        )
    index.check_free(out)
    held_out = choose_generators(rows, config.hold_out, config.seed)
    bonds = near_duplicates.compute_duplicate_criteria(rows, [*_ALWAYS, *BY])
    binding = [bond for bond in bonds if bond.kind in (*_ALWAYS, *config.by)]
    groups, count = near_duplicates.connected_groups(binding, len(rows))
    parts = divide(rows, groups, _pin_rows(rows, config), held_out, config)
    _refuse_empty(parts, config)
    document = {
        "schema": SCHEMA,
        "index": strip_secrets(original.url),
        "asked": {"shares": dict(zip(SPLITS, config.shares, strict=False)), "by": list(config.by), "held_out": list(held_out),
                  "even": config.even, "seed": config.seed, "keep": list(config.keep), "after": after},
        "images": len(rows), "groups": count, "largest_group": int(np.bincount(groups, minlength=count).max()),
        "bonds": [{"kind": bond.kind, "known": bond.known, "near": len(bond.pairs), "binds": bond in binding} for bond in bonds],
        "had": {name: images for name, images in Counter(labels.texts(rows, "split").to_pylist()).most_common() if name is not None},
        **_count_distribution(rows, parts, held_out),
        "leaks": _name_examples(original, near_duplicates.find_leaks(bonds, np.where(parts == ASIDE, -1, parts).astype(np.int64), SPLITS)),
    }  # fmt: skip
    document["remarks"] = [
        *list_remarks(document, even=config.even, has_kept_splits=bool(config.keep)),
        *remarks(),
    ]
    document["digest"] = index.write_split_index(
        out, original, pa.array(np.array(SPLITS)[parts]), source
    ).digest
    out.write(FILE, json.dumps(document, indent=1, ensure_ascii=False).encode())
    return document


def divide(
    rows: pa.Table, groups: Codes, pins: Parts, held_out: Sequence[str], config: SplitConfig
) -> Parts:
    """Divide the rows of an index into splits.

    A group is images that belong together, such as those of one prompt. Two settings restrict the
    division:

    - The user may pin rows to their earlier split (`config.keep`, `config.after`). The other rows
      of their group go to the first split of its pinned rows, in the order train, validation, test.
      So if a detector learned from an image, no other image of its group moves to test.
    - A group without pinned rows goes to test if its fakes are all by held-out generators. Fakes by
      held-out generators in another split are put aside, in no split. This also applies to pinned
      fakes.

    `groups` (N,) are numbers. `pins` (N,) and the result (N,) are indexes in SPLITS. A row that is
    not pinned has FREE.
    """
    strata = number_strata(rows)[0] if config.even else None
    split_codes = split(group_keys(rows, groups), strata, config.shares, config.seed)
    count = int(groups.max(initial=-1)) + 1
    is_held_out, is_fake = find_fakes_by(rows, held_out), labels.fakes(rows)
    held_counts, fake_counts = (
        np.bincount(groups[mask], minlength=count) for mask in (is_held_out, is_fake)
    )
    split_codes[((held_counts > 0) & (held_counts == fake_counts))[groups]] = TEST
    pinned = np.full(count, ASIDE, np.int8)
    np.minimum.at(pinned, groups[pins != FREE], pins[pins != FREE])
    split_codes = np.where(pinned[groups] < ASIDE, pinned[groups], split_codes)
    split_codes = np.where(pins != FREE, pins, split_codes).astype(np.int8)
    split_codes[is_held_out & (split_codes != TEST)] = ASIDE
    return split_codes


def choose_generators(rows: pa.Table, requested: Sequence[str], seed: int) -> tuple[str, ...]:
    """Return the names of the generators to hold out: their fakes may be in the test split only.

    `requested` has names, or fractions of all generators between 0 and 1, for which at least one is
    chosen at random. Raises ConfigError if no fake is by a named generator, or no generator is left
    to learn from.
    """
    codes, all_names = labels.coded(rows, "generator")
    names = sorted(all_names[code] for code in np.unique(codes[labels.fakes(rows)]) if code >= 0)
    hint = f"use one of {', '.join(names[:20])}"
    selected: set[str] = set()
    for request in requested:
        if request in names:
            selected.add(request)
        elif (fraction := _parse_fraction(request)) is not None:
            draws = {name: draw(name.encode(), seed) for name in names}
            selected |= {name for name in names if draws[name] < fraction}
            selected |= set(sorted(names, key=draws.__getitem__)[:1])
        else:
            raise ConfigError(f"no fake image is of the held-out generator '{request}'", hint=hint)
    if selected and len(selected) == len(names):
        raise ConfigError(
            "all generators are held out, so no generator is left to learn from",
            hint=f"hold out fewer of {', '.join(names[:20])}",
        )
    return tuple(sorted(selected))


def find_fakes_by(rows: pa.Table, generators: Sequence[str]) -> Rows:
    """Return whether each row is a fake by one of the given generators (N,)."""
    codes, names = labels.coded(rows, "generator")
    wanted_codes = [code for code, name in enumerate(names) if name in generators]
    return np.asarray(np.isin(codes, wanted_codes) & labels.fakes(rows))


def number_strata(rows: pa.Table) -> tuple[Codes, list[tuple[str, str]]]:
    """Return the index of each row's stratum (N,), and the list of strata.

    A stratum is the rows of one label and generator. The list has the (label, generator) of each
    stratum, strata of real images first.
    """
    codes, names = labels.coded(rows, "generator")
    keys = labels.fakes(rows) * (len(names) + 1) + codes + 1
    keys_found, strata = np.unique(keys, return_inverse=True)
    kinds = [
        ("fake" if key > len(names) else "real", (["", *names])[int(key) % (len(names) + 1)])
        for key in keys_found
    ]
    return strata.astype(np.int64), kinds


def _parse_fraction(text: str) -> float | None:
    try:
        fraction = float(text)
    except ValueError:
        return None
    return fraction if 0 < fraction < 1 else None


def check_splits(
    at: str, kinds: Sequence[near_duplicates.Kind] = (*_ALWAYS, *BY)
) -> dict[str, Any]:
    """Return how many images of an index have a duplicate in another split.

    `images` counts them by split. `leaks` are the results of `near_duplicates.find_leaks`, with
    names of images (`examples`) instead of row numbers (`rows`). Raises ConfigError if the index
    has fewer than two splits.
    """
    store = Store.open(at)
    rows = _read(store)
    codes, names = labels.coded(rows, "split")
    order = sorted(range(len(names)), key=lambda i: (_rank_split(names[i]), i))
    ranks = np.append(np.argsort(order), -1)
    splits = ranks[codes].astype(np.int64)
    ordered_names = [names[i] for i in order]
    if SPLITS[ASIDE] in ordered_names:
        splits[splits == ordered_names.index(SPLITS[ASIDE])] = -1
    if len(np.unique(splits[splits >= 0])) < 2:
        raise ConfigError(
            f"{store.url}: its images are in fewer than two splits",
            hint=f"make splits by touchstone data split {at} --out DIR",
        )
    images = {name: int((splits == i).sum()) for i, name in enumerate(ordered_names)}
    leaks = near_duplicates.find_leaks(
        near_duplicates.compute_duplicate_criteria(rows, kinds), splits, ordered_names
    )
    return {
        "schema": SCHEMA,
        "index": strip_secrets(store.url),
        "images": images,
        "leaks": _name_examples(store, leaks),
    }


def _rank_split(name: str) -> int:
    return next(
        (
            rank
            for rank, start in enumerate(("train", "val", "test"))
            if name.lower().startswith(start)
        ),
        3,
    )


def _read(store: Store) -> pa.Table:
    """Read `image_id` and `input` of all rows."""
    if not index.has_index(store) or index.read_info(store) is None:
        raise ConfigError(
            f"{store.url}: there is no index, or it is not complete",
            hint="make one by touchstone data index SOURCE --layout NAME --hash sha256,phash --out DIR",
        )
    return pa.concat_tables(
        read_block(store, ref).select(["image_id", "input"]) for ref in read_blocks(store, 0)
    )


def _pin_rows(rows: pa.Table, config: SplitConfig) -> Parts:
    """Return (N,) the split in which each row stays, FREE for any.

    It is the index's own split for the splits that are kept, otherwise the split of the earlier
    index.
    """
    pins = np.full(len(rows), FREE, np.int8)
    if config.after is not None:
        earlier = _read(Store.open(config.after))
        ids, ids_here = earlier["image_id"].to_numpy(), rows["image_id"].to_numpy()
        order = np.argsort(ids)
        matches = order[np.minimum(np.searchsorted(ids, ids_here, sorter=order), len(ids) - 1)]
        pins = np.where(ids[matches] == ids_here, _read_own_splits(earlier)[matches], FREE).astype(
            np.int8
        )
    if config.keep:
        own_splits = _read_own_splits(rows)
        kept_codes = [SPLITS.index(name) for name in config.keep]
        if missing := [
            name for name in config.keep if not (own_splits == SPLITS.index(name)).any()
        ]:
            raise ConfigError(
                f"{config.at}: --keep {missing[0]}: the index has no such split",
                hint="remove it from --keep, or index a source that names its splits",
            )
        pins = np.where(np.isin(own_splits, kept_codes), own_splits, pins).astype(np.int8)
    return pins


def _read_own_splits(rows: pa.Table) -> Parts:
    """Return (N,) the split of each row; FREE for aside, for no split, and for other names."""
    codes, names = labels.coded(rows, "split")
    code_by_name = {name: code for code, name in enumerate(SPLITS[:ASIDE])} | {"val": 1, "valid": 1}
    return np.array([*(code_by_name.get(name.lower(), FREE) for name in names), FREE], np.int8)[
        codes
    ]


def _refuse_empty(split_codes: Parts, config: SplitConfig) -> None:
    for code, (name, fraction) in enumerate(zip(SPLITS, config.shares, strict=False)):
        if fraction > 0 and not (split_codes == code).any():
            raise ConfigError(f"{config.at}: no group falls into {name}, for which {fraction:.0%} was requested",
                              hint="request a larger fraction, fewer kinds of --by, or --even, because there are too few groups")  # fmt: skip


def _count_distribution(
    rows: pa.Table, split_codes: Parts, held_out: Sequence[str]
) -> dict[str, Any]:
    """Return the counts of split.json.

    `splits` has for each split its images, their fraction of all images in a split, reals, and
    fakes. `strata` has the images of each split by label and generator.
    """
    strata, kinds = number_strata(rows)
    table = np.zeros((len(kinds), len(SPLITS)), np.int64)
    np.add.at(table, (strata, split_codes), 1)
    is_fake = np.array([label == "fake" for label, _ in kinds])
    used = max(1, int((split_codes != ASIDE).sum()))
    splits = {
        name: {"images": int(table[:, code].sum()), "share": None if code == ASIDE else int(table[:, code].sum()) / used,
               "real": int(table[~is_fake, code].sum()), "fake": int(table[is_fake, code].sum())}
        for code, name in enumerate(SPLITS)
    }  # fmt: skip
    rows_of = [
        {
            "label": label,
            "generator": name,
            "held_out": label == "fake" and name in held_out,
            **dict(zip(SPLITS, row, strict=True)),
        }
        for (label, name), row in zip(kinds, table.tolist(), strict=True)
    ]
    is_held_out = find_fakes_by(rows, held_out)
    return {
        "splits": splits,
        "strata": rows_of,
        "held_out": {
            "test": int((is_held_out & (split_codes == TEST)).sum()),
            "aside": int(is_held_out.sum() - (is_held_out & (split_codes == TEST)).sum()),
        },
    }


def _name_examples(store: Store, leaks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return leaks with the names of their images instead of row numbers."""
    row_numbers = {row for leak in leaks for pair in leak["rows"] for row in pair}
    names: dict[int, str] = {}
    start = 0
    for ref in read_blocks(store, 0) if row_numbers else ():
        block_rows = sorted(row for row in row_numbers if start <= row < start + ref.members)
        if block_rows:
            block = read_block(store, ref).take(pa.array([row - start for row in block_rows]))
            for row, uri, member in zip(
                block_rows, block["uri"].to_pylist(), block["member"].to_pylist(), strict=True
            ):
                names[row] = uri if member is None else f"{uri}/{member}"
        start += ref.members
    return [{**{key: value for key, value in leak.items() if key != "rows"},
             "examples": [[names[row] for row in pair] for pair in leak["rows"]]} for leak in leaks]  # fmt: skip
