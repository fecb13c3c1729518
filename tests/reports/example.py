"""A summary as the engine writes it, with figures that look like an archive's."""

import io
import itertools
import math
from typing import Any

import yaml
from PIL import Image

EDGES = [-8 + 0.4 * index for index in range(41)]


def example_summary(**changes: Any) -> dict[str, Any]:
    return {**_SUMMARY, **changes}


def _bell(centre: float, spread: float, total: int) -> list[float]:
    middles = [(left + right) / 2 for left, right in itertools.pairwise(EDGES)]
    weights = [math.exp(-(((middle - centre) / spread) ** 2) / 2) for middle in middles]
    return [total * weight / sum(weights) for weight in weights]


def scores(*bells: tuple[float, float, int]) -> list[int]:
    return [round(sum(parts)) for parts in zip(*(_bell(*bell) for bell in bells), strict=True)]


def top(image_id: int, path: str, member: str | None, score: float, verdict: str) -> dict[str, Any]:
    uri, probability = f"s3://picture-desk/harbour/{path}", 1 / (1 + math.exp(-score))
    return {
        "image_id": image_id,
        "uri": uri,
        "member": member,
        "score": score,
        "probability": probability,
        "verdict": verdict,
    }


_SUMMARY: dict[str, Any] = yaml.safe_load("""
schema: 1
run: s3://picture-desk/touchstone/harbour-archive
listing: 0
version: 0.1.0
started_at: "2030-01-01T22:00:00Z"
finished_at: "2030-01-01T22:00:29Z"
complete: true
members: 3000
provenance:
  stated: 1204
  declared: {fake: 31, abstain: 4, real: 9, none: 1}
  undeclared: {fake: 119, abstain: 36, real: 2791, none: 9}
  c2pa: {intact: 12, trusted: 3, invalid: 2}
statuses: {ok: 2990, unsupported_format: 3, corrupt_image: 3, truncated_image: 2, image_too_large: 1, empty_file: 1}
examples:
  corrupt_image:
    - {uri: "s3://picture-desk/harbour/1987/scan-0012.jpg", member: null, detail: broken data stream when reading image file}
    - {uri: "s3://picture-desk/harbour/1987/scan-0013.jpg", member: null, detail: unrecognized data stream contents}
    - {uri: "s3://picture-desk/harbour/1987/scan-0014.jpg", member: null, detail: cannot decode}
  truncated_image:
    - {uri: "s3://picture-desk/harbour/1987/scan-0012.jpg", member: null, detail: image file is truncated (41 bytes not processed)}
  image_too_large:
    - uri: s3://picture-desk/harbour/1987/scan-0012.jpg
      member: null
      detail: 20000 × 20000 pixels = 400 megapixels, limit max_pixels 50 megapixels
  unsupported_format:
    - {uri: "s3://picture-desk/harbour/1987/scan-0012.jpg", member: null, detail: "bytes begin with 'TITLE,PHOTOGRAPHER,YE'"}
  empty_file:
    - {uri: "s3://picture-desk/harbour/boxes/box-07.tar", member: box-07/0419.png, detail: ""}
verdicts: {real: 2800, fake: 150, abstain: 40}
verdict_reasons: {inside_band: 38, out_of_range: 2}
flags: {animated: 3, cmyk: 21, trailing_bytes: 7, broken_exif: 2}
formats: {JPEG: 2741, PNG: 198, WEBP: 38, TIFF: 16, GIF: 3}
ensemble:
  name: default
  title: Demonstration ensemble
  rule: mean-logit
  calibrated: false
  demonstration: true
  members:
    - {name: touchstone-tiny, title: Touchstone tiny residual network, licence: Apache-2.0, calibrated: false, demonstration: true}
    - name: community-forensics-vits384
      title: Community Forensics ViT-S/16, 384 px
      licence: MIT
      calibrated: false
      demonstration: false
  thresholds:
    real_below: -1.0
    fake_above: 2.0
    false_positive_rate: 0.01
    true_positive_rate: 0.8
    n_real: 1500
    n_fake: 1500
    measured_on: held-out scenes, decoders and cameras of the demonstration set
session:
  rows: 3000
  wall_s: 29.4
  first_result_s: 4.5
  images_per_s: 120.5
  bytes_read: 823456789
  throttled: 0
  retried: 1
  workers: 2
  layout: fused
  seconds: {list: 0.4, fetch: 3.1, decode: 18.2, prepare: 1.9, score: 25.8, write: 0.4}
bottleneck:
  stage: score
  share: 0.518
  advice: "The cores are busy with the model itself: more cores, or a GPU, raise the rate."
identity:
  source: ["s3://picture-desk/harbour/"]
  exclude: []
  limits: {max_pixels: 50000000, max_side_px: 16384, max_bytes: 33554432}
  detectors:
    - {name: touchstone-tiny, sha256: 9f2c9f2c9f2c9f2c, preprocessing: {resize: null, crop: null}}
    - {name: community-forensics-vits384, sha256: 03ab03ab03ab03ab, preprocessing: {resize: 440, crop: 384}}
  rule: mean-logit
  thresholds: {real_below: -1.0, fake_above: 2.0}
  precision: fp32
  batch_slots: 32
""") | {
    "histogram": {
        "edges": EDGES,
        "counts": {
            "ensemble": scores((-4.2, 1.25, 2830), (3.6, 1.3, 160)),
            "touchstone-tiny": scores((-3.6, 1.6, 2820), (3.0, 1.6, 170)),
            "community-forensics-vits384": scores((-5.1, 1.1, 2850), (4.4, 1.2, 140)),
        },
    },
    "top": [
        *(
            top(
                1000 + rank,
                f"incoming/2029-{rank:02d}/IMG_{4200 + 37 * rank}.jpg",
                None,
                7.9 - 0.21 * rank,
                "fake",
            )
            for rank in range(1, 11)
        ),
        top(2000, "boxes/box-11.tar", "box-11/plates/0007.png", 5.61, "abstain"),
    ],
}


def thumbnail() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(data, "JPEG")
    return data.getvalue()
