"""`verify_detector`: checks of a detector on this machine: its files, its keys and counts, and the scores that its authors published.

torch is imported when a network is loaded.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from ray_app.detectors.card import DetectorCard, GoldenScore
from ray_app.detectors.weights import WeightSet, file_sha256, located, parts_of, resolve_part
from ray_app.errors import DetectorError, InputError
from ray_app.images import ImageLimits, decode_image

if TYPE_CHECKING:
    from ray_app.detectors import Detector

Outcome = Literal["ok", "failed", "skipped"]


class DetectorCheck(NamedTuple):
    """One check and its result; where it was `skipped`, why."""

    name: str
    outcome: Outcome
    told: str


def verify_detector(card: DetectorCard, images: Path | None = None, cache_dir: Path | None = None) -> Iterator[DetectorCheck]:
    """Check files, keys, counts and golden scores one after the other; what depends on a check that failed is skipped.

    `images`: a folder that holds the images of the golden scores under any name. Nothing is downloaded but from the mirror.
    Raises DetectorError where weights are missing.
    """
    places = [(part, located(part, cache_dir) or resolve_part(part, cache_dir, offline=True)) for part in parts_of(card)]
    files = [check for part, path in places for check in _check_files(part, path)]
    yield from files
    detector: Detector | None = None
    if any(check.outcome == "failed" for check in files):
        yield DetectorCheck("keys", "skipped", "not loaded: a file is not the one that the card means")
    else:
        check, detector = _load(card, cache_dir)
        yield check
    yield from _check_counts(card, detector)
    yield from _check_golden(card, detector, images)


def _check_files(part: WeightSet, path: Path) -> Iterator[DetectorCheck]:
    yield _check_file(path, part.weights.sha256, part.weights.unverified)
    for name, stated in part.weights.beside.items():
        yield _check_file(path.parent / name, stated, "the card states none")


def _check_file(path: Path, stated: str | None, unverified: str | None) -> DetectorCheck:
    digest = file_sha256(path)
    if stated is None:
        return DetectorCheck("sha256", "skipped", f"{path} has {digest}; no sha256 to compare with: {unverified}")
    if digest != stated:
        return DetectorCheck("sha256", "failed", f"{path} has {digest}, the card says {stated}")
    return DetectorCheck("sha256", "ok", f"{path} {digest}")


def _load(card: DetectorCard, cache_dir: Path | None) -> "tuple[DetectorCheck, Detector | None]":
    from ray_app.detectors import load_detector

    try:
        # The published scores are those of single images in full precision; where there are none, memory counts more.
        detector = load_detector(card, precision="fp32" if card.golden else "auto", slots=1, cache_dir=cache_dir, offline=True)
    except DetectorError as error:
        return DetectorCheck("keys", "failed", error.message), None
    return DetectorCheck("keys", "ok", "every key and shape of the file fits the network, and none is missing"), detector


def _check_counts(card: DetectorCard, detector: "Detector | None") -> Iterator[DetectorCheck]:
    if card.size is None or detector is None:
        why = "the network was not loaded" if detector is None else "the card states no size"
        yield from (DetectorCheck(name, "skipped", why) for name in ("parameters", "tensors"))
        return
    parameters = sum(parameter.numel() for parameter in detector.network.parameters())
    counts = {"parameters": (parameters, card.size.parameters), "tensors": (len(detector.network.state_dict()), card.size.tensors)}
    for name, (found, stated) in counts.items():
        same = found == stated
        yield DetectorCheck(name, "ok" if same else "failed", f"{found:,}" if same else f"{found:,}, the card says {stated:,}")


def _check_golden(card: DetectorCard, detector: "Detector | None", images: Path | None) -> Iterator[DetectorCheck]:
    if not card.golden:
        yield DetectorCheck("golden", "skipped", "the authors published no score of a single image")
        return
    found = _by_sha256(images, {golden.sha256 for golden in card.golden}) if images and detector else {}
    for golden in card.golden:
        path = found.get(golden.sha256)
        if detector is None:
            yield DetectorCheck("golden", "skipped", f"{golden.name}: the network was not loaded")
        elif path is None:
            where = f"is not in {images}" if images else "is needed (--images FOLDER)"
            yield DetectorCheck("golden", "skipped", f"{golden.name} {where}: sha256 {golden.sha256}; published: {golden.source}")
        else:
            yield _compare(detector, golden, path)


def _compare(detector: "Detector", golden: GoldenScore, path: Path) -> DetectorCheck:
    try:
        pixels = detector.prepare(decode_image(path.read_bytes(), ImageLimits()).pixels)
    except InputError as error:
        return DetectorCheck("golden", "failed", f"{path}: {error.message}")
    score = float(detector.score(pixels[None])[0])
    probability = (1 + math.tanh(score / 2)) / 2  # the sigmoid, without overflow
    near = abs(probability - golden.probability) <= golden.tolerance
    message = f"{golden.name}: P(fake) {probability:.4f}, published {golden.probability:.4f}, tolerance {golden.tolerance:g}"
    return DetectorCheck("golden", "ok" if near else "failed", message)


def _by_sha256(folder: Path, wanted: set[str]) -> Mapping[str, Path]:
    """The wanted files below a folder, whatever they are called."""
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest = file_sha256(path)
        if digest in wanted:
            found.setdefault(digest, path)
        if len(found) == len(wanted):
            break
    return found
