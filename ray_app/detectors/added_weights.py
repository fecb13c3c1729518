"""`add_weights`: copy a file that the user already has into the cache, as the weights of one
detector or backbone.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ray_app.detectors import verify, weights
from ray_app.detectors.card import DetectorCard, list_cards, variants_of
from ray_app.detectors.weights import WeightSet
from ray_app.errors import DetectorError


class AddedWeights(NamedTuple):
    """Weights of `part` in the cache. `lacking`: the parts that each detector with this part still
    needs.
    """

    part: str
    sha256: str
    path: Path
    lacking: dict[str, list[str]]

    def lines(self, file: Path) -> list[str]:
        """Return the result for people, after `file` was added."""
        lines = [f"{file}: the weights of {self.part}; copied to {self.path}"]
        for detector, lacking in self.lacking.items():
            next_step = (
                f"still missing: {', '.join(lacking)}"
                if lacking
                else f"complete: touchstone detectors verify {detector}"
            )
            lines.append(f"{detector}: {next_step}")
        return lines


def add_weights(name: str, file: Path, cards: Sequence[DetectorCard] | None = None) -> AddedWeights:
    """Copy `file`, and the files that belong next to it, into the cache as the weights of the
    detector or backbone `name`.

    Args:
        name: A detector or backbone of a card.
        file: Its weights. The other files of the same weights must be in the same folder.
        cards: The cards to search. Defaults to the shipped ones and their variants.

    Raises:
        DetectorError: No card has `name`, a SHA-256 is not the card's, a key or shape does not fit,
            or a file cannot be copied.
    """
    cards = _shipped_cards() if cards is None else cards
    found = [(card, part) for card in cards for part in weights.parts_of(card) if part.name == name]
    if not found:
        raise DetectorError(
            f"--as {name}: there is no detector or backbone with that name",
            hint="run touchstone detectors list",
        )
    card, part = _choose(found, file)
    files = part.at(file)
    if missing := [other.name for other in files if not other.is_file()]:
        raise DetectorError(
            f"--as {name}: not in {file.parent}: {', '.join(missing)}",
            hint="copy all files of the weights to one folder",
        )
    for other, stated in files.items():
        _check_digest(name, other, stated)
    if part.weights.sha256 is None:
        verify.check_keys(card, part, file)
    target = weights.cached_path(part)
    if part.weights.config is not None and (config := file.parent / part.weights.config).is_file():
        files[config] = None
    # The part's own file is copied last: if it is in the cache, all of its files are.
    for other in reversed(files):
        _copy(other, target if other == file else target.parent / other.name)
    return AddedWeights(part.name, weights.file_sha256(target), target, _lacking(cards, part.name))


def _shipped_cards() -> list[DetectorCard]:
    return [card for base in list_cards() for card in (base, *variants_of(base))]


def _choose(
    found: Sequence[tuple[DetectorCard, WeightSet]], file: Path
) -> tuple[DetectorCard, WeightSet]:
    """Return the part whose card states the SHA-256 of the file; variants of a card may state
    others. Defaults to the first part.
    """
    try:
        digest = weights.file_sha256(file)
    except OSError as error:
        raise DetectorError(f"{file}: {error.strerror or error}") from None
    return next((one for one in found if one[1].weights.sha256 == digest), found[0])


def _check_digest(name: str, source: Path, stated: str | None) -> None:
    digest = weights.file_sha256(source)
    if stated not in (None, digest):
        raise DetectorError(
            f"--as {name}: {source} has the SHA-256 {digest}, the card states {stated}",
            hint=f"run touchstone detectors show {name} to see which file it needs",
        )


def _copy(source: Path, target: Path) -> None:
    try:
        with weights.write_aside(target) as aside:
            shutil.copyfile(source, aside)
    except OSError as error:
        hint = f"the cache is {weights.default_cache()}; $TOUCHSTONE_CACHE names another"
        raise DetectorError(f"{source}: {error.strerror or error}", hint=hint) from None


def _lacking(cards: Iterable[DetectorCard], added: str) -> dict[str, list[str]]:
    parts = {card.name: weights.parts_of(card) for card in cards}
    return {
        name: [part.name for part in own if weights.located(part) is None]
        for name, own in parts.items()
        if added in {part.name for part in own}
    }
