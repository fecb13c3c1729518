"""Store and read the masks and the embeddings that detectors compute for the images of a run.

A mask marks the altered pixels of an image. `mask_rows` returns a table of masks as PNG files, and
`mask_image` reads a mask back. `write_features` and `read_features` store embeddings in one Parquet
file for each detector and block, a group of files that is scored and stored together:

    features/<detector>/<manifest>/<block>.parquet    `image_id`, `detector`, `vector`

The metadata of such a file has the settings that determine the embeddings, such as the weights.
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
    """Return the masks that detectors predicted for the images of a block, for `masks/` of a run.

    A pixel of a mask is the probability that this pixel of the image was altered. A mask has the
    output size of its network. It can be resized to the columns `width` and `height`, the size of
    the image.

    Args:
        image_ids: The ids of the images.
        scored: The results of scoring these images.

    Returns:
        One row per image and detector with a mask: `image_id`, `detector`, `width`, `height`, and
        `png` (an 8-bit PNG file). If perturbed copies of the images were scored, such as JPEG
        compressed ones, their masks are included unless the perturbation moves pixels. The column
        `view` then names the perturbation; it is null for the image itself.
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
    """Measure how much of each image the predicted masks mark as altered.

    Args:
        masks: The masks of the images (n,), by name of the detector. None for an image without one.

    Returns:
        `mask_area` and `mask_peak`, each with one array (n,) per detector, in the order of `masks`.
        The area is the fraction of pixels above one half. The peak is the highest value of a
        pixel, from 0 to 1. An image without a mask has NaN. Empty if no detector returns masks.
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
    """Return a stored mask of altered pixels as a grey image, and its area.

    Args:
        row: A row of the run's mask table, with `png`, `width`, and `height`.
        stretched: Whether to resize the mask bilinearly to the size of the scored image.

    Returns:
        The mask, and the fraction of its pixels above one half before resizing.
    """
    image = Image.open(io.BytesIO(row["png"]))
    area = mask_area(np.asarray(image))
    return (
        image.resize((row["width"], row["height"]), Image.Resampling.BILINEAR)
        if stretched and row["width"]
        else image
    ), area


def mask_area(mask: batch.Pixels) -> float:
    """Return the fraction of an image that a mask marks as altered: its pixels above one half."""
    return float(np.mean(mask >= ALTERED))


def mask_png(mask: batch.Pixels) -> bytes:
    """Return a mask of altered pixels as the content of an 8-bit grey PNG file."""
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
    """Return a table of the embeddings that one detector computed, for `write_features`.

    Args:
        image_ids: The ids of the images (n,).
        vectors: Their embeddings (n, d). Images whose embeddings are not finite are left out.
        detector: The name of the detector.
        facts: The settings that determine the embeddings, such as the weights
            (`detectors.linear_head.embedding_facts`). They are stored in the metadata.

    Returns:
        The columns `image_id`, `detector`, and `vector` (d float32).
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

    A block is a fixed range of files that is scored and stored together. Call this function before
    the result rows of the block are written, so that every finished block has its embeddings.

    Args:
        run: The run.
        manifest: The number of the manifest, a list of files to score.
        block: The number of the block in the manifest.
        detector: The name of the detector.
        rows: The table that `feature_rows` returned.
    """
    run.write_sidecar(features_folder(detector), manifest, block, rows)


def read_feature_facts(run: directory.RunDirectory) -> dict[str, dict[str, Any]]:
    """Return the settings that determine the stored embeddings, by name of the detector.

    Examples of settings are the weights and the preprocessing. For each detector, they are read
    from the metadata of one of its files. A detector without stored embeddings is left out.
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
    """Return the stored embeddings of the images of a block, a fixed range of a run's files.

    Args:
        run: The run that stores the embeddings.
        ref: The block.
        image_ids: The ids of the images (n,).
        detector: The detector that computed the embeddings.
        facts: The expected settings, such as the weights, with which the embeddings were computed
            (`detectors.linear_head.embedding_facts`).

    Returns:
        The embeddings (n, d). An image without a stored embedding has NaN.

    Raises:
        ConfigError: If the embeddings of this block were computed with other settings.
    """
    width = facts["width"]
    vectors = np.full((len(image_ids), width), np.nan, np.float32)
    rows = run.read_sidecar(features_folder(detector), ref.manifest, ref.block)
    if rows is None:
        return vectors
    differing = directory.differences({"detector": detector, **facts}, _facts_in(rows.schema))
    if differing:
        raise ConfigError(
            f"{run.store.url}: block {ref.block} of listing {ref.manifest} has embeddings of {detector} that were computed in another way:\n  "
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
