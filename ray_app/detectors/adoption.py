"""`adopt`: files of weights that somebody has already, under any name, are recognised by their SHA-256 and brought to the cache.

What a card means is its hash: a file whose hash a card states is that file, wherever it came from. Where a card states none, a person
says what a file is (`adopt_as`), and its keys and shapes must fit.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ray_app.detectors import verify, weights
from ray_app.detectors.card import DetectorCard, list_cards, variants_of
from ray_app.detectors.checkpoint_formats import kind_of_file
from ray_app.detectors.files_by_hash import file_sha256, files_below, keep_file, may_be_weights
from ray_app.detectors.weights import WeightSet
from ray_app.errors import DetectorError


class Adopted(NamedTuple):
    """A file that was recognised: as what, its place in the cache, and `linked`, `copied` or `there` (it was there before)."""

    file: Path
    sha256: str
    part: str
    name: str
    kept: Path
    how: str


class Unknown(NamedTuple):
    """A file that may be weights and is none that a card states: its hash and what it is in words."""

    file: Path
    sha256: str
    what: str


class Adoption(NamedTuple):
    """What became of the files, and per detector that gained one what it still lacks (nothing: it can score)."""

    adopted: Sequence[Adopted]
    unknown: Sequence[Unknown]
    lacking: Mapping[str, Sequence[str]]


def known_cards(more: Iterable[DetectorCard] = ()) -> list[DetectorCard]:
    """Every shipped card with its variants, whose files may differ, and further ones."""
    return [card for base in [*list_cards(), *more] for card in (base, *(variants_of(base) if ":" not in base.name else ()))]


def adopt(places: Iterable[Path], cards: Sequence[DetectorCard]) -> Adoption:
    """Bring what is recognised among files and folders (with all below) to the cache, where `resolve_part` finds it.

    Hashed are files that were named, and those of folders that may be weights (`may_be_weights`). A checkpoint's own configuration, where
    a card names one and it lies beside the weights, goes with them. Raises DetectorError for a file that cannot be read or kept.
    """
    cache = weights.default_cache()
    stated = _stated(cards)
    names = {name for files in stated.values() for _, _, name in files}
    adopted: list[Adopted] = []
    unknown: list[Unknown] = []
    for file in _worth_a_look(places, names):
        try:
            digest = file_sha256(file)
            adopted += [_kept(file, digest, part, cache / at, name) for part, at, name in stated.get(digest, ())]
            if digest not in stated:
                unknown.append(Unknown(file, digest, kind_of_file(file).what))
        except OSError as error:
            raise DetectorError(
                f"{file}: {error.strerror or error}", hint=f"the cache is {cache}; $TOUCHSTONE_CACHE names another"
            ) from None
    return Adoption(adopted, unknown, _lacking(cards, {one.part for one in adopted}))


def adopt_as(name: str, file: Path, cards: Sequence[DetectorCard]) -> Adoption:
    """Bring a file to the cache as the weights of a detector or backbone whose card states no SHA-256, if every key and shape fits.

    Raises DetectorError: no card has such a part, it states a hash, it is of several files, or the file does not fit.
    """
    found = [(card, part) for card in cards for part in weights.parts_of(card) if part.name == name]
    unverified = sorted({part.name for card in cards for part in weights.parts_of(card) if part.weights.sha256 is None})
    if not found:
        raise DetectorError(f"--as {name}: no detector or backbone has that name", hint=f"those without a SHA-256: {', '.join(unverified)}")
    card, part = found[0]
    if part.weights.sha256 is not None:
        raise DetectorError(
            f"--as {name}: its card states the SHA-256 {part.weights.sha256}, and {file} has {file_sha256(file)}",
            hint="leave --as out: the file with that hash is recognised by it",
        )
    if part.weights.beside:
        raise DetectorError(f"--as {name}: it consists of several files: {', '.join(part.weights.beside)}", hint=part.weights.obtain)
    verify.fits(card, part, file)
    kept = _kept(file, file_sha256(file), part, weights.cached_path(part), Path(part.weights.uri).name)
    return Adoption([kept], [], _lacking(cards, {part.name}))


def _stated(cards: Iterable[DetectorCard]) -> Mapping[str, list[tuple[WeightSet, str, str]]]:
    """By SHA-256 what a file is: of which part, its path in the cache, its own name; each place once."""
    found: defaultdict[str, dict[str, tuple[WeightSet, str, str]]] = defaultdict(dict)
    for card in cards:
        for part in weights.parts_of(card):
            for digest, (at, name) in weights.stated_files(part).items():
                found[digest].setdefault(at, (part, at, name))
    return {digest: list(places.values()) for digest, places in found.items()}


def _worth_a_look(places: Iterable[Path], names: set[str]) -> Iterator[Path]:
    seen = set()
    for place in places:
        for file in files_below(place):
            try:
                same = file.resolve()  # a hub's cache has a second name for every file
                worth = same not in seen and (file == place or may_be_weights(file, names))
            except OSError:
                continue
            seen.add(same)
            if worth:
                yield file


def _kept(file: Path, digest: str, part: WeightSet, target: Path, name: str) -> Adopted:
    how = keep_file(file, target)
    config = part.weights.config
    if config is not None and (beside := file.parent / config).is_file() and digest == part.weights.sha256:
        keep_file(beside, target.parent / config)
    return Adopted(file, digest, part.name, name, target, how)


def _lacking(cards: Iterable[DetectorCard], gained: set[str]) -> dict[str, list[str]]:
    """Of each detector that has one of these parts: those of its parts that are not here, with the files where some are."""
    found: dict[str, list[str]] = {}
    for card in cards:
        parts = weights.parts_of(card)
        if gained & {part.name for part in parts}:
            found.setdefault(card.name, [_absent(part) for part in parts if weights.located(part) is None])
    return found


def _absent(part: WeightSet) -> str:
    incomplete = weights.missing_beside(part)
    return f"{part.name} ({', '.join(incomplete[1])})" if incomplete else part.name
