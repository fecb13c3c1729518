"""Count the files and labels of a source of training data before training starts (`survey`).

A dry run of `touchstone train` prints the result. Files are matched by their names, then the source
is indexed. A source of more than 64 GiB of Parquet files is not indexed. Its rows are counted by
the footers of the files. Its labels are counted by the statistics of the label column in the
footers, or by the first rows of some files.
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
from ray_app.datasets.layouts.base import DatasetLayout, parse_split
from ray_app.errors import ConfigError, SourceError, StorageError
from ray_app.storage import Store, find_base, list_objects, strip_secrets

MAX_BYTES = 64 * 2**30  # A source of up to this size is read row by row.
_FILES = 32  # Files that are sampled per folder and split.
_ROWS = 64  # Rows that are sampled per file.
_AT_ONCE = 16  # Files that are read at once.
_NAMES = 2000  # Names that are searched for one similar to a missing name.


class MatchedFiles(NamedTuple):
    """The files that match the paths and patterns of a source of training data.

    Attributes:
        archive: The archive.
        layout: The layout that labels its members.
        containers: The containers (zip, tar, or Parquet files) that pass the source's patterns.
        files: Number of files that pass the patterns.
        size_bytes: Size of these files.
    """

    archive: Archive
    layout: DatasetLayout
    containers: list[Container]
    files: int
    size_bytes: int


def survey(source: DatasetSource, store: Store, max_bytes: float = MAX_BYTES) -> dict[str, Any]:
    """Count the files, splits, and labels of a source, and return the counts as plain JSON.

    The source is indexed into `store`, unless it is indexed already. If it consists of more than
    `max_bytes` of Parquet, it is not indexed. Rows are then counted by the footers of its files,
    and labels by statistics or samples.

    Args:
        source: The source.
        store: The folder of its index.
        max_bytes: Maximum size of Parquet files that are indexed.

    Returns:
        `at` and `include`: those of the source, without secrets.
        `indexed`: whether the source is indexed, so that every row was read.
        `files` and `size_bytes`: the number and size of its files, null for an index.
        `counted`: the method of counting, as text.
        `exact`: whether the numbers of real and fake images are exact.
        `real` and `fake`: the numbers of images in the splits that `source.split` names, or in all.
        `splits`: for each split the numbers `real` and `fake`, and whether `source.split` names it
        (`taken`).
        `published`: the dictionaries of `index.compare_counts`, one for each subset.
        `faults`: lines on documented faults of the data.

    Raises:
        ConfigError: The source cannot be indexed, or no file matches. The hint then lists similar
            names.
        StorageError: A folder of the source cannot be listed.
    """
    indexes = index.list_indexes(source)
    infos, method, is_exact = (
        [stored_info for path in indexes if (stored_info := index.read_info(Store.open(path)))],
        "every row",
        True,
    )
    matched_files = None if indexes else match_files(source, store)
    if (
        is_large := matched_files is not None
        and matched_files.size_bytes > max_bytes
        and {item.kind for item in matched_files.containers} == {"parquet"}
    ):
        info, method, is_exact = _estimate_index(source, matched_files)
        infos = [info]
    elif not indexes:
        infos = [
            index.build_index(
                source, store, progress=ProgressLog("index"), requires_all_folders=True
            )
        ]
    rows = Counter[tuple[str | None, str]]()
    for item in (count for info in infos for count in info.counts):
        rows[item["split"], item["label"]] += item["rows"]
    split_names = sorted({split for split, _ in rows}, key=lambda split: (split is None, split))
    index.require_names(
        source, "split", source.split.split("+") if source.split else (), split_names
    )
    taken_splits = [
        split for split in split_names if source.split is None or split in source.split.split("+")
    ]
    faults = [line for info in infos for line in info.fault_lines(source.split, source.generators)]
    if is_large:  # Rows that no sample has may exist.
        faults = known_faults.fault_lines(
            known_faults.find_faults(source.model_dump()), None, left_out=source.leave_out_faults
        )
    content = {
        "at": [strip_secrets(path) for path in source.at],
        "include": list(source.include),
        "indexed": not is_large,
    }
    content |= {
        "files": matched_files and matched_files.files,
        "size_bytes": matched_files and matched_files.size_bytes,
        "counted": method,
        "exact": is_exact,
    }
    content |= {
        label: sum(rows[split, label] for split in taken_splits) for label in ("real", "fake")
    }
    splits = [
        {
            "split": item,
            "real": rows[item, "real"],
            "fake": rows[item, "fake"],
            "taken": item in taken_splits,
        }
        for item in split_names
    ]
    return {
        **content,
        "splits": splits,
        "published": [item for info in infos for item in info.published],
        "faults": faults,
    }


def match_files(source: DatasetSource, store: Store) -> MatchedFiles:
    """List the files that a source names, and choose the layout that labels them.

    Args:
        source: The source.
        store: The folder of its index, whose own files are left out.

    Raises:
        ConfigError: No file matches. The hint lists similar names.
        StorageError: A folder of the source cannot be listed.
    """
    archive, layout = index.open_archive(source, store)
    seen_paths: list[str] = []
    containers: list[Container] = []
    n_listed = files = size = 0
    try:
        for (path, item), passes in archive.selection.filter_entries(
            item for part in archive.sections() for item in part.list_entries(archive.fetcher)
        ):
            if passes and isinstance(item, UnreadableFolder):
                raise index.closed_folders_error(1, item.uri)
            seen_paths += [path] * (n_listed < _NAMES)
            n_listed, files, size = (
                n_listed + 1,
                files + passes,
                size + max(item.size_bytes, 0) * passes,
            )
            containers += [item] if passes and isinstance(item, Container) else []
        if not files:
            raise archive.empty_error(n_listed, 0)
    except ConfigError as error:
        patterns, parent = (
            source.include if seen_paths else source.at,
            strip_secrets(find_base(source.at[0])).rpartition("/")[0],
        )
        with suppress(ConfigError, StorageError):  # The parent folder may be missing, too.
            seen_paths = seen_paths or [info.uri for info in islice(list_objects(parent), _NAMES)]
        if similar := dict.fromkeys(
            name
            for pattern in patterns
            for name in difflib.get_close_matches(pattern, seen_paths, 3, 0.5)
        ):
            error.hint = f"try a similar name: {', '.join(similar)}; {error.hint}"
        raise
    return MatchedFiles(archive, layout, containers, files, size)


def _estimate_index(
    source: DatasetSource, matched_files: MatchedFiles
) -> tuple[index.IndexInfo, str, bool]:
    """Estimate the content of an index.

    Returns:
        The content, the method as text, and whether the labels are exact.

    Raises:
        ConfigError: As the layout raises.
    """
    groups = defaultdict[tuple[str, str | None], list[Container]](list)
    for container in matched_files.containers:
        groups[container.uri.rpartition("/")[0], parse_split(container.uri)].append(container)
    counts, subsets, sampled_counts = (
        Counter[tuple[str | None, str, str]](),
        Counter[str](),
        dict[str, tuple[int, int]](),
    )
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for group in groups.values():
            # Files are sampled evenly, because the classes may follow one another.
            picked = group[:: -(-len(group) // _FILES)]
            rows = [
                row
                for sample in pool.map(partial(_sample_rows, matched_files), picked)
                for row in sample
            ]
            blocks = sum(pool.map(partial(_count_by_footer, matched_files), group), Counter[Any]())
            for value, total in blocks.items():
                matching = [row for row in rows if value is not None and row[0] == value]
                is_sure = (
                    len({(labels.split, labels.label, subset) for _, labels, subset in matching})
                    == 1
                )
                matching = matching if is_sure else rows
                for position, (_, labels, subset) in enumerate(matching):
                    # The parts of all rows add up to the total.
                    n_rows = total * (position + 1) // len(matching) - total * position // len(
                        matching
                    )
                    counts[labels.split, labels.label, labels.generator] += n_rows
                    subsets[subset] += n_rows
                sampled_counts |= {} if is_sure else {group[0].uri: (len(rows), len(picked))}
    if not counts.total():
        raise matched_files.archive.empty_error(
            len(matched_files.containers), len(matched_files.containers)
        )
    entries = [
        dict(zip(("split", "label", "generator", "rows"), (*stratum, count), strict=True))
        for stratum, count in counts.items()
    ]
    published = index.compare_counts(matched_files.layout.published, subsets)
    info = index.IndexInfo(
        index.describe_source(source),
        source.layout,
        (),
        counts.total(),
        "",
        entries,
        published,
        (),
        (),
        0,
    )
    label_method = (
        "{:,} rows of {:,} files".format(*map(sum, zip(*sampled_counts.values(), strict=True)))
        if sampled_counts
        else "their statistics"
    )
    return info, f"rows by the footers of Parquet, labels by {label_method}", not sampled_counts


def _sample_rows(
    matched_files: MatchedFiles, container: Container
) -> list[tuple[Any, Labels, str]]:
    """Return the first rows of a container that pass and have labels.

    Returns:
        For each row its value in the label column, its labels, and its subset.
    """
    column, rows = getattr(matched_files.layout, "label", "label"), []
    for (_, item), passes in islice(
        matched_files.archive.selection.filter_entries(
            Opened((container,)).list_entries(matched_files.archive.fetcher)
        ),
        _ROWS,
    ):
        if (
            passes
            and isinstance(item, ListedMember)
            and item.refused is None
            and (labels := matched_files.layout.labels(item)) is not None
        ):
            rows.append((item.input.get(column), labels, matched_files.layout.subset(item, labels)))
    return rows


def _count_by_footer(matched_files: MatchedFiles, container: Container) -> Counter[Any]:
    """Count rows by the label that the statistics of their row group show.

    The label is None if the statistics do not show a single one. A damaged file has no rows.
    """
    counts, label = Counter[Any](), getattr(matched_files.layout, "label", "label")
    with (
        suppress(SourceError, *UNREADABLE),
        matched_files.archive.fetcher.open(container.uri, container.version) as file,
    ):
        metadata = open_parquet(file).metadata
        columns = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
        for block in map(metadata.row_group, range(metadata.num_row_groups)):
            statistics: Any = (
                block.column(columns.index(label)).statistics if label in columns else None
            )
            is_one = (
                statistics is not None
                and statistics.has_min_max
                and not statistics.null_count
                and statistics.min == statistics.max
            )
            counts[statistics.min if is_one else None] += block.num_rows
    return counts
