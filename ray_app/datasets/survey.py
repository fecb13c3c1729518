"""What a source holds (`survey`), for the dry run of a training: files by their names, then every
row; of what is too large for that, rows by the footers of Parquet, and labels by its statistics or
the first rows of some files.
"""

import difflib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from ray_app.archives import Archive, Container, ListedMember
from ray_app.archives.containers.parquet_reader import UNREADABLE, open_parquet
from ray_app.archives.members import UnreadableFolder
from ray_app.archives.progress import ProgressLog
from ray_app.archives.sources import Opened
from ray_app.datasets import index, known_faults
from ray_app.datasets.config import DatasetSource
from ray_app.datasets.labels import Labels
from ray_app.datasets.layouts.base import DatasetLayout, split_of
from ray_app.errors import ConfigError, SourceError, StorageError
from ray_app.storage import Store, base_of, list_objects, strip_secrets

MOST_BYTES = 64 * 2**30  # of containers: what holds less is counted row by row
_FILES, _ROWS, _AT_ONCE = 32, 64, 16  # sampled of each folder and split; of each file; read at once
_NAMES = 2000  # looked through for one near to what is not there


class Matched(NamedTuple):
    """What the names of a source's files tell; `files` and `size_bytes` are of all that pass its
    patterns.
    """

    archive: Archive
    layout: DatasetLayout
    containers: list[Container]
    files: int
    size_bytes: int


def survey(source: DatasetSource, store: Store, most_bytes: float = MOST_BYTES) -> dict[str, Any]:
    """What a source holds, as plain JSON. It is indexed into `store`, if that is not done, unless
    it has more bytes of Parquet than this.

    `files`, `size_bytes`: null for an index · `counted`: how, in words · `splits`: of each `real`,
    `fake`, and whether it is taken · `real`, `fake`: of what is taken · `published`: rows beside
    published numbers. Raises ConfigError with near names, or as an index.
    """
    indexes = index.indexes_of(source)
    infos, counted, exact = (
        [found for place in indexes if (found := index.read_info(Store.open(place)))],
        "every row",
        True,
    )
    names = None if indexes else matched(source, store)
    if (
        is_large := names is not None
        and names.size_bytes > most_bytes
        and {one.kind for one in names.containers} == {"parquet"}
    ):
        info, counted, exact = _estimated(source, names)
        infos = [info]
    elif not indexes:
        infos = [
            index.build_index(
                source, store, progress=ProgressLog("index"), requires_all_folders=True
            )
        ]
    rows = Counter[tuple[str | None, str]]()
    for one in (count for info in infos for count in info.counts):
        rows[one["split"], one["label"]] += one["rows"]
    there = sorted({split for split, _ in rows}, key=lambda split: (split is None, split))
    index.require_names(source, "split", source.split.split("+") if source.split else (), there)
    taken = [split for split in there if source.split is None or split in source.split.split("+")]
    faults = [line for info in infos for line in info.fault_lines(source.split, source.generators)]
    if is_large:  # what no sample has may be there
        faults = known_faults.fault_lines(
            known_faults.faults_of(source.model_dump()), None, left_out=source.leave_out_faults
        )
    told = {
        "at": [strip_secrets(place) for place in source.at],
        "include": list(source.include),
        "indexed": not is_large,
    }
    told |= {
        "files": names and names.files,
        "size_bytes": names and names.size_bytes,
        "counted": counted,
        "exact": exact,
    }
    told |= {label: sum(rows[split, label] for split in taken) for label in ("real", "fake")}
    splits = [
        {"split": one, "real": rows[one, "real"], "fake": rows[one, "fake"], "taken": one in taken}
        for one in there
    ]
    return {
        **told,
        "splits": splits,
        "published": [one for info in infos for one in info.published],
        "faults": faults,
    }


def matched(source: DatasetSource, store: Store) -> Matched:
    """The files that a source names. Raises ConfigError, with near names, where there are none."""
    archive, layout = index.archive_of(source, store)
    seen: list[str] = []
    containers: list[Container] = []
    found = files = size = 0
    try:
        for (path, item), passes in archive.selection.chosen(
            one for part in archive.sections() for one in part.found(archive.fetcher)
        ):
            if passes and isinstance(item, UnreadableFolder):
                raise index.closed_folders_error(1, item.uri)
            seen += [path] * (found < _NAMES)
            found, files, size = found + 1, files + passes, size + max(item.size_bytes, 0) * passes
            containers += [item] if passes and isinstance(item, Container) else []
        if not files:
            raise archive.empty(found, 0)
    except ConfigError as error:
        wanted, above = (
            source.include if seen else source.at,
            strip_secrets(base_of(source.at[0])).rpartition("/")[0],
        )
        with suppress(ConfigError, StorageError):  # nothing is there either
            seen = seen or [info.uri for info in islice(list_objects(above), _NAMES)]
        if near := dict.fromkeys(
            name for one in wanted for name in difflib.get_close_matches(one, seen, 3, 0.5)
        ):
            error.hint = f"near it: {', '.join(near)}; {error.hint}"
        raise
    return Matched(archive, layout, containers, files, size)


def _estimated(source: DatasetSource, names: Matched) -> tuple[index.IndexInfo, str, bool]:
    """About what an index would say, how that was found, and whether labels are exact. Raises
    ConfigError as the layout does.
    """
    groups = defaultdict[tuple[str, str | None], list[Container]](list)
    for one in names.containers:
        groups[one.uri.rpartition("/")[0], split_of(one.uri)].append(one)
    counts, subsets, rough = (
        Counter[tuple[str | None, str, str]](),
        Counter[str](),
        dict[str, tuple[int, int]](),
    )
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for group in groups.values():
            # all along: the classes may stand one behind the other
            picked = group[:: -(-len(group) // _FILES)]
            rows = [row for sample in pool.map(partial(_sample, names), picked) for row in sample]
            blocks = sum(pool.map(partial(_footer, names), group), Counter[Any]())
            for value, total in blocks.items():
                mine = [row for row in rows if value is not None and row[0] == value]
                is_sure = (
                    len({(labels.split, labels.label, subset) for _, labels, subset in mine}) == 1
                )
                mine = mine if is_sure else rows
                for place, (_, labels, subset) in enumerate(mine):
                    # together the total
                    share = total * (place + 1) // len(mine) - total * place // len(mine)
                    counts[labels.split, labels.label, labels.generator] += share
                    subsets[subset] += share
                rough |= {} if is_sure else {group[0].uri: (len(rows), len(picked))}
    if not counts.total():
        raise names.archive.empty(len(names.containers), len(names.containers))
    told = [
        dict(zip(("split", "label", "generator", "rows"), (*kind, count), strict=True))
        for kind, count in counts.items()
    ]
    published = index.compared(names.layout.published, subsets)
    info = index.IndexInfo(
        index.identity(source), source.layout, (), counts.total(), "", told, published, (), (), 0
    )
    how = (
        "{:,} rows of {:,} files".format(*map(sum, zip(*rough.values(), strict=True)))
        if rough
        else "their statistics"
    )
    return info, f"rows by the footers of Parquet, labels by {how}", not rough


def _sample(names: Matched, container: Container) -> list[tuple[Any, Labels, str]]:
    """The first rows of a container that pass and have labels: each one's value in their column,
    labels, and subset.
    """
    column, rows = getattr(names.layout, "label", "label"), []
    for (_, item), passes in islice(
        names.archive.selection.chosen(Opened((container,)).found(names.archive.fetcher)), _ROWS
    ):
        if (
            passes
            and isinstance(item, ListedMember)
            and item.refused is None
            and (labels := names.layout.labels(item)) is not None
        ):
            rows.append((item.input.get(column), labels, names.layout.subset(item, labels)))
    return rows


def _footer(names: Matched, container: Container) -> Counter[Any]:
    """Rows by what the statistics of their row groups say that all labels are, or None; nothing of
    a damaged file.
    """
    found, label = Counter[Any](), getattr(names.layout, "label", "label")
    with (
        suppress(SourceError, *UNREADABLE),
        names.archive.fetcher.open(container.uri, container.version) as file,
    ):
        metadata = open_parquet(file).metadata
        columns = [metadata.schema.column(place).path for place in range(metadata.num_columns)]
        for block in map(metadata.row_group, range(metadata.num_row_groups)):
            told: Any = block.column(columns.index(label)).statistics if label in columns else None
            is_one = (
                told is not None
                and told.has_min_max
                and not told.null_count
                and told.min == told.max
            )
            found[told.min if is_one else None] += block.num_rows
    return found
