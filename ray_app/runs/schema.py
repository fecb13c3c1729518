"""The columns of a result row (`row_schema`), what they mean (`COLUMN_MEANING`), and what older ones mean today (`reason_of`).

Additive: a reader of schema n reads n-1; a column is never renamed.
"""

from collections.abc import Sequence

import pyarrow as pa

from ray_app.errors import Doubt, Reason

SCHEMA_VERSION = 7
DETAIL = "verdict_detail"
FINDING, GROUNDS = "finding", "grounds"
UNLIKE = "the archive is not like what the card was calibrated on"
MASK_COLUMNS = ("mask_area", "mask_peak")
SECOND_LOOK = "second_look"
STABILITY = "stability"
IDENTIFIED = {
    "generator_family": pa.dictionary(pa.int32(), pa.string()),
    "generator_probability": pa.float32(),
    "generator_confidence": pa.float32(),
    "generator_ranking": pa.list_(pa.string()),
}
DESCRIBED = {"prompt_likelihood": pa.float32()}

COLUMN_MEANING: dict[str, str] = {
    "image_id": "the number of the image in the run's manifest; with `run_id` it names a row",
    "uri": "the file, or the archive that the image lies in",
    "member": "the name of the file inside the archive; of a Parquet file the row's number; null for a plain file",
    "occurrence": "0, or a higher number for a further file of the same name in the same archive",
    "input": "the source's own columns, as it had them",
    "status": "`ok`, or why there is no score",
    "detail": "what varies in the status: numbers, names, a decoder's complaint",
    "sha256": "SHA-256 of the file's bytes, in hex",
    "format": "what the bytes are, whatever the name says: `JPEG`, `PNG`, …",
    "width": "pixels, as stored in the file",
    "height": "pixels, as stored in the file",
    "mode": "the file's own colour mode, by Pillow's name",
    "frames": "how many frames the file has; the first one is scored",
    "orientation": "the EXIF orientation; 1 where there is none, and for formats whose decoder turns the pixels",
    "icc": "whether the file has a colour profile",
    "flags": "what is odd about the file and did not keep it from being scored, sorted",
    "decoder": "the library and version that decoded it",
    "quality": "of a JPEG, its quality from 1 to 100, estimated from its tables",
    "texture": "mean step between neighbouring pixels of a small view, 0 to 255; only where a detector's card bounds it",
    "graphics": "how much the image looks like a drawing or a screenshot, 0 to 1; only where a detector's card bounds it",
    "phash": "64-bit perceptual hash of the decoded image, 16 hex digits",
    "scores": "log-odds of fake for each detector; null where a detector gave none",
    "views": "the same for each perturbation, by its name",
    STABILITY: "the same for each recompressed view; null where no view was scored",
    "mask_area": "for each detector that localizes: the share of pixels that are more likely altered than not",
    "mask_peak": "for each detector that localizes: the highest probability of any pixel",
    "replies": "what each detector that answers in words replied",
    FINDING: "in words, what the file says of itself and the detectors see: the strongest of the grounds",
    GROUNDS: "all of them, the strongest first: the source, what it says, and its error rate; `says` begins with `against this` where a "
    "ground speaks against the finding",
    "score": "log-odds of fake by the ensemble's rule; higher is more likely fake",
    "probability": "the score as a number from 0 to 1: a chance where `calibrated`, else the plain sigmoid",
    "calibrated": "whether the ensemble was calibrated on labelled images",
    "verdict": "`fake`, `real` (no evidence found) or `abstain`; null where there is no score",
    "verdict_reason": "why the verdict is `abstain`: one word of a closed list",
    DETAIL: "what varies in the reason: detectors and figures",
    SECOND_LOOK: "of a cascade: why all detectors scored the image, `band` or `audit`; null where the first ones sufficed",
    "predicted_generator": "the generator that the image is nearest to; null where it is like none of the known ones",
    "generator_family": "the family of that generator",
    "generator_probability": "the chance of the first generator in the ranking, among the known ones",
    "generator_confidence": "how sure it is that the generator is a known one; higher is surer",
    "generator_ranking": "the nearest generators, best first",
    "predicted_prompt": "a guess at the words that the image was made from",
    "prompt_likelihood": "how likely those words are to their model; comparable within one describer only",
    "provenance": "JSON: what the file itself states of its origin (Content Credentials, IPTC, EXIF, generator settings)",
    "reused": "whether the scores were copied from a byte-identical file",
    "attempt": "the number of the session that wrote the row",
    "scored_at": "when, in UTC",
}
"""What each column that a row may have means, in words for readers; names in backticks."""

MASK_SCHEMA = pa.schema(
    [("image_id", pa.int64()), ("detector", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("png", pa.binary())],
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
    perceptual_hash: bool = False,
    second_look: bool = False,
    stability: bool = False,
    identified: bool = False,
    described: bool = False,
    measured: Sequence[str] = (),
) -> pa.Schema:
    """Columns of `parts/` and `scores/`; `scores` is a struct with one float32 per detector.

    What each column means: `COLUMN_MEANING`. `localizers`, `speakers`: detectors that localize, that answer in words; `views`:
    perturbations; `measured`: facts of pixels, where a detector's card bounds them (see `ImageFileFacts`). Columns of what was not asked
    for are left out. Where an identifier knows no generator like this one, generator and family are null, and `generator_ranking` (best
    first) and `generator_probability` (of the first) still say which is nearest.
    `input` repeats the source's own columns and stands only where the source has any: Parquet has no empty struct.
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
        *([("phash", text)] if perceptual_hash else []),
        ("scores", scores),
        *([("views", pa.struct([(view, scores) for view in views]))] if views else []),
        *([(STABILITY, pa.list_(scores))] if stability else []),
        *[(column, pa.struct([(name, pa.float32()) for name in localizers])) for column in MASK_COLUMNS if localizers],
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
        ("reused", pa.bool_()),
        ("attempt", pa.int32()),
        ("scored_at", pa.timestamp("us", tz="UTC")),
    ]
    return pa.schema(fields, metadata={"touchstone.schema": str(SCHEMA_VERSION)})


def reason_of(text: str | None) -> Doubt | None:
    """A row's `verdict_reason` as a word of the list and what varies in it; before schema 6 it was one sentence."""
    if text is None:
        return None
    if text in set(Reason):
        return Doubt(Reason(text))
    for start, reason in _SENTENCES.items():
        if text.startswith(start):
            return Doubt(reason, text.removeprefix(start).removeprefix(": ") or None)
    of_members = [part for part in text.split("; ") if not part.startswith("outside what the calibration saw")]
    if any(part.endswith(": no score") or ": no score (it replied " in part for part in of_members):
        return Doubt(Reason.NO_SCORE, text)
    return Doubt(Reason.OUT_OF_RANGE if of_members else Reason.UNLIKE_CALIBRATION, text)


_SENTENCES = {
    "inside the abstain band": Reason.INSIDE_BAND,
    "unstable": Reason.UNSTABLE,
    UNLIKE: Reason.UNLIKE_ARCHIVE,
}
