"""The columns of a result row (`row_schema`); docs_site/columns.py describes each.

A reader of schema n reads n-1; a column is never renamed. Schema 8 leaves out the columns of
features that 1.0 retires (`reused`, `stability`, `phash`); older files keep them.
"""

from collections.abc import Sequence

import pyarrow as pa

SCHEMA_VERSION = 8
OLDEST_SCHEMA = 7  # of Touchstone 0.20; older runs are refused
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
# Of runs with perturbations: `view` is the perturbation's name, null in the rows of the clean pass.
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
    """Columns of `parts/` and `scores/`; `scores` is a struct with one float32 per detector.

    `localizers`, `speakers`: detectors that localize, that answer in words; `views`: perturbations;
    `measured`: facts of pixels, where a detector's card bounds them (see `ImageFileFacts`). Columns
    of what was not asked for are left out. Where an identifier knows no generator like this one,
    generator and family are null, and `generator_ranking` (best first) and `generator_probability`
    (of the first) still say which is nearest. `input` repeats the source's own columns and stands
    only where the source has any: Parquet has no empty struct.
    """
    text, words = pa.string(), pa.dictionary(pa.int32(), pa.string())
    scores = pa.struct([(name, pa.float32()) for name in detectors])
    fields = [
        ("image_id", pa.int64()),
        ("uri", text),
        ("member", text),
        ("occurrence", pa.int32()),
        *([("input", input_type)] if input_type is not None else []),
        ("status", words),
        ("detail", text),
        ("sha256", text),
        ("format", words),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", words),
        ("frames", pa.int32()),
        ("orientation", pa.int8()),
        ("icc", pa.bool_()),
        ("flags", pa.list_(pa.string())),
        ("decoder", words),
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
        (FINDING, words),
        (GROUNDS, pa.list_(pa.struct([(name, text) for name in ("source", "says", "error")]))),
        ("score", pa.float64()),
        ("probability", pa.float64()),
        ("calibrated", pa.bool_()),
        ("verdict", words),
        ("verdict_reason", text),
        (DETAIL, text),
        *([(SECOND_LOOK, words)] if second_look else []),
        ("predicted_generator", text),
        *(IDENTIFIED.items() if identified else []),
        ("predicted_prompt", text),
        *(DESCRIBED.items() if described else []),
        ("provenance", text),
        ("attempt", pa.int32()),
        ("scored_at", pa.timestamp("us", tz="UTC")),
    ]
    return pa.schema(fields, metadata={"touchstone.schema": str(SCHEMA_VERSION)})
