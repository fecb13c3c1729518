"""`altered`: a part of a photograph filled with texture from elsewhere in it, as retouching does by hand.

No network and no new content: the region's texture is a donor part of the same picture, shifted in brightness and colour so that it meets
what surrounds it (seamless cloning; Pérez, Gangnet and Blake 2003, "Poisson Image Editing", by its membrane: the difference on the outline,
continued harmonically inwards). So the filled part has the camera's own noise and the file's own compression. A generator's filling, whose
pixels a decoder made, leaves other traces: a detector of generated pixels may find that one and not this.
"""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_app.transforms import ops

Field = npt.NDArray[np.float32]
Region = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]

_PLAN_EDGE = 128  # pixels of the longer side of the plan, on which the region is drawn and the membrane computed: both are smooth
_LEAST_MOVE, _MOST_MOVE = 0.25, 0.75  # of a side: how far away the donor lies; less where there is no room


def altered(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """RGB with one drawn region of `share` (0–1) of its area filled from elsewhere; all else keeps its values, but for a soft outline.

    The outline is soft over a pixel of the plan, 1/128 of the longer side. A picture of one pixel comes back as it is.
    """
    plan = image.resize(ops.capped_size(image.size, _PLAN_EDGE), ops.Resampling.BOX, reducing_gap=4)
    if plan.width * plan.height < 2:
        return image
    known = np.asarray(plan, np.float32)
    region = drawn_region(known.shape[:2], share, rng)
    spans = [(int(line.min()), int(line.max()) + 1) for line in np.nonzero(region)]
    moves = [_move(*span, side, rng) for span, side in zip(spans, region.shape, strict=True)]
    there = known[np.ix_(*(_mirrored(np.arange(side) + move, side) for side, move in zip(region.shape, moves, strict=True)))]
    offset = membrane(known - there, region)
    sides, scales = (image.height, image.width), (image.height / plan.height, image.width / plan.width)
    rows, columns = (slice(math.floor(max(first - 1, 0) * scale), min(math.ceil((last + 1) * scale), side))
                     for (first, last), side, scale in zip(spans, sides, scales, strict=True))  # fmt: skip
    places = (
        np.arange(part.start, part.stop) + round(move * scale) for part, move, scale in zip((rows, columns), moves, scales, strict=True)
    )
    donor = np.ix_(*(_mirrored(line, side) for line, side in zip(places, sides, strict=True)))
    size = columns.stop - columns.start, rows.stop - rows.start
    box = columns.start / scales[1], rows.start / scales[0], columns.stop / scales[1], rows.stop / scales[0]

    def enlarged(field: Field) -> Field:
        return np.array(Image.fromarray(np.ascontiguousarray(field)).resize(size, ops.Resampling.BILINEAR, box))

    alpha, channels = enlarged(region.astype(np.float32)), []
    for number, channel in enumerate(image.split()):
        values = np.array(channel)
        seen, filled = values[rows, columns], enlarged(offset[..., number])
        filled += values[donor]
        np.clip(filled, 0, 255, out=filled)
        filled -= seen
        filled *= alpha
        filled += seen
        filled += np.float32(0.5)
        values[rows, columns] = filled
        channels.append(Image.fromarray(values))
    return Image.merge("RGB", channels)


def drawn_region(shape: tuple[int, int], share: float, rng: np.random.Generator) -> Region:
    """(H, W): a blob with an uneven outline that covers `share` of the pixels, at least one and never all of them."""
    from scipy.ndimage import gaussian_filter

    height, width = shape
    waves = gaussian_filter(rng.standard_normal(shape), max(shape) / 16)
    waves /= max(float(waves.std()), 1e-9)
    down, across = (rng.uniform(0.2, 0.8) * side for side in shape)
    y, x = np.ogrid[:height, :width]
    away = ((y - down) ** 2 + (x - across) ** 2) / (share * height * width)
    count = min(max(round(share * height * width), 1), height * width - 1)
    region = np.zeros(height * width, bool)
    region[np.argsort((away - 0.1 * waves).ravel(), kind="stable")[:count]] = True
    return region.reshape(shape)


def membrane(known: Field, region: Region) -> Field:
    """(H, W, C): `known` outside the region, and inside it what is harmonic and meets that; level across the picture's own border.

    By successive over-relaxation in two colours (Young 1954), whose sums hang on no number of threads.
    """
    found = known.copy()
    found[region] = known[~region].mean(axis=0)
    longest = max(region.shape)
    factor = np.float32(2 / (1 + math.sin(math.pi / (longest + 1))) / 4)
    board = np.add.outer(np.arange(region.shape[0]), np.arange(region.shape[1])) % 2 == 0
    rows, columns = (slice(line.min(), line.max() + 1) for line in np.nonzero(region))
    around = np.pad(found, ((1, 1), (1, 1), (0, 0)), mode="edge")
    colours = [((region & side)[rows, columns, None] * factor).astype(np.float32) for side in (board, ~board)]
    top, left = rows.start, columns.start
    bottom, right = rows.stop, columns.stop
    inner = around[top + 1 : bottom + 1, left + 1 : right + 1]
    for _ in range(2 * longest):
        for colour in colours:
            change = around[top:bottom, left + 1 : right + 1] + around[top + 2 : bottom + 2, left + 1 : right + 1]
            change += around[top + 1 : bottom + 1, left:right]
            change += around[top + 1 : bottom + 1, left + 2 : right + 2]
            change -= 4 * inner
            change *= colour
            inner += change
        around[0], around[-1], around[:, 0], around[:, -1] = around[1], around[-2], around[:, 1], around[:, -2]
    return around[1:-1, 1:-1]


def _move(first: int, last: int, side: int, rng: np.random.Generator) -> int:
    """How far from a region's places `first` to `last` its donor lies, towards where there is more room, and within it where it fits."""
    room = max(first, side - last, round(_LEAST_MOVE * side))
    away = min(max(round(side * rng.uniform(_LEAST_MOVE, _MOST_MOVE)), 1), room, side - 1)
    return away if side - last >= first else -away


def _mirrored(places: Places, side: int) -> Places:
    """Places up to a side away from the border: those beyond it mirrored at it, so that nothing meets at a seam."""
    inside: Places = np.where(places < 0, -1 - places, np.where(places < side, places, 2 * side - 1 - places)).clip(0, side - 1)
    return inside
