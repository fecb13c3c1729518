"""Read the invisible watermarks of image generators from pixels (`read_watermark`).

The reference code of some generators, such as Stable Diffusion XL, marks each image with the method
`dwtDct` of the package invisible-watermark.

How the package writes a message (github.com/ShieldMnt/invisible-watermark, imwatermark/maxDct.py):

- It uses the channel U of YUV, (blue − luma) × 0.492, averaged over 2 × 2 pixels and doubled. This
  is the low band of a Haar wavelet.
- Each block of 4 × 4 levels holds one bit. The largest level, except the first, is moved to ¼ or ¾
  of a step of 36.
- The blocks repeat the message in raster order.
- Some generators pass the image as floats. U is then around 0, and the level with the largest
  absolute value is moved. Early versions of diffusers swapped red and blue.

How this module reads it:

- Each block votes by how near its largest level is to ¾ rather than ¼. The mean vote of its
  neighbours is subtracted, because areas of one colour lean to one side.
- The votes for each bit are averaged. A bit is 1 if its average is above the mean of all averages.
  The package compares with ½ instead, and so loses 5 to 45 % of unchanged files, depending on the
  code.
- Images that were resized from a size that these generators produce are also read. So are crops
  whose block grid can be found.
"""

from collections.abc import Iterator
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ray_app.images.provenance.statement import Watermark

MAX_PROBABILITY = 1e-6  # A mark with a higher probability is not returned.
# The minimum fraction of correct bits. The letters of a text share bits, and a pattern of 64 pixels
# may look like three quarters of a text.
MIN_CORRECT_FRACTION = 7 / 8
MIN_BLOCKS_PER_BIT = 7
STEP, BLOCK = 36, 8  # The step of levels, and the side of a block in pixels.
MIN_PIXELS, MIN_SIDE = 256 * 256, 64  # In pixels. The package marks no smaller image.
# In pixels: the side of the part that is read, and of the part in which offsets are searched.
PART_SIDE, SEARCH_SIDE = 1024, 192
MAX_RESIZED_ROWS = 256  # Rows of levels that are read in another size.
# By how much the blocks at an offset must be nearer to the steps than at the median offset.
MIN_GRID_CONTRAST = 0.13
MAX_OFFSETS = 4  # Offsets that are tried, of 192.
AVERAGED_BLOCKS = (
    17  # The mean vote of this number of blocks in a row is subtracted from each vote.
)

Levels = NDArray[np.uint8]
Votes = NDArray[np.float32]


class _Carrier(NamedTuple):
    """How levels are computed from pixels.

    Attributes:
        weights: The weights of red, green and blue, and an offset.
        is_signed: Whether the levels are around 0.
    """

    weights: tuple[float, float, float, float]
    is_signed: bool


_BYTES = _Carrier((-0.1471, -0.2888, 0.4359, 128.0), False)
_FLOATS = _Carrier(_BYTES.weights, True)
_SWAPPED = _Carrier((0.4359, -0.2888, -0.1471, 128.0), True)


class _Message(NamedTuple):
    """A message that a code writes, with the carriers that it uses."""

    of: str
    bits: NDArray[np.bool_]
    carriers: tuple[_Carrier, ...]


def _text_bits(text: bytes) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(text, np.uint8)).astype(bool)


def _number_bits(number: int) -> NDArray[np.bool_]:
    # The codes also drop leading zeros, so that 46 bits of FLUX's 48 are written.
    return np.array([digit == "1" for digit in f"{number:b}"])


# CompVis/stable-diffusion and Stability-AI/stablediffusion scripts/txt2img.py;
# Stability-AI/generative-models scripts/demo/detect.py and diffusers
# pipelines/stable_diffusion_xl/watermark.py; black-forest-labs/flux src/flux/util.py; InvokeAI
# invocations/image.py.
MESSAGES = (
    _Message("Stable Diffusion 1 (reference code)", _text_bits(b"StableDiffusionV1"), (_BYTES,)),
    _Message("Stable Diffusion 2 (reference code)", _text_bits(b"SDV2"), (_BYTES,)),
    _Message("InvokeAI", _text_bits(b"InvokeAI"), (_BYTES,)),
    _Message(
        "Stable Diffusion XL (reference code, diffusers)",
        _number_bits(0xB3EC907BB19E),
        (_FLOATS, _SWAPPED),
    ),
    _Message("FLUX (reference code)", _number_bits(0x2AFE879CF52E), (_FLOATS,)),
)
CARRIERS = (_BYTES, _FLOATS, _SWAPPED)
_READING_COUNT = sum(len(message.carriers) for message in MESSAGES)
_SEARCH_WAYS = 3  # As it is, resized, and cropped.
# Width and height that the codes above generate by default or were trained on (SDXL: arXiv
# 2307.01952, appendix I), and the same sizes rotated.
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
    """Return the invisible watermark of a known generator in an RGB image, or None.

    A watermark is returned if the probability of finding it in an unmarked image is at most 1e-6.
    The probability includes all messages, sizes, offsets, and orders that are tried. An unmarked
    image of any size takes about 5 ms on one core. An image that was built to take long takes under
    100 ms.
    """
    if pixels.width * pixels.height < MIN_PIXELS or min(pixels.size) < MIN_SIDE:
        return None
    return next(
        (
            mark
            for mark in _read_candidates(pixels)
            if mark is not None and mark.chance <= MAX_PROBABILITY
        ),
        None,
    )


def _read_candidates(pixels: Image.Image) -> Iterator[Watermark | None]:
    """Yield the best match of each way to read the image.

    The image is read as it is, then in the sizes that it may have been resized from, then with the
    blocks at another offset.
    """
    width, height = pixels.size
    left, top = (max(0, side - PART_SIDE) // 2 // BLOCK * BLOCK for side in pixels.size)
    bounds = (
        left,
        top,
        min(width, left + PART_SIDE) // BLOCK * BLOCK,
        min(height, top + PART_SIDE) // BLOCK * BLOCK,
    )
    part = pixels if bounds == (0, 0, width, height) else pixels.crop(bounds)
    stride = width // BLOCK
    yield _match_aligned(part.reduce(2), top // BLOCK * stride + left // BLOCK, stride, 1)
    larger = [
        (w, h)
        for w, h in SIZES
        if width < w <= 2 * width and abs(width * h - height * w) <= (w + h) / 2
    ]
    for w, h in larger:
        rows = min(h // 2, MAX_RESIZED_ROWS)
        start = (h // 2 - rows) // 2 // 4 * 4
        box = (0, start * 2 * height / h, width, (start + rows) * 2 * height / h)
        halved = pixels.resize((w // 2, rows), Image.Resampling.BOX, box)
        yield _match_aligned(halved, start // 4 * (w // BLOCK), w // BLOCK, len(larger))
    for _, carrier, offset in sorted(_find_offsets(part), reverse=True)[:MAX_OFFSETS]:
        levels = _compute_levels(part.crop((*offset, *part.size)).reduce(2))[carrier]
        yield _match_any_start(_compute_votes(_find_largest(levels)[::4, ::4], carrier), carrier)


def _compute_levels(halved: Image.Image) -> dict[_Carrier, Levels]:
    """Return half of each level, or of its absolute value, by carrier."""
    blue, red = (np.asarray(halved.convert("L", carrier.weights)) for carrier in (_BYTES, _SWAPPED))
    return {_BYTES: blue, _FLOATS: np.maximum(blue, ~blue), _SWAPPED: np.maximum(red, ~red)}


def _find_largest(levels: Levels) -> Levels:
    """Return at each position (y, x) the largest of the next 4 × 4 levels, without the first."""
    after = np.maximum(np.maximum(levels[:, 1:-2], levels[:, 2:-1]), levels[:, 3:])
    row = np.maximum(after, levels[:, :-3])
    return np.maximum(np.maximum(after[:-3], row[1:-2]), np.maximum(row[2:-1], row[3:]))


def _build_tables(carrier: _Carrier) -> tuple[Votes, Votes]:
    """Return two tables over largest levels.

    The first is the vote of a level, 1 at ¾ of a step and −1 at ¼. The second is its distance from
    both, −1 at ¼ and ¾ and 1 between them.
    """
    turns = 2 * np.pi * (2 * np.arange(256) - 255 * carrier.is_signed) / STEP
    return -np.sin(turns).astype(np.float32), np.cos(2 * turns).astype(np.float32)


_TABLES = {carrier: _build_tables(carrier) for carrier in CARRIERS}


def _compute_votes(largest: Levels, carrier: _Carrier) -> Votes:
    """Return the vote of each block, minus the mean of the blocks around it in raster order."""
    votes = _TABLES[carrier][0][largest]
    sums = np.cumsum(
        np.pad(votes.ravel(), (AVERAGED_BLOCKS // 2 + 1, AVERAGED_BLOCKS // 2), "reflect"),
        dtype=np.float32,
    )
    means: Votes = (
        (sums[AVERAGED_BLOCKS:] - sums[:-AVERAGED_BLOCKS]) / np.float32(AVERAGED_BLOCKS)
    ).reshape(votes.shape)
    return votes - means


def _match_aligned(halved: Image.Image, first: int, stride: int, sizes: int) -> Watermark | None:
    """Return the best match for blocks at the usual offset.

    Args:
        halved: The image at half size.
        first: The index of the first block in the repeated message.
        stride: The number of blocks in a row of the whole image.
        sizes: The number of sizes that are tried.
    """
    votes = {
        carrier: _compute_votes(_find_largest(levels)[::4, ::4], carrier)
        for carrier, levels in _compute_levels(halved).items()
    }
    marks = [
        _match_message(
            message, _count_votes(votes[carrier], len(message.bits), first, stride), sizes
        )
        for message in MESSAGES
        for carrier in message.carriers
    ]
    return min(filter(None, marks), key=lambda mark: mark.chance, default=None)


def _find_offsets(part: Image.Image) -> list[tuple[float, _Carrier, tuple[int, int]]]:
    """Find offsets at which 8 × 8 blocks may start.

    The blocks in the middle of the image are nearer to the steps at such an offset than at the
    median offset.

    Returns:
        For each offset the contrast to the median, the carrier, and (x, y).
    """
    left, top = (max(0, side - SEARCH_SIDE) // 2 // BLOCK * BLOCK for side in part.size)
    right, bottom = min(part.width, left + SEARCH_SIDE), min(part.height, top + SEARCH_SIDE)
    distances: dict[_Carrier, dict[tuple[int, int], float]] = {carrier: {} for carrier in CARRIERS}
    for y, x in np.ndindex(2, 2):
        for carrier, levels in _compute_levels(
            part.crop((left + x, top + y, right, bottom)).reduce(2)
        ).items():
            largest = _find_largest(levels)
            rows, columns = (side // 4 for side in largest.shape)
            sums = (
                _TABLES[carrier][1]
                .take(largest[: rows * 4, : columns * 4])
                .reshape(rows, 4, columns * 4)
                .sum(axis=0)
            )
            means = sums.reshape(4, columns, 4).sum(axis=1) / max(rows * columns, 1)
            distances[carrier] |= {
                (x + 2 * across, y + 2 * down): float(means[down, across])
                for down, across in np.ndindex(4, 4)
            }
    candidates = []
    for carrier, means_by_offset in distances.items():
        median = float(np.median(list(means_by_offset.values())))
        candidates += [
            (median - mean, carrier, offset)
            for offset, mean in means_by_offset.items()
            if median - mean >= MIN_GRID_CONTRAST
        ]
    return candidates


def _match_any_start(votes: Votes, carrier: _Carrier) -> Watermark | None:
    """Return the best match of votes if the first block may be any block of a message.

    The image may have any width that is a multiple of 16.
    """
    marks = []
    for message in MESSAGES:
        if carrier in message.carriers:
            length = len(message.bits)
            for stride in range(0, length, 2):
                ballot = _count_votes(votes, length, 0, stride)
                if ballot is None:
                    break
                rolled = message.bits[(np.arange(length)[:, None] + np.arange(length)) % length]
                best = int((rolled == ballot).sum(axis=1).argmax())
                marks.append(
                    _match_message(
                        message._replace(bits=rolled[best]), ballot, length * length // 2
                    )
                )
    return min(filter(None, marks), key=lambda mark: mark.chance, default=None)


def _count_votes(votes: Votes, length: int, first: int, stride: int) -> NDArray[np.bool_] | None:
    """Return the bits of a message of this length that blocks vote for; None for too few blocks.

    Args:
        votes: The votes of the blocks.
        length: The number of bits of the message.
        first: The index of the first block in the repeated message.
        stride: The number of blocks in a row of the whole image.
    """
    if votes.size < MIN_BLOCKS_PER_BIT * length:
        return None
    bit_indices = (
        first + stride * np.arange(votes.shape[0])[:, None] + np.arange(votes.shape[1])
    ) % length
    means = np.bincount(bit_indices.ravel(), votes.ravel(), length) / np.maximum(
        np.bincount(bit_indices.ravel(), minlength=length), 1
    )
    ballot: NDArray[np.bool_] = means > means.mean()
    return ballot


def _match_message(
    message: _Message, ballot: NDArray[np.bool_] | None, tries: int
) -> Watermark | None:
    """Return a match with its probability; None if too few bits match.

    It is the probability that as many ones, at random positions (hypergeometric), match as well in
    any of the ways that are tried.

    Args:
        message: The message.
        ballot: The bits that blocks vote for, None for too few blocks.
        tries: The number of alignments that are tried.
    """
    if ballot is None:
        return None
    length, ones, vote_ones = len(message.bits), int(message.bits.sum()), int(ballot.sum())
    correct, both = int((ballot == message.bits).sum()), int((ballot & message.bits).sum())
    if correct < MIN_CORRECT_FRACTION * length:
        return None
    tail = sum(
        comb(ones, overlap) * comb(length - ones, vote_ones - overlap)
        for overlap in range(both, min(ones, vote_ones) + 1)
    ) / comb(length, vote_ones)
    return Watermark(
        of=message.of,
        bits=correct,
        length=length,
        chance=min(1.0, tail * tries * _READING_COUNT * _SEARCH_WAYS),
    )
