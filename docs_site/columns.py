"""What each column that a row may have means (`COLUMN_MEANING`), for the reference; the columns
themselves: `ray_app.runs.schema`.
"""

from ray_app.runs.schema import DETAIL, FINDING, GROUNDS, SECOND_LOOK

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
    "scores": "log-odds of fake for each detector; null where a detector gave none",
    "views": "the same for each perturbation, by its name",
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
    "attempt": "the number of the session that wrote the row",
    "scored_at": "when, in UTC",
}
"""In words for readers; names in backticks."""
