"""Fetch the published weights of detectors into the cache, and copy them to a mirror."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ray_app.detectors import licences, weights
from ray_app.detectors.card import DetectorCard, list_cards
from ray_app.detectors.weights import MIRROR_VARIABLE, WeightSet
from ray_app.errors import DetectorError

Progress = Callable[[str], None]


class FetchedWeights(NamedTuple):
    """The weight files of a detector after they were fetched to this machine.

    Attributes:
        name: Name of the detector.
        files: Paths of the files, with those of the backbone.
        size_bytes: Total size of the files in bytes.
        published: URL of the detector's main file on the mirror. None if nothing was copied to a
            mirror.
    """

    name: str
    files: Sequence[Path]
    size_bytes: int
    published: str | None

    def facts(self) -> dict[str, Any]:
        """Return the attributes as a dictionary of plain JSON."""
        return {
            "name": self.name,
            "files": [str(path) for path in self.files],
            "bytes": self.size_bytes,
            "published": self.published,
        }


def find_fetchable(accepted: Sequence[str], progress: Progress) -> Iterator[DetectorCard]:
    """Yield each shipped card whose weights can be fetched and whose licence the user accepts.

    A card is left out if its licence is not accepted. It is also left out if its weights are not on
    this machine and only the user can obtain them, for example from Google Drive.

    Args:
        accepted: Names of detectors or licences that the user accepts for this call.
        progress: Receives a line for each card that is left out.

    Yields:
        A card whose weights `fetch_detectors` can fetch.
    """
    for card in list_cards():
        manual_parts = [
            part
            for part in _list_published(card)
            if part.weights.obtain
            and "://" not in part.weights.uri
            and not weights.find_local_file(part)
        ]
        if not licences.is_accepted(card.name, card.licence, card.terms, accepted):
            progress(
                f"left out: {card.name}: {card.licence} ({licences.TERMS_IN_WORDS[card.terms]}); to accept: --accept-licence {card.name}"
            )
        elif manual_parts:
            progress(
                f"left out: {card.name}: it must be fetched by hand. {manual_parts[0].weights.obtain} touchstone detectors fetch {card.name}"
            )
        else:
            yield card


def fetch_detectors(
    cards: Sequence[DetectorCard], mirror: str | None, progress: Progress
) -> tuple[list[FetchedWeights], list[DetectorError]]:
    """Fetch the weights of detectors. If one fails, the others are still fetched.

    Args:
        cards: The detector cards.
        mirror: A folder or fsspec URL that receives copies. None copies nothing.
        progress: Receives a line per step.

    Returns:
        The fetched weights, and the errors of detectors that could not be fetched.

    Raises:
        DetectorError: If a disk has too little space. Space is not checked offline or if
            $TOUCHSTONE_WEIGHTS_MIRROR is set.
    """
    # Offline or with a mirror, nothing is downloaded from the hub.
    if not weights.is_offline() and MIRROR_VARIABLE not in os.environ:
        _require_space(cards, progress)
    fetched, failures = [], []
    for card in cards:
        try:
            fetched.append(_fetch(card, mirror, progress))
        except DetectorError as error:
            failures.append(error)
    return fetched, failures


def _require_space(cards: Sequence[DetectorCard], progress: Progress) -> None:
    """Report the total size of the downloads. Raise DetectorError if a disk is too small.

    The sizes come from the servers.
    """
    missing = {
        part.weights.uri: part
        for card in cards
        for part in _list_published(card)
        if weights.find_local_file(part) is None
    }
    downloads = [_plan_download(part) for part in missing.values()]
    sizes = [size for _, size in downloads if size is not None]
    parts = []
    if sizes:
        parts.append(f"{sum(sizes) / 1e6:,.1f} MB in {len(sizes)} of {len(downloads)} downloads")
    if len(sizes) < len(downloads):
        parts.append(f"{len(downloads) - len(sizes)} of unknown size")
    if parts:
        progress(f"to fetch: {'; '.join(parts)}")
    for folder in dict(downloads):
        needed = sum(size or 0 for other, size in downloads if other == folder)
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise DetectorError(
                f"{folder}: {free / 1e6:,.0f} MB are free, but {needed / 1e6:,.0f} MB are needed",
                hint="free space, or set folders on another disk: HF_HOME for the hub's files, TOUCHSTONE_CACHE for others",
            )


def _plan_download(part: WeightSet) -> tuple[Path, int | None]:
    """Return the folder and the size of a download.

    The size is None if the server does not state it, or if the file is unreachable, which the
    download reports later.
    """
    if not part.weights.uri.startswith("hf://"):
        return weights.default_cache(), _ask_size(part.weights.uri)
    import huggingface_hub

    folder = Path(huggingface_hub.constants.HF_HUB_CACHE)
    try:
        files = [
            weights.hub_file(part, name, offline=False, dry_run=True)
            for name in (*part.weights.beside, part.file_name)
        ]
    except DetectorError:
        return folder, None
    return folder, sum(file.file_size for file in files if file.will_download)


def _ask_size(url: str) -> int | None:
    from ray_app.storage.object_store import retrying_fsspec_for

    try:
        filesystem, path = retrying_fsspec_for(url)
        size = filesystem.size(path)
    except Exception:  # fsspec passes on the exceptions of every backend.
        return None
    return None if size is None else int(size)


def _list_published(card: DetectorCard) -> list[WeightSet]:
    """Return the available parts of a detector: all except a head that is not fitted yet."""
    return [
        part
        for part in weights.list_parts(card)
        if not part.weights.fitted or weights.find_local_file(part)
    ]


def _fetch(card: DetectorCard, mirror: str | None, progress: Progress) -> FetchedWeights:
    files, published, parts = list[Path](), None, _list_published(card)
    for part in parts:
        if weights.find_local_file(part) is None:
            progress(f"{card.name}: fetching {part.weights.uri}")
        files += part.at(weights.resolve_part(part))
    size_bytes = sum(path.stat().st_size for path in files)
    progress(
        f"{card.name}: {len(files)} file{'s' * (len(files) > 1)}, {size_bytes / 1e6:,.1f} MB, SHA-256 as on the card if the card states it"
    )
    if len(parts) < len(weights.list_parts(card)):
        progress(
            f"{card.name}: its head is not published; fit it: touchstone detectors fit {card.name} LABELS --install"
        )
    if mirror:
        progress(f"{card.name}: copying to {mirror}")
        published, *_ = [weights.publish_part(part, mirror) for part in parts]
    return FetchedWeights(card.name, files, size_bytes, published)
