"""Compare two runs on the images that both scored (`compare`).

The comparison has verdicts and scores and, with labels, true-positive and true-negative rates and
AUC.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.datasets.label_reader import open_labels
from ray_app.errors import ConfigError
from ray_app.evaluation.join import LabelledRows, own_labels, read_labels
from ray_app.evaluation.systems import ENSEMBLE, System, Systems, list_systems
from ray_app.metrics.arrays import Floats
from ray_app.metrics.intervals import mean_figure, proportion
from ray_app.metrics.registry import METRICS, Resampled, measure, measure_difference
from ray_app.metrics.values import MetricValue, undefined
from ray_app.reports.compare import VERDICTS, Comparison, MetricDifference, ScoreDifference
from ray_app.runs import RunDirectory, current_tables
from ray_app.runs.directory import differing_keys

By = Literal["image_id", "sha256"]
# The status of a row without one.
MISSING = "missing"
MAX_LABELLED = 200_000
"""Maximum number of labelled images for metrics.

The images with the smallest keys are a random sample. The error of a rate is then about 0.001.
"""
# Log-odds. A different batch size, precision, or processor changes a score by less.
MIN_SCORE_CHANGE = 0.1
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def compare(
    run_a: str,
    run_b: str,
    labels: str | None = None,
    *,
    by: By | None = None,
    intervals: Literal["generators", "images"] = "generators",
) -> Comparison:
    """Compare two runs on the images that both scored; differences are B minus A.

    Labels are by default in the runs' own columns. The rows are matched by `image_id`, or `sha256`
    if the runs share no id. With `generators`, the 95 % intervals also apply to generators and
    sources that the labels do not have, if the labels name at least eight of them. With `images`,
    the intervals apply only to further images of the labelled generators and sources. Raises
    ConfigError if a run has no finished listing, or `by` or a label is invalid.
    """
    if by is not None and by not in get_args(By):
        raise ConfigError(
            f"--by must be image_id or sha256, got {by}", hint="use image_id or sha256"
        )
    runs = [RunDirectory.open(url) for url in (run_a, run_b)]
    for run in runs:
        if not run.exists():
            raise run.missing_run_error()
    systems = [list_systems(run) for run in runs]
    key: By = by or "image_id"
    a, b = (
        _read_rows(run, key, run_systems) for run, run_systems in zip(runs, systems, strict=True)
    )
    both = _match(a, b)
    if not by and both.empty and len(a) and len(b):
        return compare(run_a, run_b, labels, by="sha256", intervals=intervals)
    pairs = _paired_systems(*systems)
    both, labels_name = _add_labels(both, runs, labels)
    run_infos = [run.describe() for run in runs]
    detectors_a, detectors_b = (info["detectors"] for info in run_infos)
    only_a = [name for name in detectors_a if name not in detectors_b]
    only_b = [name for name in detectors_b if name not in detectors_a]
    settings = differing_keys(*(info["identity"] for info in run_infos))
    statuses = both.groupby(["status A", "status B"], observed=True).size()
    groups = _sample(both, next(iter(pairs.values())), intervals)[0]
    return Comparison(
        a=runs[0].store.url,
        b=runs[1].store.url,
        by=key,
        rows_a=len(a),
        rows_b=len(b),
        shared=len(both),
        settings=[
            entry for entry in settings if not _is_detector_setting(entry[0], [*only_a, *only_b])
        ],
        detectors_only_a=only_a,
        detectors_only_b=only_b,
        statuses=[(*pair, int(n)) for pair, n in statuses.items() if n and pair[0] != pair[1]],
        verdicts=pd.crosstab(both["verdict A"], both["verdict B"], dropna=False).to_dict("index"),
        flagged_a=_flagged_fraction(a),
        flagged_b=_flagged_fraction(b),
        scores=[_score_difference(name, a, b, both, pair) for name, pair in pairs.items()],
        labels=labels_name,
        labelled=int(both["label"].count()),
        groups={
            "fake": groups.fakes.groups if groups.fakes.is_grouped else 0,
            "real": groups.reals.groups if groups.reals.is_grouped else 0,
        },
        metrics=[
            difference
            for name, pair in pairs.items()
            for difference in _metric_differences(name, both, pair, intervals)
        ],
    )


def _is_detector_setting(key: str, detectors: Sequence[str]) -> bool:
    """Return whether a setting belongs to one of these detectors."""
    return any(
        key == f"precision.{name}" or key.startswith(f"detectors.{name}.") for name in detectors
    )


def _read_rows(run: RunDirectory, key: By, systems: Systems) -> pd.DataFrame:
    """Return the current rows: `key`, `image_id`, `status`, `verdict`, and a score per system."""
    tables = []
    for table in current_tables(run, ["image_id", key, "status", "verdict", "score", "scores"]):
        # For 10⁷ files, 16 hexadecimal digits collide in one of 400,000 runs.
        keys = table[key] if key == "image_id" else pc.utf8_slice_codeunits(table[key], 0, 16)
        columns = {
            "key": keys,
            "image_id": table["image_id"],
            # A later version may have written a status that this version does not know.
            "status": pc.fill_null(table["status"].cast(pa.string()), MISSING).dictionary_encode(),
            "verdict": _encode_verdicts(table["verdict"], run),
        }
        scores = {f"score {name}": column for name, column in systems.read_scores(table).items()}
        tables.append(pa.table(columns | scores))
    names = [
        "key",
        "image_id",
        "status",
        "verdict",
        *(f"score {system.name}" for system in systems.all),
    ]
    rows = (
        pa.concat_tables(tables).unify_dictionaries().to_pandas()
        if tables
        else pd.DataFrame(columns=names)
    )
    rows["verdict"] = pd.Categorical.from_codes(rows["verdict"].astype(np.int8), VERDICTS)
    return rows


def _encode_verdicts(column: pa.ChunkedArray, run: RunDirectory) -> pa.ChunkedArray:
    """Return the index of each verdict in VERDICTS, whose last entry is for rows without one."""
    column = column.cast(pa.string())
    codes = pc.index_in(column, pa.array(VERDICTS))
    unknown = column.filter(pc.and_(pc.is_null(codes), pc.is_valid(column)))
    if len(unknown):
        raise ConfigError(
            f"{run.store.url}: the verdict must be one of {', '.join(VERDICTS[:-1])}, got {unknown[0]}",
            hint="compare the runs with the version of Touchstone that wrote this run",
        )
    return pc.fill_null(codes, len(VERDICTS) - 1).cast(pa.int8())


def _match(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of images in both runs, in the order of their keys.

    The suffixes ` A` and ` B` mark the columns of each run. Rows without a key, and all but one row
    of a repeated key, are left out.
    """
    rows_a, rows_b = (np.flatnonzero(rows["key"].notna()) for rows in (a, b))
    keys_a, keys_b = a["key"].to_numpy()[rows_a], b["key"].to_numpy()[rows_b]
    _, in_a, in_b = np.intersect1d(keys_a, keys_b, return_indices=True)
    first, second = (
        a.drop(columns="key").iloc[rows_a[in_a]],
        b.drop(columns="key").iloc[rows_b[in_b]],
    )
    sides = (first.add_suffix(" A"), second.add_suffix(" B"))
    return pd.concat([side.reset_index(drop=True) for side in sides], axis="columns")


def _flagged_fraction(rows: pd.DataFrame) -> MetricValue:
    counts = rows["verdict"].value_counts()
    n = len(rows) - int(counts["none"])
    return proportion(int(counts["fake"]), n, "the run has no verdict")


def _paired_systems(a: Systems, b: Systems) -> dict[str, tuple[System, System]]:
    """Return the deciding systems of A and B, and each detector of both runs, by name."""
    name = a.headline.name if a.headline.name == b.headline.name else ENSEMBLE
    systems_b = {system.name: system for system in b.all}
    shared = {
        system.name: (system, systems_b[system.name])
        for system in a.all
        if system.name in systems_b
    }
    return {name: (a.headline, b.headline)} | shared


def _read_scores(both: pd.DataFrame, systems: tuple[System, System]) -> tuple[Floats, Floats]:
    a, b = (both[f"score {system.name} {side}"] for system, side in zip(systems, "AB", strict=True))
    return a.to_numpy(np.float64), b.to_numpy(np.float64)


def _score_difference(
    name: str,
    a: pd.DataFrame,
    b: pd.DataFrame,
    both: pd.DataFrame,
    systems: tuple[System, System],
) -> ScoreDifference:
    from scipy.stats import ks_2samp

    first, second = _read_scores(both, systems)
    change = second - first
    change = change[np.isfinite(change)]
    n, reason = len(change), "no image has a score in both runs"
    quantiles = np.quantile(change, QUANTILES).tolist() if n else []
    scores = [
        rows[f"score {system.name}"].dropna() for rows, system in zip((a, b), systems, strict=True)
    ]
    tested = ks_2samp(*scores, method="asymp") if all(map(len, scores)) else None
    return ScoreDifference(
        system=name,
        n=n,
        equal=int((change == 0).sum()),
        only_a=int((np.isfinite(first) & np.isnan(second)).sum()),
        only_b=int((np.isnan(first) & np.isfinite(second)).sum()),
        mean=mean_figure(change, reason, bounds=(-np.inf, np.inf)),
        quantiles=dict(zip(map(str, QUANTILES), quantiles, strict=False)),
        max_difference=float(np.abs(change).max()) if n else None,
        moved=proportion(int((np.abs(change) > MIN_SCORE_CHANGE).sum()), n, reason),
        ks=float(tested.statistic) if tested else None,
        ks_p=float(tested.pvalue) if tested else None,
    )


def _add_labels(
    both: pd.DataFrame, runs: Sequence[RunDirectory], labels: str | None
) -> tuple[pd.DataFrame, str | None]:
    """Return the images with `label` and `group`, and the name of the labels.

    By default they are the labels that A, or else B, carries.
    """
    if labels is not None:
        with read_labels(open_labels(labels)) as label_rows:
            return _join(both, label_rows, runs[0], "A"), label_rows.name
    for run, side in zip(runs, "AB", strict=True):
        rows = next(current_tables(run, ["image_id", "input"]), None)
        if rows is not None and "input" in rows.column_names:
            with own_labels(run.store.url) as run_labels:
                labelled = _join(both, run_labels, run, side)
            if labelled["label"].count():
                return labelled, run_labels.name
    return both.assign(label=None, group=None), None


def _join(both: pd.DataFrame, labels: LabelledRows, run: RunDirectory, side: str) -> pd.DataFrame:
    """Return the images with `label` and `group`.

    The group of a fake is its generator, and the group of a real image its source, or its generator
    if it has no source.
    """
    names = ["image_id", "label", "generator", "source"]
    tables = list(labels.join(run, ()).tables(names))
    if not tables:
        return both.assign(label=None, group=None)
    table = pa.concat_tables(tables)
    source = pc.coalesce(table["source"], table["generator"])
    group = pc.if_else(pc.equal(table["label"], "real"), source, table["generator"])
    columns = {"label": table["label"], "group": group}
    truth = pa.table(
        {name: column.combine_chunks().dictionary_encode() for name, column in columns.items()}
    ).to_pandas()
    indices = pd.Index(table["image_id"].to_numpy()).get_indexer(both[f"image_id {side}"])
    return both.assign(
        **{name: truth[name].array.take(indices, allow_fill=True) for name in columns}
    )


def _sample(
    both: pd.DataFrame, systems: tuple[System, System], intervals: str
) -> tuple[Resampled, Resampled]:
    """Return the labelled images with scores of A and B, in equal groups."""
    a, b = _read_scores(both, systems)
    rows = np.flatnonzero(both["label"].notna() & np.isfinite(a) & np.isfinite(b))[:MAX_LABELLED]
    is_fake = (both["label"].iloc[rows] == "fake").to_numpy()
    groups = both["group"].iloc[rows].to_numpy(object) if intervals == "generators" else None
    first, second = (
        Resampled.in_groups(scores[rows], is_fake, groups, **system.cut)
        for scores, system in zip((a, b), systems, strict=True)
    )
    return first, second


def _metric_differences(
    name: str, both: pd.DataFrame, systems: tuple[System, System], intervals: str
) -> Iterator[MetricDifference]:
    samples = _sample(both, systems, intervals)
    n = len(samples[0].images)
    for metric in (METRICS["tpr"], METRICS["tnr"], METRICS["auc"]) if n else ():
        if metric.needs == "scores" and any(system.binary for system in systems):
            missing = undefined("binary replies have no ranking", n)
            yield MetricDifference(name, metric.name, missing, missing, missing, None)
            continue
        a, b = (measure(metric, sample.images, sample) for sample in samples)
        difference, p = measure_difference(metric, *samples)
        yield MetricDifference(name, metric.name, a, b, difference, p)
