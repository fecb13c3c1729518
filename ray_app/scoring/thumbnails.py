"""Small re-encoded pictures for a report: no metadata of the original survives, and nothing is fetched unless asked for."""

import io
from collections.abc import Iterable

from ray_app.errors import InputError
from ray_app.images import ImageLimits, decode_image
from ray_app.storage import Fetcher, Guard

SIDE_PX = 160


def thumbnails_of(images: Iterable[tuple[int, str]], limits: ImageLimits, guard: Guard) -> dict[int, bytes]:
    """JPEG bytes by image id; an image that cannot be read any more has none."""
    fetcher, pictures = Fetcher(guard=guard), {}
    for image_id, uri in images:
        try:
            pictures[image_id] = thumbnail(fetcher.fetch(uri, "", limits.max_bytes), limits)
        except InputError:
            continue
    return pictures


def thumbnail(data: bytes, limits: ImageLimits, side: int = SIDE_PX) -> bytes:
    """JPEG bytes of an encoded image, no side above `side` pixels. Raises InputError where it does not decode."""
    picture = decode_image(data, limits).pixels
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
