"""Describe the labelled images of an evaluation (`describe_data`).

The facts are the number of images, their formats and sizes, and whether these file facts alone
separate fakes from real images.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.evaluation import accumulate
from ray_app.metrics import shortcut
from ray_app.metrics.values import MetricValue, undefined
from ray_app.reports.evaluation.result import DataInfo
from ray_app.reports.format import percent

FEATURES = accumulate.FACTS
MAX_CLASS_RATIO = 10.0
MAX_DISTANCE = 0.25
"""Maximum total variation distance between the formats, or sizes, of both classes.

It is the fraction of images that would need another format, or size, for the classes to be alike.
"""


class DescribedData(NamedTuple):
    """Facts about the labelled images.

    Attributes:
        info: Counts of the images.
        shortcut_auc: AUC of a classifier that sees only file facts, such as format and size. If it
            is high, a detector may have used these facts instead of the content.
        warnings: Sentences on differences between the real images and the fakes.
    """

    info: DataInfo
    shortcut_auc: MetricValue
    warnings: tuple[str, ...]


def describe_data(cells: accumulate.Cells, seed: int = 0) -> DescribedData:
    """Count the labelled images of an evaluation, and check if file facts separate the classes.

    File facts are the format, the size, and other metadata of a file.

    Args:
        cells: The labelled images.
        seed: Seed of the cross-validation folds of the classifier that sees only file facts.

    Returns:
        The counts, the AUC of the classifier, and warnings.
    """
    kinds, statuses = Counter[str](), Counter[str]()
    formats, sizes = ({"real": Counter[str](), "fake": Counter[str]()} for _ in range(2))
    for (cell, status, _), count in cells.rows.items():
        kinds[cell.group.kind] += count
        statuses[status] += count
        formats[cell.group.label][cell.format] += count
        sizes[cell.group.label][cell.size] += count
    n_real, n_fake = kinds["real"], kinds["whole"] + kinds["local"]
    auc, features = _measure_metadata_auc(cells.sample, seed)
    info = DataInfo(
        n=cells.joined,
        n_real=n_real,
        n_fake=n_fake,
        n_whole=kinds["whole"],
        n_local=kinds["local"],
        digest=f"{cells.digest:016x}",
        statuses=_sort_by_count(statuses),
        formats={label: _sort_by_count(counts) for label, counts in formats.items()},
        sizes={
            label: {
                band: counts[band]
                for band in (*accumulate.BANDS, accumulate.UNKNOWN)
                if counts[band]
            }
            for label, counts in sizes.items()
        },
        features=tuple(features),
        confounded=shortcut.confounded(auc),
        class_ratio=n_fake / n_real if n_real else None,
    )
    warnings = [
        *_check_class_ratio(n_real, n_fake),
        *_check_distribution("format", formats),
        *_check_distribution("size", sizes),
    ]
    return DescribedData(info, auc, tuple(warnings))


def _sort_by_count(counts: Counter[str]) -> dict[str, int]:
    """Sort by descending count, ties by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _measure_metadata_auc(sample: pa.Table, seed: int) -> tuple[MetricValue, list[str]]:
    if not len(sample):
        return undefined("no image is labelled"), []
    rows = sample.filter(pc.is_valid(sample["width"]))
    fakes = np.asarray(rows["kind"]) != "real"
    features = {
        name: _read_feature(rows[name]) for name in FEATURES if rows[name].null_count < len(rows)
    }
    if not features:
        return undefined("no image could be read", len(rows)), []
    return shortcut.shortcut_auc(features, fakes, seed=seed), sorted(features)


def _read_feature(column: pa.ChunkedArray) -> Any:
    if pa.types.is_string(column.type):
        return np.asarray(pc.fill_null(column, accumulate.UNKNOWN).to_pylist(), dtype=str)
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))


def _check_class_ratio(n_real: int, n_fake: int) -> list[str]:
    fewer, more = sorted([n_real, n_fake])
    if not fewer:
        return [
            f"There are no {'real images' if not n_real else 'fakes'}: metrics that need both classes are not defined."
        ]
    if more <= MAX_CLASS_RATIO * fewer:
        return []
    names = ("real image", "fakes") if n_fake > n_real else ("fake", "real images")
    return [
        f"For every {names[0]} there are {more / fewer:.0f} {names[1]}: accuracy, F1, and precision depend more on this ratio than on the detector."
    ]


def _check_distribution(property_name: str, counts: Mapping[str, Counter[str]]) -> list[str]:
    fractions = {}
    for label, class_counts in counts.items():
        known_counts = Counter(
            {name: count for name, count in class_counts.items() if name != accumulate.UNKNOWN}
        )
        if not known_counts.total():
            return []
        fractions[label] = {
            name: count / known_counts.total() for name, count in known_counts.items()
        }
    differences = {
        name: fractions["fake"].get(name, 0.0) - fractions["real"].get(name, 0.0)
        for name in {**fractions["real"], **fractions["fake"]}
    }
    if sum(abs(difference) for difference in differences.values()) / 2 <= MAX_DISTANCE:
        return []
    largest = max(sorted(differences), key=lambda name: abs(differences[name]))
    real, fake = (fractions[label].get(largest, 0.0) for label in ("real", "fake"))
    return [
        f"The classes differ in {property_name}: {largest} are {percent(real, 0)} of the real images and {percent(fake, 0)} of the fakes."
    ]
