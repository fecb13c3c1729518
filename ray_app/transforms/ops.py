"""Image operations of perturbations and augmentation: blur, codecs, resizes and crops, noise and
tone; and, on an image with its mask, geometry.

They draw random numbers only from a generator that they are given. Parity with the papers'
libraries is to the pixel: where Pillow stands for OpenCV, torchvision or scipy, the function says
so.
"""

import io
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, features

Taps = npt.NDArray[np.float64]

# OpenCV's fixed kernels for sizes whose sigma nobody gave (getGaussianKernel).
_SMALL = {1: (1.0,), 3: (0.25, 0.5, 0.25), 5: (0.0625, 0.25, 0.375, 0.25, 0.0625),
          7: (0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125)}  # fmt: skip

_LONGEST = {"JPEG": 65500, "WEBP": 16383, "AVIF": 65535}

Filter = Literal["nearest", "bilinear", "bicubic", "lanczos", "lanczos-or-bicubic"]
Size = tuple[int, int]

MOST_PIXELS = 2**26  # 192 MiB of RGB
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_BAND = 256  # rows: the noise of a large image is never in memory as a whole

Box = tuple[int, int, int, int]
Resampling = Image.Resampling
Change = Callable[[Image.Image], Image.Image]

# A longer strip is cut before it is enlarged to a short side of hundreds: one of 1 × 100,000 pixels
# would not fit into memory.
_LONGEST_PER_SHORT = 16

Mask = npt.NDArray[np.bool_]


def gaussian_taps(size: int, sigma: float) -> Taps:
    """`size` (odd) weights of a Gaussian of `sigma` pixels, which sum to 1."""
    taps = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    normalised: Taps = taps / taps.sum()
    return normalised


def blurred(image: Image.Image, taps: Taps) -> Image.Image:
    """`taps` along both axes of every channel, in float, rounded once; outside, the image is
    mirrored at its outermost pixels.
    """
    from scipy.ndimage import correlate1d

    down = correlate1d(np.asarray(image), taps, axis=0, output=np.float32, mode="mirror")
    across = correlate1d(down, taps, axis=1, mode="mirror")
    return Image.fromarray((across + np.float32(0.5)).astype(np.uint8))


def opencv_taps(size: int) -> Taps:
    """What OpenCV takes for a kernel of `size` (odd) whose sigma it is to derive: 0.3 · ((size − 1)
    / 2 − 1) + 0.8, from 9 on.
    """
    if size in _SMALL:
        return np.array(_SMALL[size])
    return gaussian_taps(size, 0.3 * ((size - 1) * 0.5 - 1) + 0.8)


def scipy_blurred(image: Image.Image, sigma: float) -> Image.Image:
    """`scipy.ndimage.gaussian_filter` on each channel as uint8, as CNNDetection's code and its
    heirs call it.

    Both of its passes cut fractions off: the image comes out up to two grey levels darker, which is
    theirs to measure too.
    """
    from scipy.ndimage import gaussian_filter

    pixels = np.array(image)
    for channel in range(pixels.shape[2]):
        pixels[:, :, channel] = gaussian_filter(np.ascontiguousarray(pixels[:, :, channel]), sigma)
    return Image.fromarray(pixels)


# Pillow's JPEG stands for OpenCV's too: for qualities 30 to 100 they give the same pixels, bit for
# bit (Pillow 13.0, OpenCV 5.0). An image longer than a format can hold (a strip of over 65,500
# pixels for JPEG) comes back as it is.
def jpeg(image: Image.Image, quality: int, *, swapped: bool = False) -> Image.Image:
    """RGB through JPEG, chroma halved both ways (4:2:0). `swapped`: red and blue change places for
    the codec.

    That is what becomes of RGB pixels handed to OpenCV, which takes them for BGR: red, not blue, is
    then the colour that loses most.
    """
    if not swapped:
        return _through(image, "JPEG", quality=quality)
    red, green, blue = image.split()
    blue, green, red = _through(
        Image.merge("RGB", (blue, green, red)), "JPEG", quality=quality
    ).split()
    return Image.merge("RGB", (red, green, blue))


def webp(image: Image.Image, quality: int, *, method: int = 4) -> Image.Image:
    """RGB through lossy WebP; `method` is its effort, 0 (fastest) to 6."""
    return _through(image, "WEBP", quality=quality, method=method)


def lossless_webp(image: Image.Image) -> Image.Image:
    """RGB through lossless WebP: the same pixels, as WebP's decoder gives them."""
    return _through(image, "WEBP", lossless=True, method=0)


def avif(image: Image.Image, quality: int) -> Image.Image:
    """RGB through AVIF at its second highest speed, in one thread: how many cores there are must
    not show in the pixels.
    """
    return _through(image, "AVIF", quality=quality, speed=9, max_threads=1)


def has_avif() -> bool:
    """Whether this Pillow was built with AVIF."""
    return bool(features.check("avif"))


def _through(image: Image.Image, codec: str, **options: Any) -> Image.Image:
    if max(image.size) > _LONGEST[codec]:
        return image
    encoded = io.BytesIO()
    # Pillow keeps the options of `save` on the image itself: one image in two threads would be
    # saved with the other's.
    image.copy().save(encoded, codec, **options)
    with Image.open(encoded) as decoded:
        return decoded.convert("RGB")


# A result has at least one pixel a side. One that would pass `MOST_PIXELS` is not made: the image
# comes back as it is.
def resized(image: Image.Image, size: Size, method: Filter) -> Image.Image:
    """Pillow's resize to (width, height), rows before columns under every version.
    `lanczos-or-bicubic`: Lanczos where the width shrinks, else bicubic.
    """
    if size == image.size or size[0] * size[1] > MOST_PIXELS:
        return image
    if method == "lanczos-or-bicubic":
        method = "lanczos" if size[0] < image.width else "bicubic"
    return resized_rows_first(image, size, _FILTERS[method])


def scaled_size(size: Size, scale: float) -> Size:
    """(width, height) times `scale`, rounded half to even."""
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def capped_size(size: Size, long_edge: int) -> Size:
    """The size with its longer side at most `long_edge`, the aspect kept."""
    return scaled_size(size, min(long_edge / max(size), 1.0))


def fitted_size(size: Size, screen: Size) -> Size:
    """The size within a screen that is turned as the image is, the aspect kept; what fits stays."""
    share = min(max(screen) / max(size), min(screen) / min(size), 1.0)
    return scaled_size(size, share)


def centre_crop(image: Image.Image, share: float) -> Image.Image:
    """The middle of the image with `share` of both sides."""
    width, height = scaled_size(image.size, share)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def random_square(
    image: Image.Image, low: int, high: int, share: float, rng: np.random.Generator
) -> Image.Image:
    """A square anywhere, its side drawn from `share` of the short side to all of it, within `low`
    and `high` pixels.

    Where the short side is below `low`, the side is the short side.
    """
    most = min(*image.size, high)
    least = min(max(int(most * share), low), most)
    side = int(rng.integers(least, most, endpoint=True))
    left, top = (int(rng.integers(0, n - side, endpoint=True)) for n in image.size)
    return image.crop((left, top, left + side, top + side))


def noisy(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """Gaussian noise of standard deviation `sigma` on the 0–255 scale, for every value of its own;
    rounded and clipped once.
    """
    pixels = np.array(image)
    for start in range(0, len(pixels), _BAND):
        band = pixels[start : start + _BAND]
        noise = rng.standard_normal(band.shape, np.float32)
        band[:] = np.clip(np.rint(band + noise * np.float32(sigma)), 0, 255)
    return Image.fromarray(pixels)


def with_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """Every value v of 0–1 becomes v ** `gamma`: above 1 is darker."""
    curve = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(int).tolist()
    return image.point(curve * len(image.getbands()))


def sharpened(image: Image.Image, percent: int, radius: float) -> Image.Image:
    """Pillow's unsharp mask, without a threshold."""
    return image.filter(ImageFilter.UnsharpMask(radius=radius, percent=percent, threshold=0))


class ImageSample(NamedTuple):
    """`image` RGB; `mask` of mode L and the same size, 255 where it was altered, or None; `label` 1
    = fake.

    `finished`: the policy gave the image its final geometry; otherwise it goes through the card's
    preprocessing.
    """

    image: Image.Image
    mask: Image.Image | None
    label: int
    finished: bool = False


# What follows is done to an image and its mask at once. The mask goes by the same geometry with the
# nearest pixel instead of a filter, so it stays 0 or 255.
def transformed(sample: ImageSample, change: Change, of_mask: Change | None = None) -> ImageSample:
    """`change` of the image, and of the mask `of_mask`, or the same."""
    mask = sample.mask and (of_mask or change)(sample.mask)
    return sample._replace(image=change(sample.image), mask=mask)


def resize_sample(sample: ImageSample, size: Size, filter: Resampling) -> ImageSample:
    """Squashed to (width, height) by one of Pillow's filters."""
    return transformed(
        sample,
        lambda image: image.resize(size, filter),
        lambda mask: mask.resize(size, Resampling.NEAREST),
    )


def cropped(sample: ImageSample, box: Box) -> ImageSample:
    """The part within (left, upper, right, lower)."""
    return transformed(sample, lambda image: image.crop(box))


def quarter_turned(sample: ImageSample, quarters: int) -> ImageSample:
    """Turned anticlockwise by `quarters` of a circle."""
    turns = (
        None,
        Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_180,
        Image.Transpose.ROTATE_270,
    )
    turn = turns[quarters % 4]
    return sample if turn is None else transformed(sample, lambda image: image.transpose(turn))


def mirrored(sample: ImageSample) -> ImageSample:
    """Left and right change places."""
    return transformed(sample, lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def flipped_vertically(sample: ImageSample) -> ImageSample:
    """Top and bottom change places."""
    return transformed(sample, lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM))


def rotated(sample: ImageSample, degrees: float, filter: Resampling) -> ImageSample:
    """Rotated anticlockwise about the centre, in the same frame; what comes in from outside is
    black, and unaltered in the mask.
    """
    return transformed(
        sample,
        lambda image: image.rotate(degrees, filter),
        lambda mask: mask.rotate(degrees, Resampling.NEAREST),
    )


def random_crop(sample: ImageSample, side: int, rng: np.random.Generator) -> ImageSample:
    """`side` × `side` pixels from anywhere within; an image that is smaller is mirrored out to it
    first.
    """
    if min(sample.image.size) < side:
        sample = transformed(sample, lambda image: _mirrored_out(image, side))
    width, height = sample.image.size
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    return cropped(sample, (left, top, left + side, top + side))


def with_short_side(
    sample: ImageSample, short: int, filter: Resampling, rng: np.random.Generator
) -> ImageSample:
    """The shorter side brought to `short`, the longer one in proportion and truncated, as
    torchvision's Resize does.

    Of a strip more than 16 times as long as it is wide, a part 16 times as long is drawn first.
    """
    width, height = sample.image.size
    longest = _LONGEST_PER_SHORT * min(width, height)
    if max(width, height) > longest:
        start = int(rng.integers(max(width, height) - longest + 1))
        sample = cropped(
            sample,
            (start, 0, start + longest, height)
            if width > height
            else (0, start, width, start + longest),
        )
        width, height = sample.image.size
    size = (
        (short, int(short * height / width))
        if width <= height
        else (int(short * width / height), short)
    )
    return sample if size == (width, height) else resize_sample(sample, size, filter)


def random_part(
    sample: ImageSample,
    share: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> ImageSample:
    """The part that torchvision's RandomResizedCrop would take: `drawn_box`, or the largest centred
    one of an allowed shape.
    """
    width, height = sample.image.size
    box = drawn_box((width, height), share, ratio, rng)
    if box is None:
        across, down = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        left, top = (width - across) // 2, (height - down) // 2
        box = left, top, left + across, top + down
    return cropped(sample, box)


def drawn_box(
    size: Size, share: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box | None:
    """A box of `share` of the area, its width ÷ height within `ratio` and drawn on a log scale;
    None where ten draws do not fit.
    """
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*share)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        across, down = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < across <= width and 0 < down <= height:
            left, top = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
            return left, top, left + across, top + down
    return None


def _mirrored_out(image: Image.Image, side: int) -> Image.Image:
    pixels = np.asarray(image)
    missing = [max(side - n, 0) for n in pixels.shape[:2]]
    pad = [(n // 2, n - n // 2) for n in missing] + [(0, 0)] * (pixels.ndim - 2)
    return Image.fromarray(np.pad(pixels, pad, mode="symmetric"))


def edge_map(mask: Mask, width: int = 7) -> Mask:
    """Pixels of (H, W) within reach of both sides of the outline: mask and its inverse, each
    dilated by a cross of `width` pixels.

    Outside the array is neither, so a mask that touches the border has no edge along it, and an
    empty or full one has none at all. specs/localization.md §3.2; golden/maskclip.md §5.3, C13. An
    odd `width`, or ValueError. The reference refuses a side that is not longer than `width`; here
    it is a band like any other.
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(f"the width of an edge is odd: {width}")
    return _dilated(mask, width // 2) & _dilated(~mask, width // 2)


def _dilated(mask: Mask, reach: int) -> Mask:
    result = mask.copy()
    for step in range(1, reach + 1):
        result[step:] |= mask[:-step]
        result[:-step] |= mask[step:]
        result[:, step:] |= mask[:, :-step]
        result[:, :-step] |= mask[:, step:]
    return result


def resized_rows_first(
    image: Image.Image,
    size: tuple[int, int],
    filter: Image.Resampling,
    part: tuple[float, float] | None = None,
) -> Image.Image:
    """Resize an image, or its upper left `part`, (width, height) in fractions of pixels, to `size`,
    (width, height).

    Every Pillow before 13 works along the rows first, then along the columns, and rounds in
    between; 13 takes the order that is less work, which for tall pictures whose aspect changes is
    the other one. In two calls the order is that of the versions with which the detectors' authors
    measured. The picture in between is `size[0]` wide and as high as the image.
    """
    width, height = part or image.size
    across = image.resize((size[0], image.height), filter, box=(0, 0, width, image.height))
    return across.resize(size, filter, box=(0, 0, size[0], height))
