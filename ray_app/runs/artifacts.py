"""Masks as rows of PNG bytes (`mask_rows`, `mask_image`), and embeddings as rows of Parquet
(`write_features`, `read_features`).

features/<detector>/<manifest>/<block>.parquet    FEATURE columns; what decides the embeddings
stands in the file's metadata
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from ray_app.archives import BlockRef, Ids
from ray_app.errors import ConfigError
from ray_app.inference import BlockResult, batch, decision
from ray_app.runs import directory, schema

ALTERED = 128  # the first grey level above one half


def mask_rows(image_ids: pa.ChunkedArray, scored: BlockResult) -> pa.Table:
    """The masks of some members as 8-bit PNG at the network's own size; `width` and `height` are
    the image's, for stretching it back.

    Where there are views, those that leave everything in its place have rows too, and a column
    `view` says which it is.
    """
    seen = [
        (None, scored.outputs.of(decision.MASKS)),
        *scored.outputs.by_view(decision.MASKS).items(),
    ]
    rows = [
        {"image_id": image_id, "detector": name, "width": outcome.facts and outcome.facts.width,
         "height": outcome.facts and outcome.facts.height, "png": mask_png(mask), "view": view}
        for view, drawn in seen
        for name, masks in drawn.items()
        for image_id, outcome, mask in zip(image_ids.to_pylist(), scored.outcomes, masks, strict=True)
        if mask is not None
    ]  # fmt: skip
    return pa.Table.from_pylist(
        rows,
        schema.VIEWED_MASK_SCHEMA
        if scored.outputs.by_view(decision.SCORES)
        else schema.MASK_SCHEMA,
    )


def mask_measures(
    masks: Mapping[str, Sequence[batch.Pixels | None]],
) -> dict[str, list[np.ndarray]]:
    """Per column and localizer, one number per member; NaN where there is no mask."""
    area = [
        np.array([np.nan if mask is None else mask_area(mask) for mask in column], np.float32)
        for column in masks.values()
    ]
    peak = [
        np.array([np.nan if mask is None else mask.max() / 255 for mask in column], np.float32)
        for column in masks.values()
    ]
    return dict(zip(schema.MASK_COLUMNS, (area, peak), strict=True)) if masks else {}


def mask_image(row: Mapping[str, Any], *, stretched: bool) -> tuple[Image.Image, float]:
    """The mask of one row of `masks/` as a grey image, bilinearly stretched to the scored image's
    size if asked, and its area.
    """
    image = Image.open(io.BytesIO(row["png"]))
    area = mask_area(np.asarray(image))
    return (
        image.resize((row["width"], row["height"]), Image.Resampling.BILINEAR)
        if stretched and row["width"]
        else image
    ), area


def mask_area(mask: batch.Pixels) -> float:
    """Share of a mask's pixels above one half."""
    return float(np.mean(mask >= ALTERED))


def mask_png(mask: batch.Pixels) -> bytes:
    """A mask as an 8-bit grey PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


# One file per block and detector, since detectors have vectors of different widths; they are left
# as they are when parts are merged: a block of 256 images of 768 numbers is 0.8 MB, which no
# merging would make smaller.
FACTS = b"touchstone.features"
Vectors = npt.NDArray[np.float32]


def folder_of(detector: str) -> str:
    """Where a detector's embeddings lie, relative to the run."""
    return f"features/{detector.replace(':', '-')}"


def feature_rows(
    image_ids: Ids, vectors: Vectors, detector: str, facts: Mapping[str, Any]
) -> pa.Table:
    """`image_id`, `detector` and `vector`, a list of d float32, of the members (n,) whose vectors
    (n, d) are finite.

    `facts`: what decides these embeddings beside the image
    (`detectors.linear_head.embedding_facts`), for the file's metadata.
    """
    kept = np.isfinite(vectors).all(axis=1)
    ids = np.asarray(image_ids)[kept]
    names = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(len(ids), np.int32)), pa.array([detector])
    )
    flat = pa.array(np.ascontiguousarray(vectors[kept], np.float32).reshape(-1))
    vector = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    rows = pa.table({"image_id": pa.array(ids, pa.int64()), "detector": names, "vector": vector})
    return rows.replace_schema_metadata({FACTS: json.dumps({"detector": detector, **facts})})


def write_features(
    run: directory.RunDirectory, manifest: int, block: int, detector: str, rows: pa.Table
) -> None:
    """Keep a block's embeddings; called before the block is committed, so that a row whose block is
    done has its own.
    """
    run.write_beside(folder_of(detector), manifest, block, rows)


def read_feature_facts(run: directory.RunDirectory) -> dict[str, dict[str, Any]]:
    """Return what decides the embeddings that a run keeps, by detector (see `feature_rows`), from
    one file of each.
    """
    by_detector = {}
    for name in run.store.folders("features"):
        folders = [f"features/{name}/{part}" for part in run.store.folders(f"features/{name}")]
        paths = (f"{folder}/{file}" for folder in folders for file in run.store.names(folder))
        if (path := next(paths, None)) is None:
            continue
        with run.store.open_file(path) as handle:
            facts = _facts_in(pq.read_schema(handle))
        by_detector[str(facts.pop("detector"))] = facts
    return by_detector


def read_features(
    run: directory.RunDirectory,
    ref: BlockRef,
    image_ids: Ids,
    detector: str,
    facts: Mapping[str, Any],
) -> Vectors:
    """Return the embeddings (n, d) of the members of a block; NaN for a member without one.

    Args:
        run: The run that keeps them.
        ref: The block.
        image_ids: The ids of its members (n,).
        detector: Whose embeddings to read.
        facts: The facts that decide these embeddings.

    Raises:
        ConfigError: Something else decided the embeddings of this block.
    """
    width = facts["width"]
    vectors = np.full((len(image_ids), width), np.nan, np.float32)
    rows = run.beside(folder_of(detector), ref.manifest, ref.block)
    if rows is None:
        return vectors
    differing = directory.differences({"detector": detector, **facts}, _facts_in(rows.schema))
    if differing:
        raise ConfigError(
            f"{run.store.url}: block {ref.block} of listing {ref.manifest} has other embeddings of {detector}:\n  "
            + "\n  ".join(differing),
            hint="score the images again with --features",
        )
    positions = pc.index_in(pa.array(image_ids), value_set=rows["image_id"])
    positions = pc.fill_null(positions, -1).to_numpy()
    stored = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, width)
    vectors[positions >= 0] = stored[positions[positions >= 0]]
    return vectors


def _facts_in(schema: pa.Schema) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(schema.metadata[FACTS])
    return facts
