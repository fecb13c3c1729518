"""What fetching weights takes, asked before it begins: `planned` finds what is missing and its
size, `require_room` a disk too small.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ray_app.detectors.card import HUB_URI
from ray_app.detectors.weights import WeightSet, default_cache, hub_file, located
from ray_app.errors import DetectorError


class Download(NamedTuple):
    """One part to fetch: its uri, its bytes as the server says (None: it does not), and the folder
    that they go to.
    """

    uri: str
    size: int | None
    folder: Path


def planned(parts: Iterable[WeightSet]) -> list[Download]:
    """What is not on this machine, each once; servers are asked for sizes. What cannot be had has
    no size: fetching it says why.
    """
    missing = {part.weights.uri: part for part in parts if located(part) is None}
    return [_download(part) for part in missing.values()]


def _download(part: WeightSet) -> Download:
    uri, place = part.weights.uri, HUB_URI.fullmatch(part.weights.uri)
    if place is None:
        return Download(uri, _web_size(uri), default_cache())
    import huggingface_hub

    folder, names = (
        Path(huggingface_hub.constants.HF_HUB_CACHE),
        (*part.weights.beside, place["file"].rpartition("/")[2]),
    )
    try:
        found = [hub_file(part, place, name, offline=False, dry_run=True) for name in names]
    except DetectorError:
        return Download(uri, None, folder)
    return Download(uri, sum(one.file_size for one in found if one.will_download), folder)


def _web_size(uri: str) -> int | None:
    from ray_app.storage.object_store import retrying_fsspec_for

    try:
        filesystem, path = retrying_fsspec_for(uri)
        size = filesystem.size(path)
    except Exception:  # fsspec lets every backend's own exceptions through
        return None
    return None if size is None else int(size)


def require_room(downloads: Sequence[Download]) -> None:
    """Raises DetectorError where a disk cannot hold what goes there."""
    for folder in dict.fromkeys(one.folder for one in downloads):
        needed = sum(one.size or 0 for one in downloads if one.folder == folder)
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free
        if needed > free:
            raise DetectorError(
                f"{folder}: there are {free / 1e6:,.0f} MB free, and {needed / 1e6:,.0f} MB are to be fetched",
                hint="make room, or name folders on another disk: HF_HOME for the hub's files, TOUCHSTONE_CACHE for others",
            )
