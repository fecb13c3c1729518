"""Convert images of any Pillow mode to 8-bit RGB (`to_rgb`).

The conversion is the one with which the authors of the detectors prepared their images.
"""

import contextlib
import io

import numpy as np
from PIL import Image, ImageChops, ImageCms, features

from ray_app.errors import InputError, Status

# White, which browsers show behind transparency, and onto which editors flatten.
MATTE = (255, 255, 255)

_GREY = ("1", "L", "LA", "La")
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_PLAIN = ("1", "L", "P", "RGBX", "YCbCr", "HSV")
# Cameras of 10 and 12 bits are often saved in samples of 16 bits without a shift.
_NARROW_BITS = (10, 12)
_BAND_PIXELS = 2**20  # Converted at once.
_ICC_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)


def to_rgb(image: Image.Image, flags: set[str], sample_bits: int) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB. An RGB image without transparency is not copied.

    Alpha is composited on white. Samples of more than 8 bits keep the high 8 that are used. CMYK is
    converted by its own profile, or without one by Pillow's default. Lab is converted to sRGB. The
    profile of an RGB image is not applied, because the detectors' authors do not apply it. Each
    conversion adds a flag: `grayscale`, `alpha`, `cmyk`, or `broken_icc` for a profile that cannot
    be used. Raises InputError if the samples have no agreed values for black and white, such as
    floats.
    """
    mode = image.mode
    if mode in _GREY or mode.startswith("I;16"):
        flags.add("grayscale")
    if mode.startswith("I;16"):
        return _deep_grey_to_rgb(image, flags, sample_bits)
    if mode in _ALPHA or "transparency" in image.info:
        flags.add("alpha")
        return _composite_on_matte(image)
    if mode == "RGB":
        return image
    if mode == "CMYK":
        flags.add("cmyk")
        return _cmyk_to_rgb(image, flags)
    if mode == "LAB" and features.check("littlecms2"):
        with contextlib.suppress(*_ICC_ERRORS):
            return _convert_to_srgb(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    if mode in _PLAIN:
        return image.convert("RGB")
    raise InputError(
        Status.UNSUPPORTED_FORMAT,
        f"pixels of mode {mode} have no agreed range for black and white: save as 8 or 16 bits",
    )


def find_used_bits(max_value: int) -> int:
    """Return how many bits the 16-bit samples of an image with this maximum use: 10, 12, or 16."""
    return next((bits for bits in _NARROW_BITS if max_value < 2**bits), 16)


def merge_low_bytes(image: Image.Image, low: Image.Image, used_bits: int) -> None:
    """Give the colours of an RGB or RGBA image the high 8 of the bits that are used, in place.

    The image has the high bytes of samples of 16 bits. `used_bits` is from `find_used_bits`.
    """
    shift, alpha_count, values = used_bits - 8, len(image.getbands()) - 3, range(256)
    high_table = [value << (8 - shift) & 255 for value in values] * 3 + [*values] * alpha_count
    low_table = [value >> shift for value in values] * 3 + [0 for _ in values] * alpha_count
    rows = max(_BAND_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        band = (0, top, image.width, min(top + rows, image.height))
        parts = image.crop(band).point(high_table), low.crop(band).point(low_table)
        image.paste(ImageChops.add(*parts), band)


def is_icc_profile(profile: object) -> bool:
    """Return whether an object is a complete ICC profile with the signature of profiles.

    Source: ICC.1 §7.2, with the size at byte 0 and `acsp` at byte 36.
    """
    if not isinstance(profile, bytes) or len(profile) < 128:
        return False
    return profile[36:40] == b"acsp" and int.from_bytes(profile[:4], "big") <= len(profile)


def _composite_on_matte(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba.convert("RGB")
    matte = Image.new("RGB", rgba.size, MATTE)
    matte.paste(rgba, (0, 0), rgba)
    return matte


def _deep_grey_to_rgb(image: Image.Image, flags: set[str], sample_bits: int) -> Image.Image:
    samples = np.asarray(image)
    used_bits = sample_bits if 8 < sample_bits < 16 else find_used_bits(int(samples.max()))
    # Pillow's own conversion clips at 255, which gives a white image and a plausible wrong score.
    grey = (samples >> (used_bits - 8)).astype(np.uint8)
    if "white_is_zero" in image.info:
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        flags.add("alpha")
        grey[samples == transparent] = MATTE[0]
    return Image.fromarray(grey).convert("RGB")


def _cmyk_to_rgb(image: Image.Image, flags: set[str]) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile and features.check("littlecms2"):
        try:
            return _convert_to_srgb(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        except _ICC_ERRORS:
            flags.add("broken_icc")
    return image.convert("RGB")


def _convert_to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """Convert the colours of a profile to sRGB, by perceptual intent. Raises `_ICC_ERRORS`."""
    converted = ImageCms.profileToProfile(
        image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert converted is not None  # None is returned only if the image itself is converted.
    return converted
