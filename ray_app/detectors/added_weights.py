"""Copy weight files that the user already has into Touchstone's cache (`add_weights`)."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ray_app.detectors import verify, weights
from ray_app.detectors.card import DetectorCard, list_cards, list_variants
from ray_app.detectors.checkpoints import explaining_access
from ray_app.detectors.weights import WeightSet
from ray_app.errors import DetectorError


class AddedWeights(NamedTuple):
    """Weights of a detector or backbone that were copied to the cache, by their main file.

    `lacking` lists what is still missing on this machine for each detector that uses the weights:
    its own name, its backbone's name, or both. The list is empty if the detector has all files.
    """

    part: str
    sha256: str
    path: Path
    lacking: dict[str, list[str]]

    def lines(self, file: Path) -> list[str]:
        """Return text for people: the path of the weights, then a line per detector.

        The line of a detector that uses these weights lists the weights that are still missing, if
        any. `file` is the file that the user added.
        """
        lines = [f"{file}: the weights of {self.part}; copied to {self.path}"]
        for detector, lacking in self.lacking.items():
            status = (
                f"still missing: {', '.join(lacking)}"
                if lacking
                else f"complete: touchstone detectors verify {detector}"
            )
            lines.append(f"{detector}: {status}")
        return lines


def add_weights(name: str, file: Path, cards: Sequence[DetectorCard] | None = None) -> AddedWeights:
    """Copy the files of weights that the user already has into the cache.

    The files are checked against the card that has these weights. If the card states a SHA-256, the
    file must have it. If the card states none for the main file, the keys and shapes of the file
    must fit the network. The other files must be in the same folder. `cards` are by default the
    shipped ones and their variants. Raises DetectorError if no card has `name`, or a file is
    missing or does not fit.
    """
    cards = _shipped_cards() if cards is None else cards
    matches = [
        (card, part) for card in cards for part in weights.list_parts(card) if part.name == name
    ]
    if not matches:
        raise DetectorError(
            f"--as {name}: unknown detector or backbone",
            hint="run touchstone detectors list to see all names",
        )
    card, part = _choose(matches, file)
    files = part.at(file)
    if missing := [path.name for path in files if not path.is_file()]:
        raise DetectorError(
            f"--as {name}: files are missing in {file.parent}: {', '.join(missing)}",
            hint="copy all files of the weights to one folder",
        )
    for path, expected in files.items():
        _check_digest(name, path, expected)
    if part.weights.sha256 is None:
        verify.check_keys(card, part, file)
    target = weights.cached_path(part)
    if part.weights.config is not None and (config := file.parent / part.weights.config).is_file():
        files[config] = None
    # The main file is copied last, so if it is in the cache, all files are.
    for path in reversed(files):
        _copy(path, target if path == file else target.parent / path.name)
    return AddedWeights(
        part.name, weights.hash_file(target), target, _list_missing(cards, part.name)
    )


def _shipped_cards() -> list[DetectorCard]:
    return [card for base in list_cards() for card in (base, *list_variants(base))]


def _choose(
    matches: Sequence[tuple[DetectorCard, WeightSet]], file: Path
) -> tuple[DetectorCard, WeightSet]:
    """Return the part whose card states the SHA-256 of the file, else the first part.

    Variants of a card may state different values.
    """
    digest = _hash(matches[0][1].name, file)
    return next((match for match in matches if match[1].weights.sha256 == digest), matches[0])


def _check_digest(name: str, source: Path, expected: str | None) -> None:
    digest = _hash(name, source)
    if expected not in (None, digest):
        raise DetectorError(
            f"--as {name}: {source} has the SHA-256 {digest}, the card states {expected}",
            hint=f"run touchstone detectors show {name} to see which file it needs",
        )


def _hash(name: str, file: Path) -> str:
    with explaining_access(f"--as {name}", file):
        return weights.hash_file(file)


def _copy(source: Path, target: Path) -> None:
    try:
        with weights.write_aside(target) as aside:
            shutil.copyfile(source, aside)
    except OSError as error:
        hint = (
            f"check the cache {weights.default_cache()}, or set $TOUCHSTONE_CACHE to another folder"
        )
        raise DetectorError(f"{source}: {error.strerror or error}", hint=hint) from None


def _list_missing(cards: Iterable[DetectorCard], part_name: str) -> dict[str, list[str]]:
    parts = {card.name: weights.list_parts(card) for card in cards}
    return {
        name: [part.name for part in detector_parts if weights.find_local_file(part) is None]
        for name, detector_parts in parts.items()
        if part_name in {part.name for part in detector_parts}
    }
