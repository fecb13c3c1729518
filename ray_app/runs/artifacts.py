"""Store masks as rows of PNG bytes, and embeddings as rows of Parquet.

`mask_rows` and `mask_image` write and read masks, `write_features` and `read_features` embeddings:

    features/<detector>/<manifest>/<block>.parquet    FEATURE columns; the facts that determine the embeddings are in the file's metadata
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

ALTERED = 128  # The first grey level above one half.


def mask_rows(image_ids: pa.ChunkedArray, scored: BlockResult) -> pa.Table:
    """Return a table of the masks that detectors predicted for some images, as 8-bit PNG files.

    The pixels of a mask are probabilities that the pixels of the image were altered. A mask has the
    output size of its network. The columns `width` and `height` have the size of the
    image, to which the mask can be resized. If perturbed views were scored, the table also has the
    masks of views that do not move pixels. Its column `view` then names the view.
    """
    masks_by_view = [
        (None, scored.outputs.get(decision.MASKS)),
        *scored.outputs.by_view(decision.MASKS).items(),
    ]
    rows = [
        {"image_id": image_id, "detector": name, "width": outcome.facts and outcome.facts.width,
         "height": outcome.facts and outcome.facts.height, "png": mask_png(mask), "view": view}
        for view, detector_masks in masks_by_view
        for name, masks in detector_masks.items()
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
    """Return the columns `MASK_COLUMNS`: for each detector with masks, their area and their peak.

    The area is the fraction of pixels above one half. The peak is the highest value of a pixel,
    from 0 to 1. An image without a mask has NaN.
    """
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
    """Return the mask of a row of `masks/` as a grey image, and its area.

    The area is the fraction of pixels above one half. With `stretched`, the mask is resized
    bilinearly to the size of the scored image.
    """
    image = Image.open(io.BytesIO(row["png"]))
    area = mask_area(np.asarray(image))
    return (
        image.resize((row["width"], row["height"]), Image.Resampling.BILINEAR)
        if stretched and row["width"]
        else image
    ), area


def mask_area(mask: batch.Pixels) -> float:
    """Return the fraction of a mask's pixels above one half."""
    return float(np.mean(mask >= ALTERED))


def mask_png(mask: batch.Pixels) -> bytes:
    """Return a mask as an 8-bit grey PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


# There is one file per block and detector, since vectors of detectors have different widths. The
# files are not merged with the parts: a block of 256 images of 768 numbers has 0.8 MB, which no
# merging would make smaller.
FACTS = b"touchstone.features"
Vectors = npt.NDArray[np.float32]


def features_folder(detector: str) -> str:
    """Return the folder of a detector's embeddings, relative to the run directory."""
    return f"features/{detector.replace(':', '-')}"


def feature_rows(
    image_ids: Ids, vectors: Vectors, detector: str, facts: Mapping[str, Any]
) -> pa.Table:
    """Return a table of embeddings: `image_id`, `detector` and `vector` (d float32).

    Args:
        image_ids: The ids of the members (n,).
        vectors: Their vectors (n, d). Members whose vectors are not finite are left out.
        detector: The name of the detector.
        facts: The facts besides the image that determine the embeddings
            (`detectors.linear_head.embedding_facts`), for the file's metadata.
    """
    is_finite = np.isfinite(vectors).all(axis=1)
    ids = np.asarray(image_ids)[is_finite]
    names = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(len(ids), np.int32)), pa.array([detector])
    )
    flat = pa.array(np.ascontiguousarray(vectors[is_finite], np.float32).reshape(-1))
    vector = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    rows = pa.table({"image_id": pa.array(ids, pa.int64()), "detector": names, "vector": vector})
    return rows.replace_schema_metadata({FACTS: json.dumps({"detector": detector, **facts})})


def write_features(
    run: directory.RunDirectory, manifest: int, block: int, detector: str, rows: pa.Table
) -> None:
    """Write the embeddings that a detector computed for the images of a block.

    A block is a fixed range of files. Call this function before the block is committed, so that
    every finished block has its embeddings.

    Args:
        run: The run.
        manifest: The number of the manifest.
        block: The number of the block.
        detector: The name of the detector.
        rows: The rows of `feature_rows`.
    """
    run.write_sidecar(features_folder(detector), manifest, block, rows)


def read_feature_facts(run: directory.RunDirectory) -> dict[str, dict[str, Any]]:
    """Return the facts that determine the stored embeddings of each detector, by its name.

    Examples are the weights and the preprocessing. For each detector, the facts are read from one
    of its files.
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
        run: The run that stores them.
        ref: The block.
        image_ids: The ids of its members (n,).
        detector: The detector that computed the embeddings.
        facts: The facts that determine the embeddings.

    Raises:
        ConfigError: If the embeddings of this block have other facts.
    """
    width = facts["width"]
    vectors = np.full((len(image_ids), width), np.nan, np.float32)
    rows = run.read_sidecar(features_folder(detector), ref.manifest, ref.block)
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
