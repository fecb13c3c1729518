"""The meaning of each column of a result row, for the reference.

`ray_app.runs.schema` defines the columns.
"""

from ray_app.runs.schema import DETAIL, FINDING, GROUNDS, SECOND_LOOK

COLUMN_MEANING: dict[str, str] = {
    "image_id": "the number of the image in the run's manifest; with `run_id` it names a row",
    "uri": "the file, or the archive that contains the image",
    "member": "the name of the file inside the archive, or the row number in a Parquet file; null for a plain file",
    "occurrence": "0, or a higher number for a further file of the same name in the same archive, or for a URL whose secret was refused",
    "input": "the columns of the source, unchanged",
    "status": "`ok`, or the reason why there is no score",
    "detail": "details of the status: numbers, names, or the message of a decoder",
    "sha256": "SHA-256 of the file's bytes, in hex",
    "format": "the format by content, regardless of the file name: `JPEG`, `PNG`, …",
    "width": "pixels, as stored in the file",
    "height": "pixels, as stored in the file",
    "mode": "the colour mode of the file, as Pillow names it",
    "frames": "the number of frames; the first frame is scored",
    "orientation": "the EXIF orientation; 1 if there is none, and for formats whose decoder rotates the pixels",
    "icc": "whether the file has a colour profile",
    "flags": "irregularities that did not prevent a score, sorted",
    "decoder": "the library and version that decoded it",
    "quality": "the quality of a JPEG from 1 to 100, estimated from its quantization tables",
    "texture": "the mean difference between neighbouring pixels of a small view, 0 to 255; only if the card of a detector limits it",
    "graphics": "how much the image looks like a drawing or a screenshot, 0 to 1; only if the card of a detector limits it",
    "scores": "log-odds of fake for each detector; null if a detector gave no score",
    "views": "log-odds of fake for each perturbation, by its name, and each detector",
    "mask_area": "for each detector that localizes: the fraction of pixels that are more likely altered than not",
    "mask_peak": "for each detector that localizes: the highest probability of any pixel",
    "replies": "the reply of each detector that answers in text",
    FINDING: "the strongest ground in words, from statements of the file and from the detectors",
    GROUNDS: "all grounds, strongest first: the source, its statement, and its error rate; `says` begins with `against this` if a "
    "ground contradicts the finding",
    "score": "log-odds of fake by the ensemble's rule; higher is more likely fake",
    "probability": "the score as a number from 0 to 1: a probability if `calibrated`, else the plain sigmoid",
    "calibrated": "whether the ensemble was calibrated on labelled images",
    "verdict": "`fake`, `real` (no evidence found), or `abstain`; null if there is no score",
    "verdict_reason": "the reason why the verdict is `abstain`, from a closed list",
    DETAIL: "details of the reason: detectors and numbers",
    SECOND_LOOK: "for a cascade: why all detectors scored the image, `band` or `audit`; null if the first stage decided",
    "predicted_generator": "the known generator that is most similar; null if none is similar",
    "generator_family": "the family of that generator",
    "generator_probability": "the probability of the first generator in the ranking, among the known generators",
    "generator_confidence": "the confidence that the generator is a known one; higher is more confident",
    "generator_ranking": "the most similar generators, best first",
    "predicted_prompt": "the predicted prompt of the image",
    "prompt_likelihood": "the likelihood of the predicted prompt under its model; comparable only within one describer",
    "provenance": "JSON: the origin that the file states (Content Credentials, IPTC, EXIF, generator settings)",
    "attempt": "the number of the session that wrote the row",
    "scored_at": "the time of scoring, in UTC",
}
"""The meaning of each column, by name; names are in backticks."""
