"""Which walker looks through which format. Knows no statement."""

from collections.abc import Callable

from ray_app.images.provenance import boxes, gif, jpeg, png, tiff_tags, webp
from ray_app.images.provenance.found import Found

_WALKERS: dict[str, Callable[[bytes], Found]] = {
    "JPEG": jpeg.find,
    "PNG": png.find,
    "WEBP": webp.find,
    "GIF": gif.find,
    "TIFF": tiff_tags.find,
    "AVIF": boxes.find,
    "HEIC": boxes.find,
}


def locate(data: bytes, format_name: str | None) -> Found:
    """The metadata of a sniffed format (see `images.sniff`): total on any bytes, in bounded time, never raises."""
    walker = _WALKERS.get(format_name or "")
    return Found() if walker is None else walker(data)
