"""Images whose label a classifier on other images doubts, worst first. Knows features of a run and labels; opens no image.

The classifier is a logistic regression on kept embeddings, or else on the scores of the run's detectors, that saw no image of the same
group; what it says is weighed by confident learning (`ray_app.metrics.confident`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.archives import manifests, read_blocks
from ray_app.datasets.columns import fakes, texts
from ray_app.errors import ConfigError
from ray_app.evaluation.sampling import hashed
from ray_app.metrics.arrays import Floats
from ray_app.metrics.confident import crossed_probabilities, doubted
from ray_app.metrics.figure import Figure
from ray_app.metrics.histograms import ScoreHistogram
from ray_app.metrics.intervals import auc_of
from ray_app.runs import RunDirectory, block_features, kept_features, vectors_of
from ray_app.runs.reader import current_tables

MOST = 100_000
LEAST = 50  # images of each class
LEAST_AUC = 0.7  # below, the list would be of what the classifier cannot tell, not of wrong labels

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Suspects:
    """`places`: rows of the labelled table, worst first; `confidence`: the probability of the other label. `told`: for the document."""

    places: Rows
    confidence: Floats
    told: dict[str, Any]


def suspects_of(run: RunDirectory, rows: pa.Table, groups: Rows, *, features: str | None = None, seed: int = 0) -> Suspects:
    """Of labelled rows (see `label_facts`) in groups (n,). `features`: whose embeddings; null = the first kept, else the scores."""
    ids, is_fake = rows["image_id"].to_numpy(), fakes(rows)
    chosen = np.sort(np.argsort(hashed(ids), kind="stable")[:MOST])
    vectors, source = _vectors(run, ids[chosen], features)
    is_known = np.isfinite(vectors).all(axis=1) & (vectors.shape[1] > 0)
    chosen, vectors = chosen[is_known], vectors[is_known]
    fake = is_fake[chosen]
    told: dict[str, Any] = {"source": source, "n": len(chosen), "left_out": len(rows) - len(chosen), "auc": None, "thresholds": None,
                            "expected": None, "count": None, "why": None}  # fmt: skip
    fewest = int(min(fake.sum(), (~fake).sum()))
    if fewest < LEAST:
        return _none(told, f"it takes {LEAST} images of each class with {source}; one has {fewest:,}")
    chance = crossed_probabilities(vectors, fake, groups[chosen], seed=seed)
    if not np.isfinite(chance).all():
        return _none(told, "there are too few groups to keep them apart")
    auc = auc_of(ScoreHistogram.of(chance[fake]), ScoreHistogram.of(chance[~fake]))
    told["auc"] = Figure(auc.value, (auc.low, auc.high), "delong", len(fake)).row()
    if auc.value < LEAST_AUC:
        return _none(
            told, f"the classifier tells the classes apart with an AUC of {auc.value:.2f} only: it would doubt what it cannot tell"
        )
    found = doubted(chance, fake)
    places = found.suspicious(fake)
    confidence = np.where(fake[places], 1 - chance[places], chance[places])
    order = np.lexsort((ids[chosen][places], -confidence))
    expected = {"real": float(found.expected[0, 1]), "fake": float(found.expected[1, 0])}
    count = {"real": int((~fake[places]).sum()), "fake": int(fake[places].sum())}
    return Suspects(
        chosen[places[order]], confidence[order], told | {"thresholds": list(found.thresholds), "expected": expected, "count": count}
    )


def suspects_table(rows: pa.Table, found: Suspects) -> pa.Table:
    """suspicious.parquet: `image_id, uri, member, generator, label, likely_label, confidence`, worst first."""
    some = rows.take(pa.array(found.places))
    labels = texts(some, "label")
    return pa.table({
        **{name: some[name] for name in ("image_id", "uri", "member")},
        "generator": texts(some, "generator"),
        "label": labels,
        "likely_label": pa.array(["real" if label == "fake" else "fake" for label in labels.to_pylist()], pa.string()),
        "confidence": pa.array(found.confidence, pa.float64()),
    })  # fmt: skip


def _none(told: dict[str, Any], why: str) -> Suspects:
    return Suspects(np.empty(0, np.int64), np.empty(0), told | {"why": why})


def _vectors(run: RunDirectory, ids: Rows, wanted: str | None) -> tuple[Floats, str]:
    """(n, d) what is known of images beside their files, NaN where nothing is, and what it is."""
    kept = kept_features(run)
    if wanted is not None and wanted not in kept:
        raise ConfigError(f"{run.store.url} keeps no embeddings of '{wanted}'", hint=f"it has those of {', '.join(kept) or 'none'}")
    name = wanted or next(iter(kept), None)
    if name is None:
        return _scores(run, ids), "the scores of the run's detectors"
    vectors = np.full((len(ids), kept[name]["width"]), np.nan, np.float32)
    order = np.argsort(ids)
    for number in manifests(run.store):
        for ref in read_blocks(run.store, number):
            rows = block_features(run, number, ref.block, name)
            mine = rows["image_id"].to_numpy()
            at = order[np.minimum(np.searchsorted(ids, mine, sorter=order), len(ids) - 1)]
            is_wanted = ids[at] == mine
            vectors[at[is_wanted]] = vectors_of(rows, mine[is_wanted], vectors.shape[1])
    return vectors, f"the embeddings of {name}"


def _scores(run: RunDirectory, ids: Rows) -> Floats:
    """(n, detectors) scores; a detector that scored none of these images is left out."""
    tables = [(table["image_id"].to_numpy(), _columns(table)) for table in current_tables(run, ["image_id", "scores"])]
    names, scores = (np.concatenate([pair[place] for pair in tables]) for place in (0, 1))
    order = np.argsort(names, kind="stable")
    at = order[np.minimum(np.searchsorted(names[order], ids), len(names) - 1)]
    found = np.where((names[at] == ids)[:, None], scores[at], np.nan)
    return np.asarray(found[:, np.isfinite(found).any(axis=0)], np.float64)


def _columns(table: pa.Table) -> Floats:
    scores = table["scores"].combine_chunks()
    return np.column_stack([np.asarray(column.cast(pa.float64()).fill_null(np.nan)) for column in scores.flatten()])
