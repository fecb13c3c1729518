"""`verify_detector`: checks of a detector on this machine: each of its files, the keys and counts
of its networks, and its golden scores.

`fits` is the check of one part's keys. torch is imported when a network is built.
"""

import math
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from PIL import Image

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.card_sections import FormulaScore, GoldenScore, formula_image
from ray_app.detectors.weights import (
    WeightSet,
    checkpoint_config,
    file_sha256,
    located,
    missing_beside,
    parts_of,
    read_state_dict,
    resolve_part,
)
from ray_app.errors import DetectorError, InputError
from ray_app.images import ImageLimits, decode_image

if TYPE_CHECKING:
    from torch import nn

    from ray_app.detectors import Detector

Outcome = Literal["ok", "failed", "skipped"]


class DetectorCheck(NamedTuple):
    """One check and its result; where it was `skipped`, why. `part`: whose files were looked at, ""
    for the detector as a whole.
    """

    name: str
    outcome: Outcome
    told: str
    part: str = ""


def verify_detector(card: DetectorCard, images: Path | None = None) -> Iterator[DetectorCheck]:
    """Check each part on its own (present, SHA-256 of every file, keys and shapes), then counts,
    loading and golden scores.

    A part that is missing or wrong keeps no other one from being checked; what needs all of them is
    skipped then. `images`: a folder that holds the images of published scores under any name.
    Nothing is downloaded but from the mirror. Raises DetectorError where no network can be built of
    the card.
    """
    from ray_app.detectors.detector import bare_network

    network, sound = bare_network(card), True
    for part in parts_of(card):
        for check in _check_part(card, part, network):
            sound = (
                sound
                and check.outcome != "failed"
                and (check.name, check.outcome) != ("present", "skipped")
            )
            yield check
    yield from _check_counts(card, network)
    detector: Detector | None = None
    if not sound:
        yield DetectorCheck(
            "loads", "skipped", "a part is missing, or not the one that the card means"
        )
    else:
        check, detector = _load(card)
        yield check
    yield from _check_golden(card, detector, images)


def _check_part(
    card: DetectorCard, part: WeightSet, network: "nn.Module"
) -> Iterator[DetectorCheck]:
    try:
        path = located(part) or resolve_part(part, offline=True)
    except DetectorError as error:
        if part.weights.fitted:
            yield DetectorCheck(
                "present", "skipped", f"no head is fitted yet: {error.hint}", part.name
            )
            return
        incomplete = missing_beside(part)
        told = (
            f"{incomplete[0]} is here, but not beside it: {', '.join(incomplete[1])}"
            if incomplete
            else error.message
        )
        yield DetectorCheck("present", "failed", f"{told}; {error.hint}", part.name)
        return
    yield DetectorCheck("present", "ok", str(path), part.name)
    files = [_check_file(part, path, part.weights.sha256, part.weights.unverified)]
    files += [
        _check_file(part, path.parent / name, stated, "the card states none")
        for name, stated in part.weights.beside.items()
    ]
    yield from files
    if any(check.outcome == "failed" for check in files):
        yield DetectorCheck(
            "keys", "skipped", "not read: a file is not the one that the card means", part.name
        )
        return
    try:
        yield DetectorCheck("keys", "ok", fits(card, part, path, network), part.name)
    except DetectorError as error:
        yield DetectorCheck("keys", "failed", error.message, part.name)


def _check_file(
    part: WeightSet, path: Path, stated: str | None, unverified: str | None
) -> DetectorCheck:
    digest = file_sha256(path)
    if stated is None:
        return DetectorCheck(
            "sha256",
            "skipped",
            f"{path} has {digest}; no sha256 to compare with: {unverified}",
            part.name,
        )
    if digest != stated:
        return DetectorCheck(
            "sha256", "failed", f"{path} has {digest}, the card says {stated}", part.name
        )
    return DetectorCheck("sha256", "ok", f"{path} {digest}", part.name)


def fits(
    card: DetectorCard, part: WeightSet, path: Path, network: "nn.Module | None" = None
) -> str:
    """Read a part's file and compare every key and shape with the card's network; says what was
    found to fit. Raises DetectorError.
    """
    from ray_app.detectors.detector import BACKBONE, bare_network, own_keys
    from ray_app.detectors.weights import require_fit

    network = bare_network(card) if network is None else network
    if getattr(network, "reads_its_own_weights", False):
        return "not compared: another engine reads these weights"
    state, where = read_state_dict(path, part.weights), f"{part.owner}: {path}"
    if card.backbone is not None and part.name == card.backbone.name:
        backbone = network.get_submodule(BACKBONE)
        require_fit(backbone, own_keys(card, state, backbone), where)
    else:
        require_fit(
            network,
            own_keys(card, state, network),
            where,
            without=None if card.backbone is None else f"{BACKBONE}.",
        )
        checkpoint_config(card, path)
    return f"all {len(state)} keys and shapes of the file fit the network, and none is missing"


def _load(card: DetectorCard) -> "tuple[DetectorCheck, Detector | None]":
    from ray_app.detectors import load_detector

    try:
        # Golden scores are those of single images in full precision; where there are none, memory
        # counts more.
        detector = load_detector(
            card, precision="fp32" if card.golden else "auto", slots=1, offline=True
        )
    except DetectorError as error:
        return DetectorCheck("loads", "failed", error.message), None
    return DetectorCheck("loads", "ok", f"all parts together, in {detector.precision}"), detector


def _check_counts(card: DetectorCard, network: "nn.Module") -> Iterator[DetectorCheck]:
    if card.size is None:
        yield from (
            DetectorCheck(name, "skipped", "the card states no size")
            for name in ("parameters", "tensors")
        )
        return
    parameters = sum(parameter.numel() for parameter in network.parameters())
    counts = {
        "parameters": (parameters, card.size.parameters),
        "tensors": (len(network.state_dict()), card.size.tensors),
    }
    for name, (found, stated) in counts.items():
        same = found == stated
        yield DetectorCheck(
            name,
            "ok" if same else "failed",
            f"{found:,}" if same else f"{found:,}, the card says {stated:,}",
        )


def _check_golden(
    card: DetectorCard, detector: "Detector | None", images: Path | None
) -> Iterator[DetectorCheck]:
    if not card.golden:
        yield DetectorCheck("golden", "skipped", "the card has no score of a single image")
        return
    wanted = {golden.sha256 for golden in card.golden if isinstance(golden, GoldenScore)}
    found = _find_images(images, wanted) if images and detector and wanted else {}
    for golden in card.golden:
        name = (
            f"formula {golden.width} × {golden.height}"
            if isinstance(golden, FormulaScore)
            else golden.name
        )
        if detector is None:
            yield DetectorCheck("golden", "skipped", f"{name}: the network was not loaded")
        elif isinstance(golden, FormulaScore):
            yield _replay(detector, golden)
        elif (path := found.get(golden.sha256)) is None:
            where = f"is not in {images}" if images else "is needed (--images FOLDER)"
            yield DetectorCheck(
                "golden",
                "skipped",
                f"{name} {where}: sha256 {golden.sha256}; published: {golden.source}",
            )
        else:
            yield _compare(detector, golden, path)


def _find_images(folder: Path, wanted: Set[str]) -> dict[str, Path]:
    """Return the path of each file below a folder whose SHA-256 is wanted, whatever its name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {digest: path for path in reversed(paths) if (digest := file_sha256(path)) in wanted}


def _replay(detector: "Detector", golden: FormulaScore) -> DetectorCheck:
    score = _score(detector, Image.fromarray(formula_image(golden.width, golden.height)))
    near = abs(score - golden.logit) <= golden.tolerance
    told = f"formula {golden.width} × {golden.height}: log-odds {score:.6f}, the card says {golden.logit:g} within {golden.tolerance:g}"
    return DetectorCheck("golden", "ok" if near else "failed", told)


def _score(detector: "Detector", image: Image.Image) -> float:
    return float(detector.score(detector.prepare(image)[None])[0])


def _compare(detector: "Detector", golden: GoldenScore, path: Path) -> DetectorCheck:
    try:
        score = _score(detector, decode_image(path.read_bytes(), ImageLimits()).pixels)
    except InputError as error:
        return DetectorCheck("golden", "failed", f"{path}: {error.message}")
    probability = (1 + math.tanh(score / 2)) / 2  # the sigmoid, without overflow
    near = abs(probability - golden.probability) <= golden.tolerance
    message = f"{golden.name}: P(fake) {probability:.4f}, published {golden.probability:.4f}, tolerance {golden.tolerance:g}"
    return DetectorCheck("golden", "ok" if near else "failed", message)
