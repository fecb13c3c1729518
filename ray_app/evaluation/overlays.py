"""The images whose masks agree worst and best with the truth, as small pictures of both. Knows pictures; measures nothing."""

import base64
import io
from bisect import insort
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from ray_app.archives import MemberReader
from ray_app.errors import InputError, TouchstoneError
from ray_app.evaluation.mask_measuring import MaskMeasurer
from ray_app.evaluation.mask_truths import MaskedImage
from ray_app.images import ImageLimits, decode_image
from ray_app.metrics.pixels import MaskFigures
from ray_app.runs import mask_image
from ray_app.storage import Fetcher

MOST = 12
SIDE_PX = 320
FOUND, TRUE = (220, 38, 38), (250, 204, 21)  # marked pixels are tinted red; a yellow line goes round those that were altered
_TINT = 115  # of 255


class Overlays:
    """The six worst and the six best of each system while images pass by; of equal ones those of lower id."""

    def __init__(self) -> None:
        self._kept: dict[str, list[tuple[float, int, MaskFigures, MaskedImage, dict[str, Any]]]] = {}

    def see(self, figures: MaskFigures, image: MaskedImage, row: dict[str, Any]) -> None:
        """One mask of a local edit, at the image's own size."""
        if figures.altered and figures.f1 is not None:
            kept = self._kept.setdefault(row["detector"], [])
            insort(kept, (figures.f1, image.member.image_id, figures, image, row), key=lambda one: one[:2])
            if len(kept) > MOST:
                del kept[MOST // 2]

    def pictures(self, measurer: MaskMeasurer, fetcher: Fetcher, limits: ImageLimits) -> list[dict[str, Any]]:
        """At most twelve, shared out among systems, the worst of each first: {image_id, uri, member, system, generator, f1, iou, picture}.

        `picture`: base64 of a JPEG, None where the image cannot be read any more; then `why` says so.
        """
        reader, told = MemberReader(fetcher, max_bytes=limits.max_bytes), []
        each = max(MOST // max(len(self._kept), 1), 1)
        for system, kept in sorted(self._kept.items())[:MOST]:
            worst = (each + 1) // 2
            for _, _, figures, image, row in kept if len(kept) <= each else kept[:worst] + kept[len(kept) - (each - worst) :]:
                member = image.member
                entry = {"image_id": member.image_id, "uri": member.uri, "member": member.member, "system": system}
                entry |= {"generator": image.truth.generator, "f1": figures.f1, "iou": figures.iou}
                told.append(entry | _picture(image, row, measurer, reader, limits))
        return told


def overlay(picture: Image.Image, truth: Image.Image, found: Image.Image) -> Image.Image:
    """A picture (RGB) with the pixels that were found (L, not 0) tinted, and a line round those that were altered (L, not 0)."""
    size = picture.size
    tinted = Image.composite(Image.new("RGB", size, FOUND), picture, _shrunk(found, size).point(lambda level: level * _TINT // 255))
    inside = _shrunk(truth, size)
    line = ImageChops.difference(inside.filter(ImageFilter.MaxFilter(3)), inside.filter(ImageFilter.MinFilter(3)))
    return Image.composite(Image.new("RGB", size, TRUE), tinted, line)


def _picture(
    image: MaskedImage, row: dict[str, Any], measurer: MaskMeasurer, reader: MemberReader, limits: ImageLimits
) -> dict[str, str | None]:
    [(_, data)] = reader.read([image.member])
    try:
        if isinstance(data, InputError):
            raise data
        pixels = decode_image(data, limits).pixels
        if pixels.size != image.size:
            return {"picture": None, "why": "the image is another one now"}
        truth = Image.fromarray(measurer.truth(image))
    except TouchstoneError as refused:
        return {"picture": None, "why": str(refused)}
    marked = np.asarray(mask_image(row, stretched=True)[0]) > 127
    pixels.thumbnail((SIDE_PX, SIDE_PX))
    buffer = io.BytesIO()
    overlay(pixels, truth, Image.fromarray(marked.astype(np.uint8) * np.uint8(255))).save(buffer, "JPEG", quality=80)
    return {"picture": base64.b64encode(buffer.getvalue()).decode()}


def _shrunk(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A mask at another size, 0 or 255; what covers any part of a new pixel covers it, so that nothing thin is lost."""
    return mask.resize(size, Image.Resampling.BOX).point(lambda level: 255 if level else 0)
