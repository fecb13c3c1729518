"""A labelled archive → an index, and back: a manifest whose column `input` holds labels. Streams; memory is a block.

manifest/0/…   the members, in the house's own format, `input` being INPUT
index.json     what it was made of and what is in it; written last: without it there is no index
listing/…      what the source lists, while the index is made

A source that changes later is not indexed again: an index says what was learnt from.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.archives import (
    Archive,
    BlockPlan,
    Each,
    Listed,
    guard_of,
    image_id,
    in_turn,
    iter_blocks,
    list_members,
    member_rows,
    read_block,
    read_complete,
)
from ray_app.archives.selecting import write_selected
from ray_app.datasets.labelling import Aside, Hash, LabelledBlock, Labeller, as_listed, check_hashes, labels_of
from ray_app.datasets.labels import INPUT, Labels
from ray_app.datasets.layouts import LAYOUTS, Layout
from ray_app.datasets.layouts.layout import contradiction
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.storage import Store

# Told what is being done (`listed`, `labelled`) and of how many members so far; picklable.
Progress = Callable[[str, int], object]

_FORMAT = 1
UNFINISHED = ("manifest", "listing")  # what an index that did not come to its end leaves
# One block is one task when labels are read, and one file of the index. Both hold a few hundred bytes per row.
_LISTED = BlockPlan(batch_slots=1, max_block_members=4096, blocks_per_doubling=1)
_INDEXED = BlockPlan(batch_slots=1, max_block_members=16_384, blocks_per_doubling=1)
_DIGESTED = ("label", "generator", "mask_uri", "prompt", "split", "group")


def silent(doing: str, members: int) -> None:
    """Says nothing; a lambda could not travel to the tasks that list."""


@dataclass(frozen=True)
class IndexInfo:
    """What an index holds. `source`: of which it was made, without secrets; `digest`: over ids and labels of all rows in order.

    `counts`: rows per (split, label, generator); `published`: for each number of the layout that is found here, whether it `agrees`;
    `left_out`: members that are no rows, by reason; `unreadable`: rows known to have no readable image, by reason; `repeated`: members
    that the source lists more than once.
    """

    source: Mapping[str, Any]
    layout: str
    hashes: Sequence[str]
    rows: int
    digest: str
    counts: Sequence[Mapping[str, Any]]
    published: Sequence[Mapping[str, Any]]
    left_out: Sequence[Mapping[str, Any]]
    unreadable: Sequence[Mapping[str, Any]]
    repeated: int
    format: int = _FORMAT

    @property
    def agrees(self) -> bool | None:
        """Whether all published numbers that could be compared are met; None where there was none."""
        compared = [one["agrees"] for one in self.published if one["agrees"] is not None]
        return all(compared) if compared else None


def write_index(
    store: Store,
    archive: Archive,
    layout: Layout,
    *,
    hashes: Sequence[Hash] = (),
    limits: ImageLimits = ImageLimits(),  # noqa: B008 - frozen
    limit: int | None = None,
    source: Mapping[str, Any] | None = None,
    each: Each = in_turn,
    progress: Progress = silent,
) -> IndexInfo:
    """List an archive and label its members, over whatever unfinished index the store has. `limit`: only its first so many members.

    Raises ConfigError for a member without a known label, for one that is listed twice with other labels, or when no labelled image is
    left; StorageError as a listing does.
    """
    check_hashes(hashes)
    for folder in UNFINISHED:
        store.clear(folder)
    listing = store.below("listing")
    listed = list_members(listing, archive, _LISTED, each=each, progress=partial(progress, "listed"), limit=limit)
    assert listed is not None, "a first listing is never the same as one before"
    layout = layout.prepared(_members(listing))
    if listed.listed > listed.members:
        _refuse_contradictions(archive, layout, limit)
    labeller = Labeller(listing, layout, hashes, limits, archive.fetcher)
    tally = _Tally(partial(progress, "labelled"))
    written = write_selected(store, tally.rows(each(labeller, iter_blocks(listing, 0))), _INDEXED, INPUT, archive.fetcher.guard)
    if not written.members:
        raise _nothing(layout, tally)
    info = IndexInfo(
        source=source or {},
        layout=next((name for name, kind in LAYOUTS.items() if type(layout) is kind), type(layout).__name__),
        hashes=list(hashes),
        rows=written.members,
        digest=tally.digest.hexdigest(),
        counts=tally.told(),
        published=_compared(layout.published, tally.subsets),
        left_out=tally.left_out.told(),
        unreadable=tally.unreadable.told(),
        repeated=listed.listed - listed.members,
    )
    store.write("index.json", json.dumps(asdict(info), indent=1, ensure_ascii=False).encode())
    store.clear("listing")
    return info


def read_info(store: Store) -> IndexInfo | None:
    """What the index of a store holds; None where there is none, or an unfinished one. Raises ConfigError for one of another version."""
    try:
        fields = json.loads(store.read("index.json"))
    except FileNotFoundError:
        return None
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or "digest" not in fields:
        raise ConfigError(f"{store.url}/index.json is not of Touchstone", hint="give another --out")
    if fields.get("format") != _FORMAT:
        raise ConfigError(f"{store.url}/index.json is of another version of Touchstone", hint="index the source again, into another --out")
    return IndexInfo(**fields)


def is_index(store: Store) -> bool:
    """Whether there is a whole index, and not just something called index.json."""
    return store.exists("index.json") and read_complete(store, 0) is not None


def read_index(place: str) -> pa.Table:
    """All rows of an index in order: the columns of a manifest, `input` being INPUT. Raises ConfigError where there is no index."""
    store = Store.open(place)
    if not is_index(store) or read_info(store) is None:
        raise ConfigError(f"{store.url}: no index", hint="make one: touchstone index SOURCE --layout NAME --out DIR")
    return pa.concat_tables(read_block(store, ref) for ref in iter_blocks(store, 0))


def write_divided(store: Store, given: Store, splits: pa.Array, source: Mapping[str, Any]) -> IndexInfo:
    """The index `given` with other splits (rows,), null = none, written over whatever `store` has. `source`: what is said of it further."""
    info = read_info(given)
    assert info is not None, "who divides an index has read it"
    store.clear("manifest")
    tally = _Tally(lambda members: None)
    written = write_selected(store, tally.rows(_with_splits(given, splits)), _INDEXED, INPUT, guard_of(given))
    divided = replace(info, source={**info.source, **source}, rows=written.members, digest=tally.digest.hexdigest(), counts=tally.told())
    store.write("index.json", json.dumps(asdict(divided), indent=1, ensure_ascii=False).encode())
    return divided


def _with_splits(given: Store, splits: pa.Array) -> Iterator[LabelledBlock]:
    start = 0
    for ref in iter_blocks(given, 0):
        rows = read_block(given, ref)
        inputs = rows["input"].combine_chunks()
        columns = [inputs.field(name) if name != "split" else splits.slice(start, len(rows)).cast(pa.string()) for name in INPUT.names]
        place, start = rows.schema.get_field_index("input"), start + len(rows)
        rows = rows.set_column(place, pa.field("input", INPUT), pa.StructArray.from_arrays(columns, fields=list(INPUT)))
        yield LabelledBlock(rows, Counter(), Aside(), Aside())


@dataclass
class _Tally:
    """What goes by while rows are written."""

    progress: Callable[[int], object]
    members: int = 0
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    subsets: Counter[str] = field(default_factory=Counter)
    left_out: Aside = field(default_factory=Aside)
    unreadable: Aside = field(default_factory=Aside)
    digest: Any = field(default_factory=hashlib.sha256)

    def rows(self, blocks: Iterable[LabelledBlock]) -> Iterator[pa.Table]:
        for block in blocks:
            self.members += len(block.rows) + block.left_out.counts.total()
            self.progress(self.members)
            self.subsets += block.subsets
            self.left_out.merge(block.left_out)
            self.unreadable.merge(block.unreadable)
            columns = {name: block.rows["input"].combine_chunks().field(name).to_pylist() for name in _DIGESTED}
            self.counts.update(zip((split or "" for split in columns["split"]), columns["label"], columns["generator"], strict=True))
            for row in zip(block.rows["image_id"].to_pylist(), *columns.values(), strict=True):
                self.digest.update(repr(row).encode("utf-8", "surrogateescape"))
            yield block.rows

    def told(self) -> list[dict[str, Any]]:
        return [
            {"split": split or None, "label": label, "generator": generator, "rows": rows}
            for (split, label, generator), rows in sorted(self.counts.items())
        ]


def _members(listing: Store) -> Iterator[Listed]:
    for ref in iter_blocks(listing, 0):
        yield from map(as_listed, member_rows(read_block(listing, ref)))


def _refuse_contradictions(archive: Archive, layout: Layout, limit: int | None) -> None:
    """Raises ConfigError for a member that is listed more than once and not always with the same labels; lists the archive anew."""
    ids, counts = np.unique(np.fromiter((image_id(item) for item in islice(archive, limit)), np.int64), return_counts=True)
    repeated = set(ids[counts > 1].tolist())
    first: dict[tuple[object, ...], Labels | None] = {}
    for item in islice(archive, limit):
        if image_id(item) in repeated:
            labels = labels_of(item, layout)
            before = first.setdefault((item.uri, item.member, item.occurrence, item.version), labels)
            if labels != before:
                raise contradiction(item, f"listed more than once, as [{before}] and as [{labels}]")


def _compared(published: Mapping[str, int], found: Mapping[str, int]) -> list[dict[str, Any]]:
    """Each subset that is there with its published number, if it has one. What is published and not there was not asked for."""
    return [
        {"subset": name, "rows": rows, "published": published.get(name), "agrees": rows == published[name] if name in published else None}
        for name, rows in sorted(found.items())
    ]


def _nothing(layout: Layout, tally: _Tally) -> ConfigError:
    reasons = "; ".join(f"{one['files']} × {one['why']}, for example {one['example']}" for one in tally.left_out.told())
    hint = f"the layout expects, for example, {layout.example}" if layout.example else "another --layout?"
    return ConfigError(f"no labelled image: {reasons}", hint=hint)
