"""Define the columns of a result row (`row_schema`). docs_site/columns.py describes each column.

The schema has a version number. A reader of version n also reads version n-1. A column is never
renamed. Version 8 no longer has the columns `reused`, `stability`, and `phash`, whose features
Touchstone 1.0 removes. Older files keep these columns.
"""

from collections.abc import Sequence

import pyarrow as pa

SCHEMA_VERSION = 8
OLDEST_SCHEMA = 7  # Touchstone 0.20 wrote it. Older runs are refused.
DETAIL = "verdict_detail"
FINDING, GROUNDS = "finding", "grounds"
UNLIKE = "the archive is not like what the card was calibrated on"
MASK_COLUMNS = ("mask_area", "mask_peak")
SECOND_LOOK = "second_look"
IDENTIFIED = {
    "generator_family": pa.dictionary(pa.int32(), pa.string()),
    "generator_probability": pa.float32(),
    "generator_confidence": pa.float32(),
    "generator_ranking": pa.list_(pa.string()),
}
DESCRIBED = {"prompt_likelihood": pa.float32()}

MASK_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("detector", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("png", pa.binary()),
    ],
    metadata={"touchstone.schema": str(SCHEMA_VERSION)},
)
# For runs with perturbations. `view` is the perturbation's name, or null in rows of the clean pass.
VIEWED_MASK_SCHEMA = MASK_SCHEMA.append(pa.field("view", pa.string()))


def row_schema(
    detectors: Sequence[str],
    input_type: pa.DataType | None = None,
    localizers: Sequence[str] = (),
    speakers: Sequence[str] = (),
    *,
    views: Sequence[str] = (),
    second_look: bool = False,
    identified: bool = False,
    described: bool = False,
    measured: Sequence[str] = (),
) -> pa.Schema:
    """Return the schema of the result rows of a run, in `parts/` and `scores/`.

    The column `scores` is a struct with a float32 per detector. Columns of features that were not
    requested are left out. The identifier, a model that names generators, may give an image no
    name. The columns for generator and family are then null. `generator_ranking` (best first) and
    `generator_probability` (of the first) still show the nearest generators.

    Args:
        detectors: The names of the detectors.
        input_type: The struct type of the column `input`, which repeats the columns of a source
            that is a table. None leaves out the column `input`.
        localizers: Detectors that return masks.
        speakers: Detectors that answer in words.
        views: The names of the perturbations whose images are scored, too.
        second_look: Whether the ensemble is a cascade, which scores some images in a second stage.
        identified: Whether generators are named.
        described: Whether prompts are predicted.
        measured: Columns for properties of the pixels, such as `texture`. A detector's card may
            state for which values the detector is valid (see `ImageFileFacts`).
    """
    text, label = pa.string(), pa.dictionary(pa.int32(), pa.string())
    scores = pa.struct([(name, pa.float32()) for name in detectors])
    fields = [
        ("image_id", pa.int64()),
        ("uri", text),
        ("member", text),
        ("occurrence", pa.int32()),
        *([("input", input_type)] if input_type is not None else []),
        ("status", label),
        ("detail", text),
        ("sha256", text),
        ("format", label),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", label),
        ("frames", pa.int32()),
        ("orientation", pa.int8()),
        ("icc", pa.bool_()),
        ("flags", pa.list_(pa.string())),
        ("decoder", label),
        ("quality", pa.int8()),
        *((name, pa.float64()) for name in measured),
        ("scores", scores),
        *([("views", pa.struct([(view, scores) for view in views]))] if views else []),
        *[
            (column, pa.struct([(name, pa.float32()) for name in localizers]))
            for column in MASK_COLUMNS
            if localizers
        ],
        *([("replies", pa.struct([(name, text) for name in speakers]))] if speakers else []),
        (FINDING, label),
        (GROUNDS, pa.list_(pa.struct([(name, text) for name in ("source", "says", "error")]))),
        ("score", pa.float64()),
        ("probability", pa.float64()),
        ("calibrated", pa.bool_()),
        ("verdict", label),
        ("verdict_reason", text),
        (DETAIL, text),
        *([(SECOND_LOOK, label)] if second_look else []),
        ("predicted_generator", text),
        *(IDENTIFIED.items() if identified else []),
        ("predicted_prompt", text),
        *(DESCRIBED.items() if described else []),
        ("provenance", text),
        ("attempt", pa.int32()),
        ("scored_at", pa.timestamp("us", tz="UTC")),
    ]
    return pa.schema(fields, metadata={"touchstone.schema": str(SCHEMA_VERSION)})
