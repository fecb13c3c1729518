"""Fetch the published weights of detectors into the cache, and copy them to a mirror."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ray_app.detectors import downloads, licences, weights
from ray_app.detectors.card import DetectorCard, list_cards
from ray_app.detectors.weights import MIRROR_VARIABLE, WeightSet
from ray_app.errors import DetectorError

Progress = Callable[[str], None]


class FetchedWeights(NamedTuple):
    """The weights of a detector on this machine.

    Attributes:
        name: The detector.
        files: The files of all its parts.
        size_bytes: The size of all files.
        published: The URL on the mirror. None without a mirror.
    """

    name: str
    files: Sequence[Path]
    size_bytes: int
    published: str | None

    def facts(self) -> dict[str, Any]:
        """Return the attributes as JSON."""
        return {
            "name": self.name,
            "files": [str(path) for path in self.files],
            "bytes": self.size_bytes,
            "published": self.published,
        }


def find_fetchable(accepted: Sequence[str], progress: Progress) -> Iterator[DetectorCard]:
    """Yield each shipped card whose weights a program can fetch.

    Args:
        accepted: Detectors, or licences, whose terms the user accepts.
        progress: Receives a line for each card that is left out.
    """
    for card in list_cards():
        by_hand = [
            part
            for part in _list_published(card)
            if part.weights.obtain and "://" not in part.weights.uri and not weights.located(part)
        ]
        if not licences.is_accepted(card.name, card.licence, card.terms, accepted):
            progress(
                f"left out: {card.name}: {card.licence} ({licences.TERMS_IN_WORDS[card.terms]}); to accept: --accept-licence {card.name}"
            )
        elif by_hand:
            progress(
                f"left out: {card.name}: no program can fetch it. {by_hand[0].weights.obtain} touchstone detectors fetch {card.name}"
            )
        else:
            yield card


def fetch_detectors(
    cards: Sequence[DetectorCard], mirror: str | None, progress: Progress
) -> tuple[list[FetchedWeights], list[DetectorError]]:
    """Fetch the weights of detectors. A failure does not stop the others.

    Args:
        cards: The detectors.
        mirror: A folder or fsspec URL that receives copies.
        progress: Receives lines on what is fetched.

    Returns:
        The fetched weights, and the failures.

    Raises:
        DetectorError: A disk has too little space.
    """
    _require_space(cards, progress)
    fetched, failures = [], []
    for card in cards:
        try:
            fetched.append(_fetch(card, mirror, progress))
        except DetectorError as error:
            failures.append(error)
    return fetched, failures


def _require_space(cards: Sequence[DetectorCard], progress: Progress) -> None:
    # Offline, or with a mirror, no hub is asked.
    if weights.is_offline() or MIRROR_VARIABLE in os.environ:
        return
    plan = downloads.planned(part for card in cards for part in _list_published(card))
    sizes = [download.size for download in plan if download.size is not None]
    parts = []
    if sizes:
        parts.append(f"{sum(sizes) / 1e6:,.1f} MB in {len(sizes)} of {len(plan)} downloads")
    if len(sizes) < len(plan):
        parts.append(f"{len(plan) - len(sizes)} of unknown size")
    if parts:
        progress(f"to fetch: {'; '.join(parts)}")
    downloads.require_room(plan)


def _list_published(card: DetectorCard) -> list[WeightSet]:
    """Return the parts of a detector that are available: all but a head that is not fitted yet."""
    return [
        part for part in weights.parts_of(card) if not part.weights.fitted or weights.located(part)
    ]


def _fetch(card: DetectorCard, mirror: str | None, progress: Progress) -> FetchedWeights:
    files, published, parts = list[Path](), None, _list_published(card)
    for part in parts:
        if weights.located(part) is None:
            progress(f"{card.name}: fetching {part.weights.uri}")
        path = weights.resolve_part(part)
        files += [path, *(path.parent / name for name in part.weights.beside)]
    size_bytes = sum(path.stat().st_size for path in files)
    progress(
        f"{card.name}: {len(files)} file{'s' * (len(files) > 1)}, {size_bytes / 1e6:,.1f} MB, SHA-256 as on the card, where it has one"
    )
    if len(parts) < len(weights.parts_of(card)):
        progress(
            f"{card.name}: nobody publishes its head; fit one: touchstone detectors fit {card.name} LABELS --install"
        )
    if mirror:
        progress(f"{card.name}: copying to {mirror}")
        published, *_ = [weights.publish_part(part, mirror) for part in parts]
    return FetchedWeights(card.name, files, size_bytes, published)
