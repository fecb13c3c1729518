"""`read_watermark`: the invisible marks that reference codes of generators leave in pixels by the
package invisible-watermark (`dwtDct`).

The mark (github.com/ShieldMnt/invisible-watermark, imwatermark/maxDct.py) lies in U of YUV, (blue −
luma) × 0.492, averaged over 2 × 2 pixels and doubled (the low band of a Haar wavelet). Of each 4 ×
4 of these levels, first left out, the largest is moved to ¼ or ¾ of a step of 36: a bit. Blocks
repeat the message in raster order. Codes that mark floats have U around 0 and the largest by size;
early diffusers took red for blue.

Here each block says how near to ¾ rather than ¼ it lies; what its neighbours say is taken off,
since plain coloured areas lean to one side; the votes for each bit are averaged and compared with
their mean. The package compares with ½, and loses 5 to 45 % of untouched files, by code. Also read:
pictures that were resized from a size that these generators make, and crops whose blocks show.
"""

from collections.abc import Iterator
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ray_app.images.provenance.statement import Watermark

MOST_CHANCE = 1e-6  # to be named
# of the bits, at least: a text's letters share bits, and a pattern of 64 pixels may look like three
# quarters of one
RIGHT = 7 / 8
ENOUGH = 7  # blocks per bit
STEP, BLOCK = 36, 8  # of levels; pixels
SMALLEST, NARROWEST = 256 * 256, 64  # pixels, and of a side; the package marks no smaller picture
# pixels: of the part that is read, and of the part where blocks are looked for
SIDE, GLANCE = 1024, 192
RESIZED = 256  # rows of levels that are read of another size
# how much more the blocks of one place lie on the steps than those of the middling place
GRID = 0.13
PLACES = 4  # that are tried, of 192
AVERAGED = 17  # blocks in a row whose mean is taken off each

Levels = NDArray[np.uint8]
Votes = NDArray[np.float32]


class _Carrier(NamedTuple):
    """How levels are had from pixels: the weights of red, green and blue, and whether they lie
    around 0.
    """

    weights: tuple[float, float, float, float]
    is_signed: bool


_BYTES = _Carrier((-0.1471, -0.2888, 0.4359, 128.0), False)
_FLOATS = _Carrier(_BYTES.weights, True)
_SWAPPED = _Carrier((0.4359, -0.2888, -0.1471, 128.0), True)


class _Message(NamedTuple):
    of: str
    bits: NDArray[np.bool_]
    carriers: tuple[_Carrier, ...]


def _text(text: bytes) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(text, np.uint8)).astype(bool)


def _number(number: int) -> NDArray[np.bool_]:
    # the codes drop leading zeros too: 46 bits of FLUX's 48 are written
    return np.array([digit == "1" for digit in f"{number:b}"])


# CompVis/stable-diffusion and Stability-AI/stablediffusion scripts/txt2img.py;
# Stability-AI/generative-models scripts/demo/detect.py and diffusers
# pipelines/stable_diffusion_xl/watermark.py; black-forest-labs/flux src/flux/util.py; InvokeAI
# invocations/image.py.
MESSAGES = (
    _Message("Stable Diffusion 1 (reference code)", _text(b"StableDiffusionV1"), (_BYTES,)),
    _Message("Stable Diffusion 2 (reference code)", _text(b"SDV2"), (_BYTES,)),
    _Message("InvokeAI", _text(b"InvokeAI"), (_BYTES,)),
    _Message(
        "Stable Diffusion XL (reference code, diffusers)",
        _number(0xB3EC907BB19E),
        (_FLOATS, _SWAPPED),
    ),
    _Message("FLUX (reference code)", _number(0x2AFE879CF52E), (_FLOATS,)),
)
CARRIERS = (_BYTES, _FLOATS, _SWAPPED)
_READINGS = sum(len(message.carriers) for message in MESSAGES)
_WAYS = 3  # as found, resized, cropped
# Width and height that the codes above make by default or were trained on (SDXL: arXiv 2307.01952,
# appendix I), and these turned.
_SIZES = (
    (512, 512),
    (768, 768),
    (1024, 1024),
    (1152, 896),
    (1216, 832),
    (1344, 768),
    (1536, 640),
    (1360, 768),
)
SIZES = tuple(
    dict.fromkeys(size for width, height in _SIZES for size in ((width, height), (height, width)))
)


def read_watermark(pixels: Image.Image) -> Watermark | None:
    """Whose mark an RGB picture carries; None where none is read by a chance of at most 1e-6, every
    message, size, place and order tried reckoned in. Takes about 5 ms on a core for an unmarked
    picture of any size, and under 100 for one that was made to take long.
    """
    if pixels.width * pixels.height < SMALLEST or min(pixels.size) < NARROWEST:
        return None
    return next(
        (mark for mark in _readings(pixels) if mark is not None and mark.chance <= MOST_CHANCE),
        None,
    )


def _readings(pixels: Image.Image) -> Iterator[Watermark | None]:
    """What is read as found, then in the sizes that it may have been resized from, then at blocks
    that are in another place.
    """
    width, height = pixels.size
    left, top = (max(0, side - SIDE) // 2 // BLOCK * BLOCK for side in pixels.size)
    # blocks
    whole = (
        left,
        top,
        min(width, left + SIDE) // BLOCK * BLOCK,
        min(height, top + SIDE) // BLOCK * BLOCK,
    )
    part = pixels if whole == (0, 0, width, height) else pixels.crop(whole)
    stride = width // BLOCK
    yield _in_place(part.reduce(2), top // BLOCK * stride + left // BLOCK, stride, 1)
    larger = [
        (w, h)
        for w, h in SIZES
        if width < w <= 2 * width and abs(width * h - height * w) <= (w + h) / 2
    ]
    for w, h in larger:
        taken = min(h // 2, RESIZED)
        start = (h // 2 - taken) // 2 // 4 * 4
        box = (0, start * 2 * height / h, width, (start + taken) * 2 * height / h)
        halved = pixels.resize((w // 2, taken), Image.Resampling.BOX, box)
        yield _in_place(halved, start // 4 * (w // BLOCK), w // BLOCK, len(larger))
    for _, carrier, place in sorted(_places(part), reverse=True)[:PLACES]:
        levels = _levels(part.crop((*place, *part.size)).reduce(2))[carrier]
        yield _anywhere(_votes(_largest(levels)[::4, ::4], carrier), carrier)


def _levels(halved: Image.Image) -> dict[_Carrier, Levels]:
    """Half of each level, or of its size, by carrier."""
    blue, red = (np.asarray(halved.convert("L", carrier.weights)) for carrier in (_BYTES, _SWAPPED))
    return {_BYTES: blue, _FLOATS: np.maximum(blue, ~blue), _SWAPPED: np.maximum(red, ~red)}


def _largest(levels: Levels) -> Levels:
    """At each place (y, x) the largest of the 4 × 4 levels that start there, but for the first."""
    after = np.maximum(np.maximum(levels[:, 1:-2], levels[:, 2:-1]), levels[:, 3:])
    row = np.maximum(after, levels[:, :-3])
    return np.maximum(np.maximum(after[:-3], row[1:-2]), np.maximum(row[2:-1], row[3:]))


def _tables(carrier: _Carrier) -> tuple[Votes, Votes]:
    """Of a largest level: its vote, 1 at ¾ of a step and −1 at ¼; and how far it is from both, −1
    at them and 1 between.
    """
    turns = 2 * np.pi * (2 * np.arange(256) - 255 * carrier.is_signed) / STEP
    return -np.sin(turns).astype(np.float32), np.cos(2 * turns).astype(np.float32)


_TABLES = {carrier: _tables(carrier) for carrier in CARRIERS}


def _votes(largest: Levels, carrier: _Carrier) -> Votes:
    """Of each block, less the mean of those around it in raster order."""
    votes = _TABLES[carrier][0][largest]
    sums = np.cumsum(
        np.pad(votes.ravel(), (AVERAGED // 2 + 1, AVERAGED // 2), "reflect"), dtype=np.float32
    )
    means: Votes = ((sums[AVERAGED:] - sums[:-AVERAGED]) / np.float32(AVERAGED)).reshape(
        votes.shape
    )
    return votes - means


def _in_place(halved: Image.Image, first: int, stride: int, sizes: int) -> Watermark | None:
    """The best match where the blocks are, the first of them being the message's `first`, and
    `stride` a row of the whole picture.
    """
    votes = {
        carrier: _votes(_largest(levels)[::4, ::4], carrier)
        for carrier, levels in _levels(halved).items()
    }
    found = [
        _match(message, _ballot(votes[carrier], len(message.bits), first, stride), sizes)
        for message in MESSAGES
        for carrier in message.carriers
    ]
    return min(filter(None, found), key=lambda mark: mark.chance, default=None)


def _places(part: Image.Image) -> list[tuple[float, _Carrier, tuple[int, int]]]:
    """Where blocks may start, (x, y) of 8 × 8 pixels, with the carrier: the places at which those
    of the picture's middle lie nearer to the steps than at the middling place, with by how much.
    """
    left, top = (max(0, side - GLANCE) // 2 // BLOCK * BLOCK for side in part.size)
    right, bottom = min(part.width, left + GLANCE), min(part.height, top + GLANCE)
    far: dict[_Carrier, dict[tuple[int, int], float]] = {carrier: {} for carrier in CARRIERS}
    for y, x in np.ndindex(2, 2):
        for carrier, levels in _levels(
            part.crop((left + x, top + y, right, bottom)).reduce(2)
        ).items():
            largest = _largest(levels)
            rows, columns = (side // 4 for side in largest.shape)
            each = (
                _TABLES[carrier][1]
                .take(largest[: rows * 4, : columns * 4])
                .reshape(rows, 4, columns * 4)
                .sum(axis=0)
            )
            means = each.reshape(4, columns, 4).sum(axis=1) / max(rows * columns, 1)
            far[carrier] |= {
                (x + 2 * across, y + 2 * down): float(means[down, across])
                for down, across in np.ndindex(4, 4)
            }
    found = []
    for carrier, places in far.items():
        middling = float(np.median(list(places.values())))
        found += [
            (middling - mean, carrier, place)
            for place, mean in places.items()
            if middling - mean >= GRID
        ]
    return found


def _anywhere(votes: Votes, carrier: _Carrier) -> Watermark | None:
    """The best match of votes whose first block may be any of a message, of a picture of any width
    that is a multiple of 16.
    """
    found = []
    for message in MESSAGES:
        if carrier in message.carriers:
            length = len(message.bits)
            for stride in range(0, length, 2):
                ballot = _ballot(votes, length, 0, stride)
                if ballot is None:
                    break
                rolled = message.bits[(np.arange(length)[:, None] + np.arange(length)) % length]
                best = int((rolled == ballot).sum(axis=1).argmax())
                found.append(
                    _match(message._replace(bits=rolled[best]), ballot, length * length // 2)
                )
    return min(filter(None, found), key=lambda mark: mark.chance, default=None)


def _ballot(votes: Votes, length: int, first: int, stride: int) -> NDArray[np.bool_] | None:
    """The bits of a message of this length that blocks vote for; None where they are too few."""
    if votes.size < ENOUGH * length:
        return None
    places = (
        first + stride * np.arange(votes.shape[0])[:, None] + np.arange(votes.shape[1])
    ) % length
    means = np.bincount(places.ravel(), votes.ravel(), length) / np.maximum(
        np.bincount(places.ravel(), minlength=length), 1
    )
    ballot: NDArray[np.bool_] = means > means.mean()
    return ballot


def _match(message: _Message, ballot: NDArray[np.bool_] | None, tried: int) -> Watermark | None:
    """A match with the chance that as many ones, put anywhere (hypergeometric), match as well in
    one of all the ways that are tried.
    """
    if ballot is None:
        return None
    length, ones, voted = len(message.bits), int(message.bits.sum()), int(ballot.sum())
    right, both = int((ballot == message.bits).sum()), int((ballot & message.bits).sum())
    if right < RIGHT * length:
        return None
    tail = sum(
        comb(ones, met) * comb(length - ones, voted - met)
        for met in range(both, min(ones, voted) + 1)
    ) / comb(length, voted)
    return Watermark(
        of=message.of, bits=right, length=length, chance=min(1.0, tail * tried * _READINGS * _WAYS)
    )
