"""What a source holds, told cheaply: files by their names (`matched`), rows by the footers of Parquet, labels by statistics or a few rows
(`survey`). For the dry run of a training, to which a terabyte on a hub costs a footer of each file and the first rows of some.
"""

import difflib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from ray_app.archives import Archive, Container, ListedMember
from ray_app.archives.containers.parquet import UNREADABLE, open_parquet
from ray_app.archives.sources import Opened
from ray_app.datasets import index, known_faults
from ray_app.datasets.config import DatasetSource
from ray_app.datasets.layouts.base import DatasetLayout, split_of
from ray_app.errors import ConfigError, SourceError, StorageError
from ray_app.storage import Store, base_of, is_pattern, list_objects, strip_secrets

MOST_BYTES = 64 * 2**30  # of containers: what holds less is counted row by row
_FILES, _ROWS, _AT_ONCE = 32, 64, 16  # sampled of each folder and split; of each file; read at once
_NAMES = 2000  # looked through for one near to what is not there


class Matched(NamedTuple):
    """What the names of a source's files tell; `files` and `size_bytes` are of all that pass its patterns."""

    archive: Archive
    layout: DatasetLayout
    files: int
    size_bytes: int
    containers: Sequence[Container]


class Kind(NamedTuple):
    """What rows are counted by; `subset`: the name that a published number goes by."""

    split: str | None
    subset: str
    label: str


class _Sampled(NamedTuple):
    value: Any  # of the column of labels
    kind: Kind
    place: int  # in the container: a row's number, or a byte


def matched(source: DatasetSource, store: Store) -> Matched | None:
    """The files that a source names; None for an index and the simulated set. Raises ConfigError, with near names, where there are none."""
    if source.at == (index.SIMULATED,) or index.indexes_of(source):
        return None
    archive, layout = index.archive_of(source, store)
    seen: list[str] = []
    files = found = size = 0
    containers: list[Container] = []
    try:
        for (path, item), passes in archive.selection.chosen(one for part in archive.sections() for one in part.found(archive.fetcher)):
            found, files, size = found + 1, files + passes, size + max(item.size_bytes, 0) * passes
            seen += [path] * (found < _NAMES)
            if passes and isinstance(item, Container):
                containers.append(item)
        if not files:
            raise archive.empty(found, 0)
    except ConfigError as error:
        wanted, there = (source.include, seen) if seen else (source.at, _names_near(source.at[0]))
        near = dict.fromkeys(name for one in wanted for name in difflib.get_close_matches(one, there, 3, 0.5))
        error.hint = "; ".join([f"near it: {', '.join(near)}"] * bool(near) + [error.hint or ""])
        raise
    return Matched(archive, layout, files, size, containers)


def _names_near(place: str) -> list[str]:
    """What lies in the nearest folder above a place, or above its pattern, that is there."""
    base = base_of(place) if is_pattern(place) else place
    for _ in range(3):
        base = base.rpartition("/")[0] if base == place or not is_pattern(place) else base
        try:
            files = [info.uri for info in islice(list_objects(base), _NAMES)]
        except (ConfigError, StorageError):
            base = base.rpartition("/")[0]
            continue
        below = len(strip_secrets(base)) + 1
        return [*files, *{uri[:below] + uri[below:].partition("/")[0] for uri in files}]
    return []


def survey(source: DatasetSource, store: Store, names: Matched | None) -> dict[str, Any]:
    """What a source holds, as plain JSON; `store`: where its index is, if it has one there.

    `files` and `size_bytes` (null for an index) · `counted`: how, in words · `exact` · `splits`: of each `rows`, `real`, `fake`, and
    whether the source takes it · `real`, `fake`: of what it takes · `published`: rows beside their published numbers · `faults`: a line for
    each documented one. Raises ConfigError for a split that is not there, and where no row has a label.
    """
    places = (names is None and index.indexes_of(source)) or [store.url]
    infos = [info for place in places if (info := index.read_info(Store.open(place))) is not None]
    rows, counted, exact = Counter[tuple[str | None, str]](), "every row", True
    for one in (count for info in infos for count in info.counts):
        rows[one["split"], one["label"]] += one["rows"]
    published: Sequence[Mapping[str, Any]] = [one for info in infos for one in info.published]
    faults = [line for info in infos for line in info.fault_lines(source.split, source.generators)]
    if not infos and names is not None:
        kinds, counted, exact = _estimated(names)
        subsets = Counter[str]()
        for kind, count in kinds.items():
            rows[kind.split, kind.label] += count
            subsets[kind.subset] += count
        published = index.compared(names.layout.published, subsets)
        faults = known_faults.lines_of(known_faults.faults_of(source.model_dump()), None, left_out=source.leave_out_faults)
    there = sorted({split for split, _ in rows}, key=lambda split: (split is None, split))
    index.require_names(source, "split", source.splits, pa.array(there, pa.string()))
    taken = [split for split in there if not source.splits or split in source.splits]
    splits = [
        {"split": split, "rows": rows[split, "real"] + rows[split, "fake"], "real": rows[split, "real"], "fake": rows[split, "fake"]}
        | {"taken": split in taken}
        for split in there
    ]
    labels = {name: sum(rows[split, name] for split in taken) if source.label in (None, name) else 0 for name in ("real", "fake")}
    told = {"files": names and names.files, "size_bytes": names and names.size_bytes, "counted": counted, "exact": exact, "splits": splits}
    return {"at": [strip_secrets(place) for place in source.at], "include": list(source.include), **told, **labels, "published": published,
            "faults": faults}  # fmt: skip


def _estimated(names: Matched) -> tuple[Mapping[Kind, int], str, bool]:
    """Rows of each kind, how they were counted, and whether that is exact. Raises ConfigError as the layout does."""
    groups = defaultdict[tuple[str, str | None], list[Container]](list)
    for one in names.containers:
        groups[one.uri.rpartition("/")[0], split_of(one.uri)].append(one)
    counts, rough = Counter[Kind](), Counter[str]()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for group in groups.values():
            picked = group[:: -(-len(group) // _FILES)]  # all along: the classes may stand one behind the other
            samples = [sample for sample in pool.map(partial(_sample, names), picked) if sample]
            rows = [row for sample in samples for row in sample]
            blocks = [block for blocks in pool.map(partial(_footer, names), group) for block in blocks]
            known = {value: {row.kind for row in rows if value is not None and row.value == value} for value, _ in blocks}
            for value, count in blocks:  # many row groups have one label, and their statistics say which
                counts.update({kind: count for kind in known[value] if len(known[value]) == 1})
            mixed = sum(count for value, count in blocks if len(known[value]) != 1)
            if rows and (mixed or not blocks):
                size = sum(one.size_bytes for one in group) * len(rows) // max(1, sum(sample[-1].place for sample in samples))
                total = mixed or size
                counts.update({kind: round(total * count / len(rows)) for kind, count in Counter(row.kind for row in rows).items()})
                rough.update(rows=len(rows), files=len(picked))
    if not counts:
        raise names.archive.empty(len(names.containers), 0)
    by = "the footers of Parquet" if all(one.kind == "parquet" for one in names.containers) else "the bytes of the first ones"
    labels = f"labels by {rough['rows']:,} rows of {rough['files']:,} files" if rough else "labels by their statistics"
    return counts, f"rows by {by}, {labels}", not rough


def _sample(names: Matched, container: Container) -> list[_Sampled]:
    """The first rows of a container that pass and have labels."""
    rows = []
    for (_, item), passes in islice(names.archive.selection.chosen(Opened((container,)).found(names.archive.fetcher)), _ROWS):
        if passes and isinstance(item, ListedMember) and item.place is not None and (labels := names.layout.labels(item)) is not None:
            kind = Kind(labels.split, names.layout.subset(item, labels), labels.label)
            rows.append(_Sampled(item.input.get(_label_column(names.layout)), kind, item.place.offset))
    return rows


def _footer(names: Matched, container: Container) -> list[tuple[Any, int]]:
    """Of each row group what its statistics say that all labels are, or None, and its rows; nothing of other formats and damaged files."""
    if container.kind != "parquet":
        return []
    try:
        with names.archive.fetcher.open(container.uri, container.version) as file:
            metadata = open_parquet(file).metadata
    except (SourceError, *UNREADABLE):
        return []
    places = [n for n in range(metadata.num_columns) if metadata.schema.column(n).path == _label_column(names.layout)]
    blocks = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return [(_constant(block.column(places[0]).statistics) if places else None, block.num_rows) for block in blocks]


def _constant(statistics: Any) -> Any:
    has_one = statistics is not None and statistics.has_min_max and not statistics.null_count and statistics.min == statistics.max
    return statistics.min if has_one else None


def _label_column(layout: DatasetLayout) -> str:
    return str(getattr(layout, "label", "label"))
