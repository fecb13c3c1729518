"""Check a detector on this machine: its files, keys, parameter counts, and golden scores.

A golden score is the expected score of one image on a card. Start at `verify_detector`.
`check_keys` compares the keys of one file. torch is imported when a network is built.
"""

import math
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from PIL import Image

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.card_sections import FormulaScore, GoldenScore, generate_formula_image
from ray_app.detectors.checkpoints import (
    checkpoint_config,
    explaining_access,
    read_state_dict,
    require_fit,
)
from ray_app.detectors.weights import (
    WeightSet,
    find_local_file,
    find_missing_files,
    hash_file,
    list_parts,
    resolve_part,
)
from ray_app.errors import DetectorError, InputError
from ray_app.images import ImageLimits, decode_image

if TYPE_CHECKING:
    from torch import nn

    from ray_app.detectors import Detector

Outcome = Literal["ok", "failed", "skipped"]


class DetectorCheck(NamedTuple):
    """A check of a detector on this machine, such as "golden", and its result.

    `outcome` is "ok", "failed", or "skipped", and `told` is the result or the reason as text.
    `part` is the detector or backbone whose files were checked, "" for the detector as a whole.
    """

    name: str
    outcome: Outcome
    told: str
    part: str = ""


def verify_detector(card: DetectorCard, images: Path | None = None) -> Iterator[DetectorCheck]:
    """Check a detector's weight files, parameter counts, loading, and golden scores.

    A golden score is the expected score of one image on the card. A part is the detector's own
    weights or those of its backbone.

    The checks of a part are: its files are present, their SHA-256 is the one on the card, and their
    keys and shapes fit the network. If a part is missing or wrong, the other parts are still
    checked, but checks that need all parts are skipped. Files that are not on this machine are
    fetched only from the mirror that $TOUCHSTONE_WEIGHTS_MIRROR names. `images` is a folder with
    the images of published golden scores, found by their SHA-256. None skips these scores. Raises
    DetectorError if the card's network cannot be built, or if this user may not read a file.
    """
    from ray_app.detectors.detector import build_bare_network

    network, is_sound = build_bare_network(card), True
    for part in list_parts(card):
        for check in _check_part(card, part, network):
            is_missing = (check.name, check.outcome) == ("present", "skipped")
            is_sound = is_sound and check.outcome != "failed" and not is_missing
            yield check
    yield from _check_counts(card, network)
    detector: Detector | None = None
    if is_sound:
        check, detector = _load(card)
        yield check
    else:
        detail = "a part is missing or differs from the card"
        yield DetectorCheck("loads", "skipped", detail)
    yield from _check_golden(card, detector, images)


def _check_part(
    card: DetectorCard, part: WeightSet, network: "nn.Module"
) -> Iterator[DetectorCheck]:
    try:
        path = find_local_file(part) or resolve_part(part, offline=True)
    except DetectorError as error:
        yield _explain_absence(part, error)
        return
    yield DetectorCheck("present", "ok", str(path), part.name)
    files = [
        _check_file(part, file, expected, part.weights.unverified if file == path else None)
        for file, expected in part.at(path).items()
    ]
    yield from files
    if any(check.outcome == "failed" for check in files):
        detail = "a file differs from the card"
        yield DetectorCheck("keys", "skipped", detail, part.name)
        return
    try:
        yield DetectorCheck("keys", "ok", check_keys(card, part, path, network), part.name)
    except DetectorError as error:
        yield DetectorCheck("keys", "failed", error.message, part.name)


def _explain_absence(part: WeightSet, error: DetectorError) -> DetectorCheck:
    if part.weights.fitted:
        detail = f"no head is fitted yet: {error.hint}"
        return DetectorCheck("present", "skipped", detail, part.name)
    detail = error.message
    if present_and_missing := find_missing_files(part):
        detail = f"{present_and_missing[0]} is present, but files next to it are missing: {', '.join(present_and_missing[1])}"
    return DetectorCheck("present", "failed", f"{detail}; {error.hint}", part.name)


def _check_file(
    part: WeightSet, path: Path, expected: str | None, unverified: str | None
) -> DetectorCheck:
    with explaining_access(part.owner, path):
        digest = hash_file(path)
    if expected is None:
        detail = f"{path} has {digest}; no sha256 to compare with: {unverified or 'the card states none'}"
        return DetectorCheck("sha256", "skipped", detail, part.name)
    detail = (
        f"{path} {digest}"
        if digest == expected
        else f"{path} has {digest}, the card states {expected}"
    )
    return _compare("sha256", digest == expected, detail, part.name)


def _compare(name: str, is_equal: bool, detail: str, part: str = "") -> DetectorCheck:
    return DetectorCheck(name, "ok" if is_equal else "failed", detail, part)


def check_keys(
    card: DetectorCard, part: WeightSet, path: Path, network: "nn.Module | None" = None
) -> str:
    """Read a part's main file, compare it with the network, and return the result as a sentence.

    Raises DetectorError if the file is unreadable, or if a key or shape does not fit.
    """
    from ray_app.detectors.detector import BACKBONE, build_bare_network, rename_keys

    network = build_bare_network(card) if network is None else network
    if getattr(network, "reads_its_own_weights", False):
        return "not compared: another engine reads these weights"
    state, where = read_state_dict(path, part.weights), f"{part.owner}: {path}"
    backbone = card.backbone
    if backbone is not None and part.name == backbone.name:
        network = network.get_submodule(BACKBONE)
        require_fit(network, rename_keys(card, state, network), where)
    else:
        without = None if backbone is None else f"{BACKBONE}."
        require_fit(network, rename_keys(card, state, network), where, without=without)
        checkpoint_config(card, path)
    return f"all {len(state)} keys and shapes of the file fit the network, and none is missing"


def _load(card: DetectorCard) -> "tuple[DetectorCheck, Detector | None]":
    from ray_app.detectors import load_detector

    try:
        # Golden scores are measured on single images in full precision. Without golden scores, low
        # memory use matters more.
        detector = load_detector(
            card, precision="fp32" if card.golden else "auto", slots=1, offline=True
        )
    except DetectorError as error:
        return DetectorCheck("loads", "failed", error.message), None
    return DetectorCheck("loads", "ok", f"all parts together, in {detector.precision}"), detector


def _check_counts(card: DetectorCard, network: "nn.Module") -> Iterator[DetectorCheck]:
    counts = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "tensors": len(network.state_dict()),
    }
    for name, count in counts.items():
        if card.size is None:
            yield DetectorCheck(name, "skipped", "the card states no size")
            continue
        expected = getattr(card.size, name)
        detail = f"{count:,}" if count == expected else f"{count:,}, the card states {expected:,}"
        yield _compare(name, count == expected, detail)


def _check_golden(
    card: DetectorCard, detector: "Detector | None", images: Path | None
) -> Iterator[DetectorCheck]:
    if not card.golden:
        yield DetectorCheck("golden", "skipped", "the card has no golden score")
        return
    digests = {golden.sha256 for golden in card.golden if isinstance(golden, GoldenScore)}
    paths = _find_images(images, digests) if images and detector and digests else {}
    for golden in card.golden:
        name = (
            f"formula {golden.width} × {golden.height}"
            if isinstance(golden, FormulaScore)
            else golden.name
        )
        if detector is None:
            yield DetectorCheck("golden", "skipped", f"{name}: the network was not loaded")
        elif isinstance(golden, FormulaScore):
            yield _check_formula(detector, golden, name)
        elif (path := paths.get(golden.sha256)) is None:
            state = f"is not in {images}" if images else "is required (--images FOLDER)"
            detail = f"{name} {state}: sha256 {golden.sha256}; published: {golden.source}"
            yield DetectorCheck("golden", "skipped", detail)
        else:
            yield _check_image(detector, golden, path)


def _find_images(folder: Path, digests: Set[str]) -> dict[str, Path]:
    """Return the path of each file below a folder whose SHA-256 is in `digests`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {digest: path for path in reversed(paths) if (digest := hash_file(path)) in digests}


def _check_formula(detector: "Detector", golden: FormulaScore, name: str) -> DetectorCheck:
    score = _score(detector, Image.fromarray(generate_formula_image(golden.width, golden.height)))
    detail = f"{name}: log-odds {score:.6f}, the card states {golden.logit:g} within {golden.tolerance:g}"
    return _compare("golden", abs(score - golden.logit) <= golden.tolerance, detail)


def _check_image(detector: "Detector", golden: GoldenScore, path: Path) -> DetectorCheck:
    try:
        score = _score(detector, decode_image(path.read_bytes(), ImageLimits()).pixels)
    except InputError as error:
        return DetectorCheck("golden", "failed", f"{path}: {error.message}")
    probability = (1 + math.tanh(score / 2)) / 2  # The sigmoid, without overflow.
    detail = f"{golden.name}: P(fake) {probability:.4f}, published {golden.probability:.4f}, tolerance {golden.tolerance:g}"
    return _compare("golden", abs(probability - golden.probability) <= golden.tolerance, detail)


def _score(detector: "Detector", image: Image.Image) -> float:
    return float(detector.score(detector.prepare(image)[None])[0])
