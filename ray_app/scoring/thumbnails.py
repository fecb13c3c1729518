"""Small re-encoded pictures for a report: no metadata of the original survives, and nothing is fetched unless asked for."""

import io
from collections.abc import Iterable

from ray_app.errors import InputError
from ray_app.images import ImageLimits, decode_image
from ray_app.storage import Fetcher

SIDE_PX = 160


def thumbnails_of(images: Iterable[tuple[int, str]]) -> dict[int, bytes]:
    """JPEG bytes by image id; an image that cannot be read any more has none."""
    fetcher, limits, pictures = Fetcher(), ImageLimits(), {}
    for image_id, uri in images:
        try:
            picture = decode_image(fetcher.fetch(uri, "", limits.max_bytes), limits).pixels
        except InputError:
            continue
        picture.thumbnail((SIDE_PX, SIDE_PX))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=80)
        pictures[image_id] = buffer.getvalue()
    return pictures
