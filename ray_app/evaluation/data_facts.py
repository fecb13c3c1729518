"""Facts about the labelled images (`describe_data`): how many there are, of what form, and whether
their form alone tells fakes from real images.
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
MOST_RATIO = 10.0
MOST_APART = 0.25
"""The fraction of images that would have to be of another format, or size, for both classes to be
alike.
"""


class DescribedData(NamedTuple):
    """The facts of the images, the AUC of file facts alone, and how the classes differ in sentences."""

    info: DataInfo
    shortcut_auc: MetricValue
    warnings: tuple[str, ...]


def describe_data(cells: accumulate.Cells, seed: int = 0) -> DescribedData:
    """Return the facts of the labelled images."""
    kinds, statuses = Counter[str](), Counter[str]()
    formats, sizes = ({"real": Counter[str](), "fake": Counter[str]()} for _ in range(2))
    for (cell, status, _), count in cells.rows.items():
        kinds[cell.group.kind] += count
        statuses[status] += count
        formats[cell.group.label][cell.format] += count
        sizes[cell.group.label][cell.size] += count
    n_real, n_fake = kinds["real"], kinds["whole"] + kinds["local"]
    auc, features = _metadata_auc(cells.sample, seed)
    info = DataInfo(
        n=cells.joined,
        n_real=n_real,
        n_fake=n_fake,
        n_whole=kinds["whole"],
        n_local=kinds["local"],
        digest=f"{cells.digest:016x}",
        statuses=_most_frequent_first(statuses),
        formats={label: _most_frequent_first(counts) for label, counts in formats.items()},
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
        *_of_ratio(n_real, n_fake),
        *_of_shares("format", formats),
        *_of_shares("size", sizes),
    ]
    return DescribedData(info, auc, tuple(warnings))


def _most_frequent_first(counts: Counter[str]) -> dict[str, int]:
    """Of equal ones the first by name, in whatever order they came."""
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def _metadata_auc(sample: pa.Table, seed: int) -> tuple[MetricValue, list[str]]:
    if not len(sample):
        return undefined("no image is labelled"), []
    rows = sample.filter(pc.is_valid(sample["width"]))
    fakes = np.asarray(rows["kind"]) != "real"
    features = {
        name: _feature(rows[name]) for name in FEATURES if rows[name].null_count < len(rows)
    }
    if not features:
        return undefined("no image could be read", len(rows)), []
    return shortcut.shortcut_auc(features, fakes, seed=seed), sorted(features)


def _feature(column: pa.ChunkedArray) -> Any:
    if pa.types.is_string(column.type):
        return np.asarray(pc.fill_null(column, accumulate.UNKNOWN).to_pylist(), dtype=str)
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))


def _of_ratio(n_real: int, n_fake: int) -> list[str]:
    fewer, more = sorted([n_real, n_fake])
    if not fewer:
        return [
            f"There are no {'real images' if not n_real else 'fakes'}: figures that need both classes are not defined."
        ]
    if more <= MOST_RATIO * fewer:
        return []
    names = ("real image", "fakes") if n_fake > n_real else ("fake", "real images")
    return [
        f"For every {names[0]} there are {more / fewer:.0f} {names[1]}: accuracy, F1 and precision say more of that than of a detector."
    ]


def _of_shares(what: str, counts: Mapping[str, Counter[str]]) -> list[str]:
    shares = {}
    for label, counted in counts.items():
        known = Counter(
            {name: count for name, count in counted.items() if name != accumulate.UNKNOWN}
        )
        if not known.total():
            return []
        shares[label] = {name: count / known.total() for name, count in known.items()}
    apart = {
        name: shares["fake"].get(name, 0.0) - shares["real"].get(name, 0.0)
        for name in {**shares["real"], **shares["fake"]}
    }
    if sum(abs(difference) for difference in apart.values()) / 2 <= MOST_APART:
        return []
    most = max(sorted(apart), key=lambda name: abs(apart[name]))
    real, fake = (shares[label].get(most, 0.0) for label in ("real", "fake"))
    return [
        f"The classes differ in {what}: {most} are {percent(real, 0)} of the real images and {percent(fake, 0)} of the fakes."
    ]
