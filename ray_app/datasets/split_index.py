"""`touchstone data split`: fills the splits of an index and writes split.json beside it
(`split_index`), or reports leaks (`check_splits`).

Memory: some hundred bytes an image, and its prompt once. Reads no image.
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
from ray_app.datasets.split_remarks import remarks_on
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
    """How an index is divided; see `touchstone data split --help`."""

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
            raise ValueError(f"train, validation and test are together 1, not {sum(self.shares):g}")
        return self

    @property
    def shares(self) -> tuple[float, float, float]:
        """Of train, validation and test."""
        return self.train, self.validation, self.test


def split_index(
    config: SplitConfig, remarks: Callable[[], Sequence[str]] = tuple
) -> dict[str, Any]:
    """Divide an index into `out`, and return the content of split.json, with further `remarks` on
    the images.

    Raises ConfigError (no index, a split that stays empty, `out` is the index itself),
    IdentityError where `out` holds another index.
    """
    given, out = Store.open(config.at), Store.open(config.out)
    rows = _read(given)
    if given.url == out.url:
        raise ConfigError(
            f"{out.url}: a split is written beside its index, not over it",
            hint="give another --out",
        )
    info = index.read_info(given)
    assert info is not None, "it was read"
    after = config.after and strip_secrets(config.after)
    source = {
        "split": config.model_dump(mode="json", exclude={"at", "out"})
        | {"of": info.digest, "after": after}
    }
    there = index.read_info(out)
    if there is not None and there.source.get("split") != source["split"]:
        raise IdentityError(
            f"{out.url} holds another index, or one that was divided otherwise",
            hint="give another --out",
        )
    held_out = choose_generators(rows, config.hold_out, config.seed)
    bonds = near_duplicates.bonds_of(rows, [*_ALWAYS, *BY])
    binding = [bond for bond in bonds if bond.kind in (*_ALWAYS, *config.by)]
    groups, count = near_duplicates.connected_groups(binding, len(rows))
    places = divide(rows, groups, _pins(rows, config), held_out, config)
    _refuse_empty(places, config)
    document = {
        "schema": SCHEMA,
        "index": strip_secrets(given.url),
        "asked": {"shares": dict(zip(SPLITS, config.shares, strict=False)), "by": list(config.by), "held_out": list(held_out),
                  "even": config.even, "seed": config.seed, "keep": list(config.keep), "after": after},
        "images": len(rows), "groups": count, "largest_group": int(np.bincount(groups, minlength=count).max()),
        "bonds": [{"kind": bond.kind, "known": bond.known, "near": len(bond.pairs), "binds": bond in binding} for bond in bonds],
        "had": {name: images for name, images in Counter(labels.texts(rows, "split").to_pylist()).most_common() if name is not None},
        **_distribution(rows, places, held_out),
        "leaks": _with_names(given, near_duplicates.find_leaks(bonds, np.where(places == ASIDE, -1, places).astype(np.int64), SPLITS)),
    }  # fmt: skip
    document["remarks"] = [
        *remarks_on(document, even=config.even, kept=bool(config.keep)),
        *remarks(),
    ]
    document["digest"] = index.write_divided(
        out, given, pa.array(np.array(SPLITS)[places]), source
    ).digest
    out.write(FILE, json.dumps(document, indent=1, ensure_ascii=False).encode())
    return document


def divide(
    rows: pa.Table, groups: Codes, pins: Parts, held_out: Sequence[str], config: SplitConfig
) -> Parts:
    """Return (N,) the index of each row's split in SPLITS.

    A group with pinned rows goes where the first of them are, train before validation before test:
    an image that a detector learnt from is never measured again. A group whose fakes are all by
    held-out generators is in test. Other fakes by held-out generators are in test or aside.

    Args:
        rows: Rows of an index.
        groups: (N,) number of each row's group.
        pins: (N,) split that a row stays in, or FREE.
        held_out: Generators whose fakes are in test alone.
        config: Shares, seed, and whether each label and generator is divided evenly.
    """
    strata = number_strata(rows)[0] if config.even else None
    places = split(group_keys(rows, groups), strata, config.shares, config.seed)
    count = int(groups.max(initial=-1)) + 1
    is_held, is_fake = find_fakes_by(rows, held_out), labels.fakes(rows)
    held, all_fakes = (np.bincount(groups[which], minlength=count) for which in (is_held, is_fake))
    places[((held > 0) & (held == all_fakes))[groups]] = TEST
    pinned = np.full(count, ASIDE, np.int8)
    np.minimum.at(pinned, groups[pins != FREE], pins[pins != FREE])
    places = np.where(pinned[groups] < ASIDE, pinned[groups], places)
    places = np.where(pins != FREE, pins, places).astype(np.int8)
    places[is_held & (places != TEST)] = ASIDE
    return places


def choose_generators(rows: pa.Table, requested: Sequence[str], seed: int) -> tuple[str, ...]:
    """Return the generators to hold out: those that are named, and for a share of all generators
    those that it draws, at least one.

    Raises:
        ConfigError: No fake is by a named generator, or no generator is left to learn from.
    """
    codes, all_names = labels.coded(rows, "generator")
    names = sorted(all_names[code] for code in np.unique(codes[labels.fakes(rows)]) if code >= 0)
    hint = f"there are {', '.join(names[:20])}"
    chosen: set[str] = set()
    for request in requested:
        if request in names:
            chosen.add(request)
        elif (share := _share(request)) is not None:
            drawn = {name: draw(name.encode(), seed) for name in names}
            chosen |= {name for name in names if drawn[name] < share}
            chosen |= set(sorted(names, key=drawn.__getitem__)[:1])
        else:
            raise ConfigError(f"no fake is by the held-out generator '{request}'", hint=hint)
    if chosen and len(chosen) == len(names):
        raise ConfigError(
            "all generators are held out, so that nothing is left to learn from", hint=hint
        )
    return tuple(sorted(chosen))


def find_fakes_by(rows: pa.Table, generators: Sequence[str]) -> Rows:
    """Return (N,) whether a row is a fake by one of these generators."""
    codes, names = labels.coded(rows, "generator")
    wanted = [code for code, name in enumerate(names) if name in generators]
    return np.asarray(np.isin(codes, wanted) & labels.fakes(rows))


def number_strata(rows: pa.Table) -> tuple[Codes, list[tuple[str, str]]]:
    """Return (N,) the number of each row's stratum, and the label and generator of each stratum,
    real before fake.
    """
    codes, names = labels.coded(rows, "generator")
    keys = labels.fakes(rows) * (len(names) + 1) + codes + 1
    found, strata = np.unique(keys, return_inverse=True)
    kinds = [
        ("fake" if key > len(names) else "real", (["", *names])[int(key) % (len(names) + 1)])
        for key in found
    ]
    return strata.astype(np.int64), kinds


def _share(text: str) -> float | None:
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 < share < 1 else None


def check_splits(
    at: str, kinds: Sequence[near_duplicates.Kind] = (*_ALWAYS, *BY)
) -> dict[str, Any]:
    """What leaks between the splits that an index has: `index`, `images` {split: n} and `leaks`.
    Raises ConfigError where it has fewer than two.
    """
    store = Store.open(at)
    rows = _read(store)
    codes, names = labels.coded(rows, "split")
    order = sorted(range(len(names)), key=lambda place: (_learning(names[place]), place))
    ranks = np.append(np.argsort(order), -1)
    splits = ranks[codes].astype(np.int64)
    named = [names[place] for place in order]
    if SPLITS[ASIDE] in named:
        splits[splits == named.index(SPLITS[ASIDE])] = -1
    if len(np.unique(splits[splits >= 0])) < 2:
        raise ConfigError(
            f"{store.url}: its images are in fewer than two splits",
            hint=f"touchstone data split {at} --out DIR makes them",
        )
    images = {name: int((splits == place).sum()) for place, name in enumerate(named)}
    leaks = near_duplicates.find_leaks(near_duplicates.bonds_of(rows, kinds), splits, named)
    return {
        "schema": SCHEMA,
        "index": strip_secrets(store.url),
        "images": images,
        "leaks": _with_names(store, leaks),
    }


def _learning(name: str) -> int:
    return next(
        (
            rank
            for rank, start in enumerate(("train", "val", "test"))
            if name.lower().startswith(start)
        ),
        3,
    )


def _read(store: Store) -> pa.Table:
    """`image_id` and `input` of all rows."""
    if not index.has_index(store) or index.read_info(store) is None:
        raise ConfigError(
            f"{store.url}: no index",
            hint="make one: touchstone data index SOURCE --layout NAME --hash sha256,phash --out DIR",
        )
    return pa.concat_tables(
        read_block(store, ref).select(["image_id", "input"]) for ref in read_blocks(store, 0)
    )


def _pins(rows: pa.Table, config: SplitConfig) -> Parts:
    """(N,) where rows stay, FREE = anywhere: as the index has it for the splits that are kept, else
    as the earlier split has it.
    """
    pins = np.full(len(rows), FREE, np.int8)
    if config.after is not None:
        earlier = _read(Store.open(config.after))
        ids, mine = earlier["image_id"].to_numpy(), rows["image_id"].to_numpy()
        order = np.argsort(ids)
        at = order[np.minimum(np.searchsorted(ids, mine, sorter=order), len(ids) - 1)]
        pins = np.where(ids[at] == mine, _places(earlier)[at], FREE).astype(np.int8)
    if config.keep:
        own = _places(rows)
        kept = [SPLITS.index(name) for name in config.keep]
        if missing := [name for name in config.keep if not (own == SPLITS.index(name)).any()]:
            raise ConfigError(
                f"{config.at}: no split '{missing[0]}' to keep",
                hint="the index was made from a source that names its splits",
            )
        pins = np.where(np.isin(own, kept), own, pins).astype(np.int8)
    return pins


def _places(rows: pa.Table) -> Parts:
    """(N,) the rows' own `split`; FREE for a row aside, for none and for another word."""
    codes, names = labels.coded(rows, "split")
    numbers = {name: place for place, name in enumerate(SPLITS[:ASIDE])} | {"val": 1, "valid": 1}
    return np.array([*(numbers.get(name.lower(), FREE) for name in names), FREE], np.int8)[codes]


def _refuse_empty(places: Parts, config: SplitConfig) -> None:
    for place, (name, share) in enumerate(zip(SPLITS, config.shares, strict=False)):
        if share > 0 and not (places == place).any():
            raise ConfigError(f"{config.at}: no group falls into {name}, of which {share:.0%} was asked",
                              hint="there are too few groups: a larger share, fewer kinds of --by, or --even")  # fmt: skip


def _distribution(rows: pa.Table, places: Parts, held_out: Sequence[str]) -> dict[str, Any]:
    """`splits`: for each its images, their share of those in any, reals and fakes; `strata`: images
    of each by label and generator.
    """
    strata, kinds = number_strata(rows)
    table = np.zeros((len(kinds), len(SPLITS)), np.int64)
    np.add.at(table, (strata, places), 1)
    is_fake = np.array([label == "fake" for label, _ in kinds])
    used = max(1, int((places != ASIDE).sum()))
    splits = {
        name: {"images": int(table[:, place].sum()), "share": None if place == ASIDE else int(table[:, place].sum()) / used,
               "real": int(table[~is_fake, place].sum()), "fake": int(table[is_fake, place].sum())}
        for place, name in enumerate(SPLITS)
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
    held = find_fakes_by(rows, held_out)
    return {
        "splits": splits,
        "strata": rows_of,
        "held_out": {
            "test": int((held & (places == TEST)).sum()),
            "aside": int(held.sum() - (held & (places == TEST)).sum()),
        },
    }


def _with_names(store: Store, leaks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaks with the names of their images in place of row numbers."""
    wanted = {row for leak in leaks for pair in leak["rows"] for row in pair}
    names: dict[int, str] = {}
    start = 0
    for ref in read_blocks(store, 0) if wanted else ():
        mine = sorted(row for row in wanted if start <= row < start + ref.members)
        if mine:
            block = read_block(store, ref).take(pa.array([row - start for row in mine]))
            for row, uri, member in zip(
                mine, block["uri"].to_pylist(), block["member"].to_pylist(), strict=True
            ):
                names[row] = uri if member is None else f"{uri}/{member}"
        start += ref.members
    return [{**{key: value for key, value in leak.items() if key != "rows"},
             "examples": [[names[row] for row in pair] for pair in leak["rows"]]} for leak in leaks]  # fmt: skip
