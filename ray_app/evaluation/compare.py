"""Compare two runs: verdicts, scores, and, with labels, TPR, TNR, and AUC (`compare`)."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.datasets.label_reader import open_labels
from ray_app.errors import ConfigError, Status
from ray_app.evaluation.join import LabelledRows, own_labels, read_labels
from ray_app.evaluation.systems import ENSEMBLE, System, Systems, systems_of
from ray_app.metrics.arrays import Floats
from ray_app.metrics.intervals import mean_figure, proportion
from ray_app.metrics.registry import METRICS, Resampled, measure, measure_difference
from ray_app.metrics.values import MetricValue, undefined
from ray_app.reports.compare import VERDICTS, Comparison, MetricDifference, ScoreDifference
from ray_app.runs import RunDirectory, current_tables
from ray_app.runs.directory import differing_keys

By = Literal["image_id", "sha256"]
STATUSES = [status.value for status in Status]
MAX_LABELLED = 200_000
"""Labelled images that metrics are of, at most: those with the smallest keys, a random sample. The
error of a rate is then about 0.001.
"""
MOVED = 0.1  # Log-odds. Another batch size, precision, or processor changes a score by less.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def compare(
    run_a: str,
    run_b: str,
    labels: str | None = None,
    *,
    by: By | None = None,
    intervals: Literal["generators", "images"] = "generators",
) -> Comparison:
    """Compare two runs. Differences are B less A.

    Args:
        run_a: Path or URL of run A.
        run_b: Path or URL of run B.
        labels: A file or an index of labels. By default the labels that the runs carry.
        by: The column that matches rows. By default `image_id`, or `sha256` if no id is shared.
        intervals: Whether intervals are of further generators and sources, if labels name eight or
            more, or of further images.

    Raises:
        ConfigError: There is no run, or a label is wrong.
    """
    if by is not None and by not in get_args(By):
        raise ConfigError(f"--by {by}: not a key of images", hint="use image_id or sha256")
    runs = [RunDirectory.open(url) for url in (run_a, run_b)]
    for run in runs:
        if not run.exists():
            raise run.missing()
    systems = [systems_of(run) for run in runs]
    key: By = by or "image_id"
    a, b = (_read_rows(run, key, of_run) for run, of_run in zip(runs, systems, strict=True))
    both = _match(a, b)
    if not by and both.empty and len(a) and len(b):
        return compare(run_a, run_b, labels, by="sha256", intervals=intervals)
    pairs = _paired_systems(*systems)
    both, labels_name = _add_labels(both, runs, labels)
    described = [run.describe() for run in runs]
    detectors_a, detectors_b = (facts["detectors"] for facts in described)
    only_a = [name for name in detectors_a if name not in detectors_b]
    only_b = [name for name in detectors_b if name not in detectors_a]
    settings = differing_keys(*(facts["identity"] for facts in described))
    statuses = both.groupby(["status A", "status B"], observed=True).size()
    groups = _sample(both, next(iter(pairs.values())), intervals)[0]
    return Comparison(
        a=runs[0].store.url,
        b=runs[1].store.url,
        by=key,
        rows_a=len(a),
        rows_b=len(b),
        shared=len(both),
        settings=[one for one in settings if not _is_of_detector(one[0], [*only_a, *only_b])],
        detectors_only_a=only_a,
        detectors_only_b=only_b,
        statuses=[(*pair, int(n)) for pair, n in statuses.items() if n and pair[0] != pair[1]],
        verdicts=pd.crosstab(both["verdict A"], both["verdict B"], dropna=False).to_dict("index"),
        flagged_a=_flagged(a),
        flagged_b=_flagged(b),
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


def _is_of_detector(key: str, detectors: Sequence[str]) -> bool:
    """Whether a setting belongs to a detector of these names."""
    return any(
        key == f"precision.{name}" or key.startswith(f"detectors.{name}.") for name in detectors
    )


def _read_rows(run: RunDirectory, key: By, systems: Systems) -> pd.DataFrame:
    """Return the current rows: `key`, `image_id`, `status`, `verdict`, and a score per system."""
    pieces = []
    for table in current_tables(run, ["image_id", key, "status", "verdict", "score", "scores"]):
        # 16 hexadecimal digits differ for 10⁷ files but once in 400,000 runs.
        keys = table[key] if key == "image_id" else pc.utf8_slice_codeunits(table[key], 0, 16)
        columns = {
            "key": keys,
            "image_id": table["image_id"],
            "status": _codes(table["status"], STATUSES),
            "verdict": _codes(table["verdict"], VERDICTS),
        }
        scores = {f"score {name}": column for name, column in systems.clean(table).items()}
        pieces.append(pa.table(columns | scores))
    names = ["key", "image_id", "status", "verdict", *(f"score {one.name}" for one in systems.all)]
    rows = pa.concat_tables(pieces).to_pandas() if pieces else pd.DataFrame(columns=names)
    for name, words in (("status", STATUSES), ("verdict", VERDICTS)):
        rows[name] = pd.Categorical.from_codes(rows[name].astype(np.int8), words)
    return rows


def _codes(column: pa.ChunkedArray, words: Sequence[str]) -> pa.ChunkedArray:
    """Return the index of each word; of a missing or unknown word the last index."""
    codes = pc.index_in(column.cast(pa.string()), pa.array(words))
    return pc.fill_null(codes, len(words) - 1).cast(pa.int8())


def _match(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of images in both runs in the order of their keys, with ` A` and ` B` after
    the names of columns. A row without a key is left out, and so is a further row with the same key.
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


def _flagged(rows: pd.DataFrame) -> MetricValue:
    counts = rows["verdict"].value_counts()
    n = len(rows) - int(counts["none"])
    return proportion(int(counts["fake"]), n, "the run has no verdict")


def _paired_systems(a: Systems, b: Systems) -> dict[str, tuple[System, System]]:
    """Return the systems that decide in A and in B, and each detector of both runs, by name."""
    name = a.headline.name if a.headline.name == b.headline.name else ENSEMBLE
    of_b = {system.name: system for system in b.all}
    shared = {system.name: (system, of_b[system.name]) for system in a.all if system.name in of_b}
    return {name: (a.headline, b.headline)} | shared


def _scores(both: pd.DataFrame, systems: tuple[System, System]) -> tuple[Floats, Floats]:
    a, b = (both[f"score {one.name} {side}"] for one, side in zip(systems, "AB", strict=True))
    return a.to_numpy(np.float64), b.to_numpy(np.float64)


def _score_difference(
    name: str,
    a: pd.DataFrame,
    b: pd.DataFrame,
    both: pd.DataFrame,
    systems: tuple[System, System],
) -> ScoreDifference:
    from scipy.stats import ks_2samp

    first, second = _scores(both, systems)
    change = second - first
    change = change[np.isfinite(change)]
    n, why = len(change), "no image has a score in both runs"
    quantiles = np.quantile(change, QUANTILES).tolist() if n else []
    scores = [rows[f"score {one.name}"].dropna() for rows, one in zip((a, b), systems, strict=True)]
    tested = ks_2samp(*scores, method="asymp") if all(map(len, scores)) else None
    return ScoreDifference(
        system=name,
        n=n,
        equal=int((change == 0).sum()),
        only_a=int((np.isfinite(first) & np.isnan(second)).sum()),
        only_b=int((np.isnan(first) & np.isfinite(second)).sum()),
        mean=mean_figure(change, why, bounds=(-np.inf, np.inf)),
        quantiles=dict(zip(map(str, QUANTILES), quantiles, strict=False)),
        max_difference=float(np.abs(change).max()) if n else None,
        moved=proportion(int((np.abs(change) > MOVED).sum()), n, why),
        ks=float(tested.statistic) if tested else None,
        ks_p=float(tested.pvalue) if tested else None,
    )


def _add_labels(
    both: pd.DataFrame, runs: Sequence[RunDirectory], labels: str | None
) -> tuple[pd.DataFrame, str | None]:
    """Return the images with `label` and `group`, and the name of the labels: of those given, or
    else of those that A or B carries.
    """
    if labels is not None:
        with read_labels(open_labels(labels)) as read:
            return _join(both, read, runs[0], "A"), read.name
    for run, side in zip(runs, "AB", strict=True):
        rows = next(current_tables(run, ["image_id", "input"]), None)
        if rows is not None and "input" in rows.column_names:
            with own_labels(run.store.url) as carried:
                found = _join(both, carried, run, side)
            if found["label"].count():
                return found, carried.name
    return both.assign(label=None, group=None), None


def _join(both: pd.DataFrame, labels: LabelledRows, run: RunDirectory, side: str) -> pd.DataFrame:
    """Return the images with `label`, and `group`: the generator of a fake and the source of a real
    image, or the generator if there is no source.
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
    places = pd.Index(table["image_id"].to_numpy()).get_indexer(both[f"image_id {side}"])
    return both.assign(
        **{name: truth[name].array.take(places, allow_fill=True) for name in columns}
    )


def _sample(
    both: pd.DataFrame, systems: tuple[System, System], intervals: str
) -> tuple[Resampled, Resampled]:
    """Return labelled images with scores of A and of B, in the same groups."""
    a, b = _scores(both, systems)
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
