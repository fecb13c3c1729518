"""`touchstone data split`: fills the splits of an index and writes split.json beside it
(`split_index`), or reports leaks (`check_splits`).

Memory: some hundred bytes an image, and its prompt once. Reads no image.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from ray_app.archives import read_block, read_blocks
from ray_app.config import Frozen
from ray_app.datasets import index, labels, near_duplicates
from ray_app.datasets.splits import (
    ASIDE,
    FREE,
    SPLITS,
    TEST,
    Places,
    chosen_generators,
    divide,
    held_rows,
    strata_of,
)
from ray_app.errors import ConfigError, IdentityError
from ray_app.storage import Store, strip_secrets

_LARGE = 0.1  # a group with more of all images than this makes shares uneven
_MOST_NAMES = 5

SCHEMA = 1
FILE = "split.json"
BY: tuple[near_duplicates.Kind, ...] = ("group", "prompt", "looks")
_ALWAYS: tuple[near_duplicates.Kind, ...] = ("image", "bytes")


class SplitConfig(Frozen):
    """How an index is divided; see `touchstone data split --help`."""

    retired_keys: ClassVar[Mapping[str, str]] = {
        "prompts": "equal prompts stay together; give images of similar prompts one value in the column group of the index"
    }

    at: str
    out: str
    train: float = Field(default=0.8, ge=0, le=1)
    validation: float = Field(default=0.1, ge=0, le=1)
    test: float = Field(default=0.1, ge=0, le=1)
    by: tuple[Literal["group", "prompt", "looks"], ...] = ("group", "prompt", "looks")
    hold_out: tuple[str, ...] = Field(
        default=(), description="generators that are in test alone, or a share of all generators"
    )
    keep: tuple[Literal["train", "validation", "test"], ...] = Field(
        default=(), description="splits of the index that stay as they are"
    )
    after: str | None = Field(default=None, description="an earlier split: no image of it is moved")
    even: bool = False
    seed: int = Field(default=0, ge=0)

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
    held_out = chosen_generators(rows, config.hold_out, config.seed)
    bonds = near_duplicates.bonds_of(rows, [*_ALWAYS, *BY])
    binding = [bond for bond in bonds if bond.kind in (*_ALWAYS, *config.by)]
    groups, count = near_duplicates.connected_groups(binding, len(rows))
    pins = _pins(rows, config)
    places = divide(
        rows,
        groups,
        count,
        pins,
        shares=config.shares,
        held_out=held_out,
        even=config.even,
        seed=config.seed,
    )
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
        "leaks": _with_names(given, near_duplicates.leaks_of(bonds, np.where(places == ASIDE, -1, places).astype(np.int64), SPLITS)),
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
    leaks = near_duplicates.leaks_of(near_duplicates.bonds_of(rows, kinds), splits, named)
    return {
        "schema": SCHEMA,
        "index": strip_secrets(store.url),
        "images": images,
        "leaks": _with_names(store, leaks),
    }


def remarks_on(document: Mapping[str, Any], *, even: bool, kept: bool) -> list[str]:
    """All of them. `even`: every generator was divided evenly; `kept`: splits that the index had
    were kept.
    """
    return [*_on_groups(document), *_on_classes(document, even), *_on_leaks(document, kept)]


def _on_groups(document: Mapping[str, Any]) -> Iterator[str]:
    if document["largest_group"] > _LARGE * document["images"] and document["groups"] > 1:
        yield (
            f"One group of bound images holds {document['largest_group']:,} of {document['images']:,}: it stays whole, so shares may be "
            "far from those asked. Fewer kinds of --by bind less."
        )
    if aside := document["splits"]["aside"]["images"]:
        yield f"{aside:,} fakes of held-out generators are aside, in no split: their groups are in train or validation."


def _on_classes(document: Mapping[str, Any], even: bool) -> Iterator[str]:
    for name, one in document["splits"].items():
        if name != "aside" and one["images"] and not (one["real"] and one["fake"]):
            yield f"All images of {name} are {'fake' if one['fake'] else 'real'}."
    without = [one["generator"] for one in document["strata"] if not one["test"]]
    if without and document["asked"]["shares"]["test"]:
        names = ", ".join(without[:_MOST_NAMES]) + (
            " and others" if len(without) > _MOST_NAMES else ""
        )
        yield f"Nothing of {names} is in test{'' if even else '; --even divides every generator'}."


def _on_leaks(document: Mapping[str, Any], kept: bool) -> Iterator[str]:
    unknown = {one["kind"] for one in document["bonds"] if not one["known"]}
    missing = [word for kind, word in (("bytes", "sha256"), ("looks", "phash")) if kind in unknown]
    if missing:
        missing_hashes = f"The index has no {' and no '.join(missing)}, so copies by {'it' if len(missing) == 1 else 'them'} were not looked for"
        yield f"{missing_hashes}: touchstone data index … --hash {','.join(missing)}."
    if leaking := [one["what"] for one in document["leaks"] if one["values"]]:
        yield f"Splits still share images by {', '.join(leaking)}; see leaks."
    if document["had"] and not kept:
        yield "The splits that the index had are replaced; --keep test keeps one."


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


def _pins(rows: pa.Table, config: SplitConfig) -> Places:
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


def _places(rows: pa.Table) -> Places:
    """(N,) the rows' own `split`; FREE for a row aside, for none and for another word."""
    codes, names = labels.coded(rows, "split")
    numbers = {name: place for place, name in enumerate(SPLITS[:ASIDE])} | {"val": 1, "valid": 1}
    return np.array([*(numbers.get(name.lower(), FREE) for name in names), FREE], np.int8)[codes]


def _refuse_empty(places: Places, config: SplitConfig) -> None:
    for place, (name, share) in enumerate(zip(SPLITS, config.shares, strict=False)):
        if share > 0 and not (places == place).any():
            raise ConfigError(f"{config.at}: no group falls into {name}, of which {share:.0%} was asked",
                              hint="there are too few groups: a larger share, fewer kinds of --by, or --even")  # fmt: skip


def _distribution(rows: pa.Table, places: Places, held_out: Sequence[str]) -> dict[str, Any]:
    """`splits`: for each its images, their share of those in any, reals and fakes; `strata`: images
    of each by label and generator.
    """
    strata, kinds = strata_of(rows)
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
    held = held_rows(rows, held_out)
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
