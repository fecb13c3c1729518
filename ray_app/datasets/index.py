"""The index of a labelled archive: a manifest whose column `input` holds the labels (`INPUT`).

`index_source` gives the rows of a source as a recipe names it, `build_index` and `write_index` make
an index, `read_index` and `read_info` read one, `write_divided` writes one again with other splits.
Streams; memory is a block.

manifest/0/…   the members, in the house's own format, `input` being INPUT
index.json     what it was made of and what is in it; written last: without it there is no index
listing/…      what the source lists, while the index is made
"""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial, reduce
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app import archives
from ray_app.archives import Each, in_turn
from ray_app.archives.build import write_selected
from ray_app.config import config_root
from ray_app.datasets import known_faults
from ray_app.datasets.config import DatasetSource
from ray_app.datasets.labelling import (
    SPOILED,
    Hash,
    LabelledBlock,
    Labeller,
    SkippedMembers,
    check_hashes,
    labels_of,
)
from ray_app.datasets.labels import INPUT, Labels, with_input
from ray_app.datasets.layouts import LAYOUTS, DatasetLayout, base, make_layout
from ray_app.errors import ConfigError, IdentityError, StorageError
from ray_app.images import ImageLimits
from ray_app.storage import Guard, Store, strip_secrets, urls
from ray_app.storage.errors import CLOSED_FOLDER

# Called with what is being done (`listed`, `labelled`) and the number of members so far; picklable.
Progress = Callable[[str, int], object]

_FORMAT = 1
UNFINISHED = ("manifest", "listing")  # what an unfinished index leaves
# One block is one task when labels are read, and one file of the index. Both hold a few hundred
# bytes per row.
_LISTED = archives.BlockPlan(batch_slots=1, max_block_members=4096, blocks_per_doubling=1)
_INDEXED = archives.BlockPlan(batch_slots=1, max_block_members=16_384, blocks_per_doubling=1)
_DIGESTED = ("label", "generator", "mask_uri", "prompt", "split", "group")

SAMPLE = "sample::"  # the shipped sample archive, wherever the package is installed


def silent(doing: str, members: int) -> None:
    """Reports nothing; a lambda could not travel to the tasks that list."""


def index_source(
    source: DatasetSource,
    store: Store,
    *,
    each: Each = in_turn,
    reading: Each = in_turn,
    progress: Progress = silent,
    requires_all_folders: bool = False,
) -> pa.Table:
    """The labelled rows of a source, as `read_index` gives them, of its `split` and `generators`
    alone.

    `source.at` is an index directory (or several), or is indexed into `store`, whose index of the
    same source is used again. Raises ConfigError as `write_index`, and for a split or generator
    that is not there; IdentityError where `store` has another source's index.
    """
    indexes = indexes_of(source)
    if not indexes:
        build_index(
            source,
            store,
            each=each,
            reading=reading,
            progress=progress,
            requires_all_folders=requires_all_folders,
        )
    return _chosen(pa.concat_tables(map(read_index, indexes or [store.url])), source)


@dataclass(frozen=True)
class IndexInfo:
    """What an index holds. `source`: of which it was made, without secrets; `digest`: over ids and
    labels of all rows in order.

    A source that changes later is not indexed again: an index records what was learnt from.

    `counts`: rows per (split, label, generator); `published`: for each number of the layout that is
    found here, whether it `agrees`; `left_out`: members that are no rows, by reason; `unreadable`:
    rows known to have no readable image, by reason; `repeated`: members that the source lists more
    than once.
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

    def fault_lines(self, split: str | None = None, generators: Sequence[str] = ()) -> list[str]:
        """A line for each documented fault that rows of this split (None: any), and their fakes of
        these generators, may have.
        """
        counts = [one for one in self.counts if split is None or one["split"] in split.split("+")]
        counts = [
            one
            for one in counts
            if one["label"] == "real" or not generators or one["generator"] in generators
        ]
        strata = {(one["split"], one["label"], one["generator"]): one["rows"] for one in counts}
        faults = known_faults.faults_of({"layout": self.layout, **self.source})
        spoiled = [
            f"left out: {one['files']:,} × {one['why']}"
            for one in self.left_out
            if one["why"] == SPOILED
        ]
        spoiled += [
            f"{one['why']}, for example {one['example']}"
            for one in self.left_out
            if CLOSED_FOLDER in one["why"]
        ]
        return (
            known_faults.fault_lines(
                faults, strata, left_out=self.source.get("leave_out_faults", False)
            )
            + spoiled
        )

    @property
    def agrees(self) -> bool | None:
        """Whether all published numbers that could be compared are met; None where there was none."""
        compared = [one["agrees"] for one in self.published if one["agrees"] is not None]
        return all(compared) if compared else None


def build_index(
    source: DatasetSource,
    store: Store,
    *,
    each: Each = in_turn,
    reading: Each = in_turn,
    progress: Progress = silent,
    requires_all_folders: bool = False,
) -> IndexInfo:
    """Index a source into `store`, or return what the index there holds if it is of the same
    source.

    Args:
        source: The archive and its layout.
        store: Where the index is.
        each: Runs the steps of listing and labelling.
        reading: Runs what reads whole images.
        progress: Called with what is done and the number of members so far.
        requires_all_folders: Whether to refuse a source with a folder that cannot be listed, as a
            training does.

    Returns:
        A description of the index.

    Raises:
        ConfigError: As `index_source`.
        StorageError: The source is unreachable, or a required folder cannot be listed.
    """
    told = identity(source)
    if (info := read_info(store)) is not None:
        if info.source != told:
            raise IdentityError(
                f"{store.url} is the index of another source: {_difference(info.source, told)}",
                hint="another --out",
            )
        return info
    archive, layout = archive_of(source, store)
    try:
        chosen: dict[str, Any] = {"hashes": source.hashes, "limit": source.limit, "source": told}
        chosen["requires_all_folders"] = requires_all_folders
        return write_index(
            store, archive, layout, each=each, reading=reading, progress=progress, **chosen
        )
    except ConfigError:
        for folder in UNFINISHED:
            store.clear(folder)
        raise


def check_source(source: DatasetSource, store: Store) -> None:
    """Whether a source can be indexed into `store`, as far as its beginning shows: nothing is
    written. Raises as `index_source`.
    """
    if not indexes_of(source):
        archive, _ = archive_of(source, store)
        archive.check()


def guard_of_source(source: DatasetSource, store: Store) -> Guard:
    """Which web servers may be read for the images of a source that `index_source` indexed."""
    stores = [Store.open(place) for place in indexes_of(source)] or [store]
    return reduce(
        Guard.joined, map(archives.guard_of, stores), Guard(allow_private=source.allow_private)
    )


def write_index(
    store: Store,
    archive: archives.Archive,
    layout: DatasetLayout,
    *,
    hashes: Sequence[Hash] = (),
    limits: ImageLimits = ImageLimits(),  # noqa: B008 - frozen
    limit: int | None = None,
    source: Mapping[str, Any] | None = None,
    requires_all_folders: bool = False,
    each: Each = in_turn,
    reading: Each = in_turn,
    progress: Progress = silent,
) -> IndexInfo:
    """List an archive and label its members, over whatever unfinished index the store has. `limit`:
    only its first so many members. `each` lists and labels; `reading` does what reads whole images,
    for `hashes`, where it is more than a block of them.

    Raises ConfigError for a member without a known label, for one that is listed twice with other
    labels, or when no labelled image is left; StorageError as a listing does.
    """
    check_hashes(hashes)
    for folder in UNFINISHED:
        store.clear(folder)
    listing = store.below("listing")
    listed = archives.list_members(
        listing, archive, _LISTED, each=each, progress=partial(progress, "listed"), limit=limit
    )
    assert listed is not None, "a first listing is never the same as one before"
    if listed.closed_folders and requires_all_folders:
        raise closed_folders_error(listed.closed_folders, listed.closed_example)
    layout = layout.prepared(_members(listing))
    if listed.listed > listed.members:
        _refuse_contradictions(archive, layout, limit)
    spoiling = known_faults.faults_of(source) if source and source.get("leave_out_faults") else ()
    labeller = Labeller(listing, layout, hashes, limits, archive.fetcher, spoiling)
    tally, refs = _Tally(partial(progress, "labelled")), archives.read_blocks(listing, 0)
    with closing((reading if hashes and len(refs) > 1 else each)(labeller, refs)) as labelled:
        written = write_selected(
            store, tally.rows(labelled), _INDEXED, INPUT, archive.fetcher.guard
        )
    if not written.members:
        reasons = "; ".join(
            f"{one['files']} × {one['why']}, for example {one['example']}"
            for one in tally.left_out.counted()
        )
        hint = (
            f"the layout expects, for example, {layout.example}"
            if layout.example
            else "another --layout?"
        )
        raise ConfigError(f"no labelled image: {reasons}", hint=hint)
    info = IndexInfo(
        source=source or {},
        layout=next(
            (name for name, kind in LAYOUTS.items() if type(layout) is kind), type(layout).__name__
        ),
        hashes=list(hashes),
        rows=written.members,
        digest=tally.digest.hexdigest(),
        counts=tally.by_stratum(),
        published=compared(layout.published, tally.subsets),
        left_out=tally.left_out.counted(),
        unreadable=tally.unreadable.counted(),
        repeated=listed.listed - listed.members,
    )
    store.write("index.json", json.dumps(asdict(info), indent=1, ensure_ascii=False).encode())
    store.clear("listing")
    return info


def closed_folders_error(count: int, example: str) -> StorageError:
    """Return what to raise if folders of a training's source cannot be listed: the detector would
    not learn from their images.
    """
    others = f", and {count - 1} more" if count > 1 else ""
    hint = f"check the permissions of the path, or leave the folder out with exclude: ['{urls.folder_pattern(example)}']"
    return StorageError(f"{example}: {CLOSED_FOLDER}{others}", hint=hint)


def read_index(place: str) -> pa.Table:
    """All rows of an index in order: the columns of a manifest, `input` being INPUT. Raises
    ConfigError where there is no index.
    """
    store = Store.open(place)
    if not has_index(store) or read_info(store) is None:
        raise ConfigError(
            f"{store.url}: no index",
            hint="make one: touchstone data index SOURCE --layout NAME --out DIR",
        )
    return pa.concat_tables(
        with_input(archives.read_block(store, ref)) for ref in archives.read_blocks(store, 0)
    )


def read_info(store: Store) -> IndexInfo | None:
    """What the index of a store holds; None where there is none, or an unfinished one. Raises
    ConfigError for one of another version.
    """
    try:
        fields = json.loads(store.read("index.json"))
    except FileNotFoundError:
        return None
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or "digest" not in fields:
        raise ConfigError(f"{store.url}/index.json is not of Touchstone", hint="give another --out")
    if fields.get("format") != _FORMAT:
        raise ConfigError(
            f"{store.url}/index.json is of another version of Touchstone",
            hint="index the source again, into another --out",
        )
    return IndexInfo(**fields)


def is_index(place: str) -> bool:
    """Whether a source is an index: what a web server has, and KIND::PLACE, are never taken for
    one.
    """
    return (
        "::" not in place
        and urls.scheme_of(place) not in ("http", "https")
        and has_index(Store.open(place))
    )


def has_index(store: Store) -> bool:
    """Whether there is a whole index, and not just something called index.json."""
    return store.exists("index.json") and archives.read_complete(store, 0) is not None


def write_divided(
    store: Store, given: Store, splits: pa.Array, source: Mapping[str, Any]
) -> IndexInfo:
    """The index `given` with other splits (rows,), null = none, written over whatever `store` has.
    `source`: more facts of it.
    """
    info = read_info(given)
    assert info is not None, "who divides an index has read it"
    store.clear("manifest")
    tally = _Tally(lambda members: None)
    written = write_selected(
        store, tally.rows(_with_splits(given, splits)), _INDEXED, INPUT, archives.guard_of(given)
    )
    divided = replace(
        info,
        source={**info.source, **source},
        rows=written.members,
        digest=tally.digest.hexdigest(),
        counts=tally.by_stratum(),
    )
    store.write("index.json", json.dumps(asdict(divided), indent=1, ensure_ascii=False).encode())
    return divided


def _with_splits(given: Store, splits: pa.Array) -> Iterator[LabelledBlock]:
    start = 0
    for ref in archives.read_blocks(given, 0):
        rows = archives.read_block(given, ref)
        rows, start = (
            with_input(rows, split=splits.slice(start, len(rows)).cast(pa.string())),
            start + len(rows),
        )
        yield LabelledBlock(rows, Counter(), SkippedMembers(), SkippedMembers())


@dataclass
class _Tally:
    """Counts and digest of the rows that are written."""

    progress: Callable[[int], object]
    members: int = 0
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    subsets: Counter[str] = field(default_factory=Counter)
    left_out: SkippedMembers = field(default_factory=SkippedMembers)
    unreadable: SkippedMembers = field(default_factory=SkippedMembers)
    digest: Any = field(default_factory=hashlib.sha256)

    def rows(self, blocks: Iterable[LabelledBlock]) -> Iterator[pa.Table]:
        for block in blocks:
            self.members += len(block.rows) + block.left_out.counts.total()
            self.progress(self.members)
            self.subsets += block.subsets
            self.left_out.merge(block.left_out)
            self.unreadable.merge(block.unreadable)
            columns = {
                name: block.rows["input"].combine_chunks().field(name).to_pylist()
                for name in _DIGESTED
            }
            self.counts.update(
                zip(
                    (split or "" for split in columns["split"]),
                    columns["label"],
                    columns["generator"],
                    strict=True,
                )
            )
            for row in zip(block.rows["image_id"].to_pylist(), *columns.values(), strict=True):
                self.digest.update(repr(row).encode("utf-8", "surrogateescape"))
            yield block.rows

    def by_stratum(self) -> list[dict[str, Any]]:
        return [
            {"split": split or None, "label": label, "generator": generator, "rows": rows}
            for (split, label, generator), rows in sorted(self.counts.items())
        ]


def _members(listing: Store) -> Iterator[archives.ListedMember]:
    for ref in archives.read_blocks(listing, 0):
        yield from map(archives.as_listed, archives.member_rows(archives.read_block(listing, ref)))


def _refuse_contradictions(
    archive: archives.Archive, layout: DatasetLayout, limit: int | None
) -> None:
    """Raises ConfigError for a member that is listed more than once and not always with the same
    labels; lists the archive anew.
    """
    ids, counts = np.unique(
        np.fromiter((archives.image_id(item) for item in islice(archive, limit)), np.int64),
        return_counts=True,
    )
    repeated = set(ids[counts > 1].tolist())
    first: dict[tuple[object, ...], Labels | None] = {}
    for item in islice(archive, limit):
        if archives.image_id(item) in repeated:
            labels = labels_of(item, layout)
            before = first.setdefault(
                (item.uri, item.member, item.occurrence, item.version), labels
            )
            if labels != before:
                raise base.contradiction(
                    item, f"listed more than once, as [{before}] and as [{labels}]"
                )


def compared(published: Mapping[str, int], found: Mapping[str, int]) -> list[dict[str, Any]]:
    """Each subset that is there with its published number, if it has one. What is published and not
    there was not requested.
    """
    return [
        {
            "subset": name,
            "rows": rows,
            "published": published.get(name),
            "agrees": rows == published[name] if name in published else None,
        }
        for name, rows in sorted(found.items())
    ]


def archive_of(source: DatasetSource, store: Store) -> tuple[archives.Archive, DatasetLayout]:
    """A source's members, without what lies in `store`, and the layout that labels them. Raises
    ConfigError.
    """
    settings: dict[str, Any] = {
        "skip": [store.url],
        "columns": source.columns,
        "limits": source.container_limits,
    }
    places = [
        f"list::{config_root() / 'sample' / 'archive-labels.csv'}" if place == SAMPLE else place
        for place in source.at
    ]
    archive = archives.Archive(
        places, source.include, source.exclude, allow_private=source.allow_private, **settings
    )
    return archive, make_layout(source.layout, source.arguments)


def indexes_of(source: DatasetSource) -> Sequence[str]:
    """The places of a source, if all are indexes, none if none is. Raises ConfigError for some, and
    for keys that an index has settled.
    """
    found = [place for place in source.at if is_index(place)]
    if found and len(found) < len(source.at):
        raise ConfigError(
            f"{', '.join(found)}: an index, but not {', '.join(set(source.at) - set(found))}",
            hint="make two sources of it",
        )
    settled = [
        key
        for key in ("arguments", "include", "exclude", "limit", "leave_out_faults")
        if getattr(source, key)
    ]
    if found and settled:
        raise ConfigError(
            f"{', '.join(found)}: an index; {', '.join(settled)} had to be said when it was made"
        )
    for place in found:
        info = read_info(Store.open(place))
        if info is not None and (missing := set(source.hashes) - set(info.hashes)):
            raise ConfigError(
                f"{place}: an index without {', '.join(sorted(missing))}",
                hint="touchstone data index … --hash sha256,phash",
            )
    return found


def identity(source: DatasetSource) -> dict[str, Any]:
    """What decides which rows an index has, without secrets."""
    keys = {
        "layout",
        "include",
        "exclude",
        "columns",
        "container_limits",
        "limit",
        "hashes",
        "leave_out_faults",
    }
    at = [place if place == SAMPLE else archives.name_of(place) for place in source.at]
    arguments = {
        name: strip_secrets(value) if isinstance(value, str) else value
        for name, value in source.arguments.items()
    }
    return {"at": at, "arguments": arguments, **source.model_dump(mode="json", include=keys)}


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    return "; ".join(f"{key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in keys)


def _chosen(rows: pa.Table, source: DatasetSource) -> pa.Table:
    """The rows of the source's splits, and of them the reals and the fakes of its generators."""
    labels = rows["input"].combine_chunks()
    kept = np.ones(len(rows), bool)
    if source.split is not None:
        require_names(
            source, "split", source.split.split("+"), labels.field("split").unique().to_pylist()
        )
        kept = _equal(labels.field("split"), source.split.split("+"))
    if source.generators:
        require_names(
            source,
            "generator",
            source.generators,
            labels.field("generator").filter(pa.array(kept)).unique().to_pylist(),
        )
        kept &= _equal(labels.field("label"), ["real"]) | _equal(
            labels.field("generator"), source.generators
        )
    return rows.filter(pa.array(kept))


def require_names(
    source: DatasetSource, what: str, wanted: Sequence[str], there: Iterable[str | None]
) -> None:
    """Raises ConfigError, with the nearest names or all, for the first split or generator that is
    not there.
    """
    names = sorted(filter(None, there))
    for name in set(wanted) - set(names):
        near = ", ".join(difflib.get_close_matches(name, names, 3))
        hint = (
            f"near it: {near}"
            if near
            else f"there are {', '.join(names[:20])}"
            if names
            else "its rows have none"
        )
        raise ConfigError(f"{', '.join(source.at)}: no {what} '{name}'", hint=hint)


def _equal(column: pa.Array, values: Sequence[str]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = np.asarray(
        pc.is_in(column, value_set=pa.array(list(values), pa.string()))
    )
    return found
