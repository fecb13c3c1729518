"""Build and read the index of a labelled archive: a table of its images with their labels.

An index is a folder. Each row of its table is one member, an image of the archive.

    manifest/0/…   the rows as Parquet files, with the labels in the column `input` (INPUT)
    index.json     the source and a summary of the content; written last, it completes the index
    listing/…      the listing of the source, only while the index is being built

`index_source` returns the rows of a source of training data, and indexes the source if necessary.
`build_index` and `write_index` write an index, and `read_index` and `read_info` read it.
`write_split_index` writes a copy with other splits. An index is written as a stream, so that its
rows are never all in memory.
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
from ray_app.archives import MapFunction, map_serial
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
    label_member,
)
from ray_app.datasets.labels import INPUT, Labels, describe_spellings, with_input
from ray_app.datasets.layouts import LAYOUTS, DatasetLayout, base, make_layout
from ray_app.errors import ConfigError, IdentityError, StorageError
from ray_app.images import ImageLimits
from ray_app.storage import Guard, Store, strip_secrets, urls
from ray_app.storage.errors import CLOSED_FOLDER
from ray_app.storage.output_kinds import refuse_others

# Called with the kind of work (`listed`, `labelled`) and the number of members so far. It is
# picklable.
Progress = Callable[[str, int], object]

_FORMAT = 1
# The folders that an unfinished index leaves, with all names that they may contain.
_UNFINISHED = {"manifest": {"0"}, "listing": {"manifest", "ids"}}
# A block of the listing is one task, and a block of the manifest one file. Both hold a few hundred
# bytes per row.
_LISTING_PLAN = archives.BlockPlan(batch_slots=1, max_block_members=4096, blocks_per_doubling=1)
_INDEX_PLAN = archives.BlockPlan(batch_slots=1, max_block_members=16_384, blocks_per_doubling=1)
_DIGEST_FIELDS = ("label", "generator", "mask_uri", "prompt", "split", "group")

SAMPLE = "sample::"  # The sample archive that the installed package contains.


def report_nothing(doing: str, members: int) -> None:
    """Do nothing. This is the default of the argument `progress` of `index_source` and others.

    It is a named function because Ray tasks cannot pickle a lambda.
    """


def index_source(
    source: DatasetSource,
    store: Store,
    *,
    each: MapFunction = map_serial,
    reading: MapFunction = map_serial,
    progress: Progress = report_nothing,
    requires_all_folders: bool = False,
) -> pa.Table:
    """Return the labelled rows of a source that its `split` and `generators` select.

    If `source.at` names one or several indexes, their rows are read. Otherwise the source is first
    indexed into `store`, unless `store` has its index already. `each` and `reading` apply a
    function to parts of the work, like `map`. `reading` labels files if hashes are computed, which
    requires whole images to be read. The rows are as in `read_index`. Errors are those of
    `build_index`, and ConfigError if the source has no such split or generator.
    """
    indexes = list_indexes(source)
    if not indexes:
        build_index(
            source,
            store,
            each=each,
            reading=reading,
            progress=progress,
            requires_all_folders=requires_all_folders,
        )
    return _select_rows(pa.concat_tables(map(read_index, indexes or [store.url])), source)


@dataclass(frozen=True)
class IndexInfo:
    """A summary of an index: the content of its file index.json.

    The index is not updated if its source changes later, because it records which images a network
    was trained on.

    Attributes:
        source: The settings of the source that decide the rows, without secrets.
        hashes: Names of the hashes that the rows have: `sha256`, `phash`, or none.
        digest: SHA-256 over ids and labels of all rows in order.
        counts: Number of rows for each combination of split, label, and generator.
        published: For each subset of the data set that has rows, such as a split, a dictionary with
            the number of rows and the published number. `compare_counts` describes its keys.
        left_out: For each reason to leave out files of the source, a dictionary. Its keys are `why`
            (the reason), `files` (their number), and `example`.
        unreadable: For each reason why images of rows cannot be read, a dictionary with the same
            keys as in `left_out`.
        repeated: Number of files that were left out because the source lists them repeatedly.
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
        """Return lines that warn about problems of this data set, to print for the user.

        The lines name the documented faults that some rows may have, such as wrong prompts. They
        also name images that were left out because of a fault, folders that could not be listed,
        and generators in several spellings. `split` is the split whose rows count, or several, such
        as "train+test". The fakes of `generators`, by default all, and all real images count.
        """
        counts = [
            entry for entry in self.counts if split is None or entry["split"] in split.split("+")
        ]
        counts = [
            entry
            for entry in counts
            if entry["label"] == "real" or not generators or entry["generator"] in generators
        ]
        strata = {
            (entry["split"], entry["label"], entry["generator"]): entry["rows"] for entry in counts
        }
        faults = known_faults.find_faults({"layout": self.layout, **self.source})
        spoiled = [
            f"left out: {entry['files']:,} × {entry['why']}"
            for entry in self.left_out
            if entry["why"] == SPOILED
        ]
        spoiled += [
            f"{entry['why']}, for example {entry['example']}"
            for entry in self.left_out
            if CLOSED_FOLDER in entry["why"]
        ]
        return [
            *known_faults.fault_lines(
                faults, strata, left_out=self.source.get("leave_out_faults", False)
            ),
            *spoiled,
            *describe_spellings(generator for _, label, generator in strata if label == "fake"),
        ]

    @property
    def agrees(self) -> bool | None:
        """Whether each subset, such as a split, has the number of rows that its authors published.

        None if no subset of this index has a published number.
        """
        results = [entry["agrees"] for entry in self.published if entry["agrees"] is not None]
        return all(results) if results else None


def build_index(
    source: DatasetSource,
    store: Store,
    *,
    each: MapFunction = map_serial,
    reading: MapFunction = map_serial,
    progress: Progress = report_nothing,
    requires_all_folders: bool = False,
) -> IndexInfo:
    """Index a source into `store`, unless `store` has an index of the same source already.

    `each` and `reading` are as in `index_source`. A training sets `requires_all_folders`, because
    it would otherwise miss images. Raises ConfigError if the source is invalid or cannot be
    labelled (`write_index`), or `store` has other files (`check_free`), and IdentityError if
    `store` has the index of another source.
    """
    description = describe_source(source)
    if (info := read_info(store)) is not None:
        if info.source != description:
            raise IdentityError(
                f"{store.url} is the index of another source: {_describe_difference(info.source, description)}",
                hint="give another --out",
            )
        return info
    check_free(store)
    archive, layout = open_archive(source, store)
    try:
        options: dict[str, Any] = {
            "hashes": source.hashes,
            "limit": source.limit,
            "source": description,
        }
        options["requires_all_folders"] = requires_all_folders
        return write_index(
            store, archive, layout, each=each, reading=reading, progress=progress, **options
        )
    except ConfigError:
        _clear_unfinished(store)
        raise


def check_free(store: Store) -> None:
    """Check that an index can be written to a folder without deleting other files.

    Raises ConfigError if the folder has results of another kind of command, or a folder with the
    name of one that an index deletes.
    """
    refuse_others(store, "index.json")
    for folder, own in _UNFINISHED.items():
        if others := {*store.names(folder), *store.folders(folder)} - own:
            raise ConfigError(
                f"{store.url}/{folder} contains {min(others)}, which is not part of an index",
                hint="set another --out",
            )


def _clear_unfinished(store: Store) -> None:
    for folder in _UNFINISHED:
        store.clear(folder)


def check_source(source: DatasetSource, store: Store) -> None:
    """Check that a source can be indexed, by reading only its beginning. Nothing is written.

    If the source itself is an index, only its summary is read. Files of the source that are in
    `store` are ignored. Raises ConfigError if the source is invalid or no file passes its patterns.
    """
    if not list_indexes(source):
        archive, _ = open_archive(source, store)
        archive.check()


def get_source_guard(source: DatasetSource, store: Store) -> Guard:
    """Return the guard of an indexed source: the web servers from which its images may be fetched.

    It allows the servers that the user named and all servers with a public address. It also allows
    private networks if `source.allow_private` is set, or was set when the index in `store` was
    made.
    """
    stores = [Store.open(path) for path in list_indexes(source)] or [store]
    return reduce(
        Guard.merge, map(archives.load_guard, stores), Guard(allow_private=source.allow_private)
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
    each: MapFunction = map_serial,
    reading: MapFunction = map_serial,
    progress: Progress = report_nothing,
) -> IndexInfo:
    """List the files of an archive, label them, and write the index. Replace an unfinished index.

    `hashes` are computed from every image. `source` is for `IndexInfo.source`. `each` and `reading`
    are as in `index_source`. Raises ConfigError if no image has a label, the label of an image is
    unknown, or an image is listed twice with different labels.
    """
    check_hashes(hashes)
    _clear_unfinished(store)
    listing = store.subdir("listing")
    listing_info = archives.list_members(
        listing,
        archive,
        _LISTING_PLAN,
        each=each,
        progress=partial(progress, "listed"),
        limit=limit,
    )
    assert listing_info is not None, "a first listing has no earlier listing to equal"
    if listing_info.closed_folders and requires_all_folders:
        raise closed_folders_error(listing_info.closed_folders, listing_info.closed_example)
    layout = layout.prepare(_members(listing))
    if listing_info.listed > listing_info.members:
        _refuse_contradictions(archive, layout, limit)
    spoiling = known_faults.find_faults(source) if source and source.get("leave_out_faults") else ()
    labeller = Labeller(listing, layout, hashes, limits, archive.fetcher, spoiling)
    tally, blocks = _Tally(partial(progress, "labelled")), archives.read_blocks(listing, 0)
    with closing((reading if hashes and len(blocks) > 1 else each)(labeller, blocks)) as labelled:
        written = write_selected(
            store, tally.rows(labelled), _INDEX_PLAN, INPUT, archive.fetcher.guard
        )
    if not written.members:
        reasons = "; ".join(
            f"{entry['files']} × {entry['why']}, for example {entry['example']}"
            for entry in tally.left_out.to_json()
        )
        hint = (
            f"check the paths: the layout expects, for example, {layout.example}"
            if layout.example
            else "try another --layout"
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
        published=compare_counts(layout.published, tally.subsets),
        left_out=tally.left_out.to_json(),
        unreadable=tally.unreadable.to_json(),
        repeated=listing_info.listed - listing_info.members,
    )
    store.write("index.json", json.dumps(asdict(info), indent=1, ensure_ascii=False).encode())
    store.clear("listing")
    return info


def closed_folders_error(count: int, example: str) -> StorageError:
    """Return the error for folders of training data that cannot be listed.

    Such folders are an error, because the training run would miss their images.
    """
    more = f", and {count - 1} more" if count > 1 else ""
    hint = f"check the permissions of the path, or leave the folder out with exclude: ['{urls.make_folder_pattern(example)}']"
    return StorageError(f"{example}: {CLOSED_FOLDER}{more}", hint=hint)


def read_index(path: str) -> pa.Table:
    """Return all rows of an index in order, one per image.

    The column `input` has its labels, as a struct with the fields of INPUT. The other columns, such
    as `image_id` and `uri`, identify the image. Raises ConfigError if there is no index.
    """
    store = Store.open(path)
    if not has_index(store) or read_info(store) is None:
        raise ConfigError(
            f"{store.url}: there is no index, or it is not complete",
            hint="make one by touchstone data index SOURCE --layout NAME --out DIR",
        )
    return pa.concat_tables(
        with_input(archives.read_block(store, ref)) for ref in archives.read_blocks(store, 0)
    )


def read_info(store: Store) -> IndexInfo | None:
    """Read the summary of an index from its file index.json.

    The result is None if there is no index, or an unfinished one. Raises ConfigError if index.json
    is not of an index, or of another version.
    """
    try:
        fields = json.loads(store.read("index.json"))
    except FileNotFoundError:
        return None
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or "digest" not in fields:
        raise ConfigError(
            f"{store.url}/index.json is not an index of Touchstone",
            hint="give another --out directory",
        )
    if fields.get("format") != _FORMAT:
        raise ConfigError(
            f"{store.url}/index.json has the format {fields.get('format')!r}, must be {_FORMAT}: another version of Touchstone wrote it",
            hint="index the source again into another --out",
        )
    return IndexInfo(**fields)


def is_index(path: str) -> bool:
    """Return whether a path or URL is the folder of a complete index.

    The result is False for http and https URLs, and for sources with a prefix such as `list::`.
    """
    return (
        "::" not in path
        and urls.get_scheme(path) not in ("http", "https")
        and has_index(Store.open(path))
    )


def has_index(store: Store) -> bool:
    """Return whether a store has a complete index, not just a file named index.json.

    `is_index` takes a path or URL instead of a store.
    """
    return store.exists("index.json") and archives.read_complete(store, 0) is not None


def write_split_index(
    store: Store, original: Store, splits: pa.Array, source: Mapping[str, Any]
) -> IndexInfo:
    """Write a copy of an index in which each row has a new split (rows,), null for no split.

    An index that already is in `store` is replaced. `source` has entries to add to
    `IndexInfo.source` of the copy.
    """
    info = read_info(original)
    assert info is not None, "the caller has read the index"
    store.clear("manifest")
    tally = _Tally(lambda members: None)
    written = write_selected(
        store,
        tally.rows(_with_splits(original, splits)),
        _INDEX_PLAN,
        INPUT,
        archives.load_guard(original),
    )
    split_info = replace(
        info,
        source={**info.source, **source},
        rows=written.members,
        digest=tally.digest.hexdigest(),
        counts=tally.by_stratum(),
    )
    store.write("index.json", json.dumps(asdict(split_info), indent=1, ensure_ascii=False).encode())
    return split_info


def _with_splits(original: Store, splits: pa.Array) -> Iterator[LabelledBlock]:
    start = 0
    for ref in archives.read_blocks(original, 0):
        rows = archives.read_block(original, ref)
        rows, start = (
            with_input(rows, split=splits.slice(start, len(rows)).cast(pa.string())),
            start + len(rows),
        )
        yield LabelledBlock(rows, Counter(), SkippedMembers(), SkippedMembers())


@dataclass
class _Tally:
    """Counts and digest of the written rows."""

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
                for name in _DIGEST_FIELDS
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
        yield from map(
            archives.to_listed_member, archives.rows_to_members(archives.read_block(listing, ref))
        )


def _refuse_contradictions(
    archive: archives.Archive, layout: DatasetLayout, limit: int | None
) -> None:
    """Raise ConfigError for a member that is listed more than once with different labels.

    This lists the archive again.
    """
    ids, counts = np.unique(
        np.fromiter((archives.image_id(item) for item in islice(archive, limit)), np.int64),
        return_counts=True,
    )
    repeated = set(ids[counts > 1].tolist())
    first: dict[tuple[object, ...], Labels | None] = {}
    for item in islice(archive, limit):
        if archives.image_id(item) in repeated:
            labels = label_member(item, layout)
            first_labels = first.setdefault(
                (item.uri, item.member, item.occurrence, item.version), labels
            )
            if labels != first_labels:
                raise base.make_contradiction(
                    item, f"listed more than once, as [{first_labels}] and as [{labels}]"
                )


def compare_counts(published: Mapping[str, int], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Compare the rows of an index with the numbers that the authors of the data set published.

    The numbers are compared per subset, such as a split. A published subset without rows is left
    out, because it was not requested. The keys of the result are `subset`, `rows`, `published`, and
    `agrees`. The last two are None if no number is published.
    """
    return [
        {
            "subset": name,
            "rows": rows,
            "published": published.get(name),
            "agrees": rows == published[name] if name in published else None,
        }
        for name, rows in sorted(counts.items())
    ]


def open_archive(source: DatasetSource, store: Store) -> tuple[archives.Archive, DatasetLayout]:
    """Return the archive of a source, which lists its files, and the layout that labels them.

    The archive skips files in `store`.
    """
    settings: dict[str, Any] = {
        "skip": [store.url],
        "columns": source.columns,
        "limits": source.container_limits,
    }
    paths = [
        f"list::{config_root() / 'sample' / 'archive-labels.csv'}" if path == SAMPLE else path
        for path in source.at
    ]
    archive = archives.Archive(
        paths, source.include, source.exclude, allow_private=source.allow_private, **settings
    )
    return archive, make_layout(source.layout, source.arguments)


def list_indexes(source: DatasetSource) -> Sequence[str]:
    """Return the paths of a source if all of them are indexes, or an empty list if none is.

    Raises ConfigError if only some paths are indexes, or an index lacks a hash that the source
    requires, or the source sets `arguments`, `include`, `exclude`, `limit`, or `leave_out_faults`,
    which apply only when an index is built.
    """
    indexes = [path for path in source.at if is_index(path)]
    if indexes and len(indexes) < len(source.at):
        raise ConfigError(
            f"{', '.join(indexes)} is an index, but {', '.join(set(source.at) - set(indexes))} is not, and a source cannot mix both",
            hint="write two sources, one whose `at` has only indexes, and one for all else",
        )
    fixed_keys = [
        key
        for key in ("arguments", "include", "exclude", "limit", "leave_out_faults")
        if getattr(source, key)
    ]
    if indexes and fixed_keys:
        raise ConfigError(
            f"{', '.join(indexes)} is an index: {', '.join(fixed_keys)} must be set when it is made, not when it is read",
            hint="make another index with these settings by touchstone data index, and remove them here",
        )
    for path in indexes:
        info = read_info(Store.open(path))
        if info is not None and (missing := set(source.hashes) - set(info.hashes)):
            raise ConfigError(
                f"{path}: the index has no column {', '.join(sorted(missing))}, which the setting `hashes` of the source needs",
                hint="make the index again with touchstone data index … --hash sha256,phash, or remove `hashes` from the source",
            )
    return indexes


def describe_source(source: DatasetSource) -> dict[str, Any]:
    """Return the settings of a source that decide which rows its index has, without secrets.

    `IndexInfo.source` records them. An existing index is used again only if they are equal.
    """
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
    at = [path if path == SAMPLE else archives.canonical_name(path) for path in source.at]
    arguments = {
        name: strip_secrets(value) if isinstance(value, str) else value
        for name, value in source.arguments.items()
    }
    return {"at": at, "arguments": arguments, **source.model_dump(mode="json", include=keys)}


def _describe_difference(existing: Mapping[str, Any], requested: Mapping[str, Any]) -> str:
    keys = [key for key in {**existing, **requested} if existing.get(key) != requested.get(key)]
    return "; ".join(
        f"{key}: {existing.get(key)!r} there, {requested.get(key)!r} here" for key in keys
    )


def _select_rows(rows: pa.Table, source: DatasetSource) -> pa.Table:
    """Return the rows of the source's splits, with all reals and the fakes of its generators."""
    labels = rows["input"].combine_chunks()
    is_selected = np.ones(len(rows), bool)
    if source.split is not None:
        require_names(
            source, "split", source.split.split("+"), labels.field("split").unique().to_pylist()
        )
        is_selected = _is_in(labels.field("split"), source.split.split("+"))
    if source.generators:
        require_names(
            source,
            "generator",
            source.generators,
            labels.field("generator").filter(pa.array(is_selected)).unique().to_pylist(),
        )
        is_selected &= _is_in(labels.field("label"), ["real"]) | _is_in(
            labels.field("generator"), source.generators
        )
    return rows.filter(pa.array(is_selected))


def require_names(
    source: DatasetSource, kind: str, requested: Sequence[str], existing: Iterable[str | None]
) -> None:
    """Raise ConfigError if a requested split or generator does not exist.

    The hint lists similar names, or else up to 20 existing names. `kind` is `split` or `generator`.
    """
    names = sorted(filter(None, existing))
    for name in set(requested) - set(names):
        similar = ", ".join(difflib.get_close_matches(name, names, 3))
        hint = (
            f"try a similar name: {similar}"
            if similar
            else f"use one of {', '.join(names[:20])}"
            if names
            else "leave it out, because the rows have none"
        )
        raise ConfigError(f"{', '.join(source.at)}: no image has the {kind} '{name}'", hint=hint)


def _is_in(column: pa.Array, values: Sequence[str]) -> npt.NDArray[np.bool_]:
    is_equal: npt.NDArray[np.bool_] = np.asarray(
        pc.is_in(column, value_set=pa.array(list(values), pa.string()))
    )
    return is_equal
