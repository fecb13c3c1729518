"""Embeddings beside a run's rows: written per block, brought by a retry, read back by id."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives import read_block, read_blocks
from ray_app.errors import Status
from ray_app.runs import CurrentRows, begin_retry, feature_rows, write_features
from ray_app.runs.artifacts import FACTS as FACTS_KEY
from tests.make.small_run import FACTS, PLAN, begun, finish, score_blocks, vectors_for

NAME = "head:variant"
NAMES = [f"{number:02}.jpg" for number in range(20)]
LATE = ("03.jpg", "11.jpg")


def keep(run, ids_of_late, attempt, manifest=0):
    for ref in read_blocks(run.store, manifest):
        ids = read_block(run.store, ref)["image_id"].to_numpy()
        vectors = vectors_for(ids, attempt)
        vectors[np.isin(ids, ids_of_late)] = np.nan
        write_features(run, manifest, ref.block, NAME, feature_rows(ids, vectors, NAME, FACTS))


def feature_files(run):
    return sorted((Path(run.store.url) / "features").rglob("*.parquet"))


def kept_facts(run):
    """What the metadata of every file say about the detector."""
    (facts,) = {pq.read_schema(file).metadata[FACTS_KEY] for file in feature_files(run)}
    return json.loads(facts)


def read_back(run):
    """The ids of all blocks with their vectors; NaN for an id without a vector."""
    tables = [pq.read_table(file) for file in feature_files(run)]
    vectors = {row["image_id"]: row["vector"] for table in tables for row in table.to_pylist()}
    blocks = [read_block(run.store, ref) for ref in read_blocks(run.store, 0)]
    ids = pa.concat_tables(blocks)["image_id"].to_numpy()
    return ids, np.array([vectors.get(image_id, [np.nan] * 3) for image_id in ids], np.float32)


def test_embeddings_are_read_by_id_also_after_a_retry(tmp_path):
    run = begun(tmp_path, NAMES, fails=lambda name: Status.SOURCE_TIMEOUT if name in LATE else None)
    members = [
        row for ref in read_blocks(run.store, 0) for row in read_block(run.store, ref).to_pylist()
    ]
    late = [row["image_id"] for row in members if row["uri"].endswith(LATE)]
    keep(run, late, attempt=1)
    finish(run)
    assert kept_facts(run) == {"detector": NAME, **FACTS}
    assert pq.read_schema(feature_files(run)[0]).field("vector").type == pa.list_(pa.float32(), 3)
    ids, vectors = read_back(run)
    is_late = np.isin(ids, late)[:, None]
    np.testing.assert_array_equal(vectors, np.where(is_late, np.nan, vectors_for(ids, 1)))
    begin_retry(CurrentRows.read(run), ["source_timeout"], PLAN)
    score_blocks(run, 1, attempt=2)
    keep(run, [], attempt=2, manifest=1)
    finish(run)
    assert kept_facts(run) == {"detector": NAME, **FACTS}
    ids, vectors = read_back(run)
    np.testing.assert_array_equal(
        vectors, np.where(is_late, vectors_for(ids, 2), vectors_for(ids, 1))
    )


def test_embeddings_take_little_more_than_their_numbers(tmp_path):
    run = begun(tmp_path, NAMES[:1])
    ids = np.arange(512)
    vectors = np.random.default_rng(0).normal(size=(512, 128)).astype(np.float32)
    write_features(run, 9, 0, "wide", feature_rows(ids, vectors, "wide", FACTS))
    [file] = feature_files(run)
    assert vectors.nbytes < file.stat().st_size < 1.1 * vectors.nbytes
    assert pq.read_table(file)["vector"].to_pylist() == vectors.tolist()
