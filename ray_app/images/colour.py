"""Colour conversion: whatever mode Pillow decoded → 8-bit RGB (`to_rgb`), the way the detectors'
authors saw it.
"""

import contextlib
import io

import numpy as np
from PIL import Image, ImageCms, features

from ray_app.errors import InputError, Status

# what a browser shows behind transparency, and what an editor flattens onto
MATTE = (255, 255, 255)

_GREY = ("1", "L", "LA", "La")
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_PLAIN = ("1", "L", "P", "RGBX", "YCbCr", "HSV")
_ICC_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)


def to_rgb(image: Image.Image, flags: set[str], sample_bits: int) -> Image.Image:
    """The image as RGB; the very same object where it is RGB already. Adds to `flags` what had to
    be decided.

    Alpha is composited on white, samples of more than 8 bits keep their high 8, CMYK goes through
    its own profile, Lab to sRGB; an RGB image's profile is not applied, as the authors of the
    detectors do not. Raises InputError for samples without an agreed range.
    """
    mode = image.mode
    if mode in _GREY or mode.startswith("I;16"):
        flags.add("grayscale")
    if mode.startswith("I;16"):
        return _deep_grey_to_rgb(image, flags, sample_bits)
    if mode in _ALPHA or "transparency" in image.info:
        flags.add("alpha")
        return _on_matte(image)
    if mode == "RGB":
        return image
    if mode == "CMYK":
        flags.add("cmyk")
        return _cmyk_to_rgb(image, flags)
    if mode == "LAB" and features.check("littlecms2"):
        with contextlib.suppress(*_ICC_ERRORS):
            return _converted(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    if mode in _PLAIN:
        return image.convert("RGB")
    raise InputError(
        Status.UNSUPPORTED_FORMAT,
        f"pixels of mode {mode} have no agreed range for black and white: save as 8 or 16 bits",
    )


def is_icc_profile(profile: object) -> bool:
    """Whether a profile has a profile's signature and is complete (ICC.1 §7.2: size at byte 0,
    `acsp` at byte 36).
    """
    if not isinstance(profile, bytes) or len(profile) < 128:
        return False
    return profile[36:40] == b"acsp" and int.from_bytes(profile[:4], "big") <= len(profile)


def _on_matte(image: Image.Image) -> Image.Image:
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
    # Pillow's own conversion clips at 255: a white picture, and a plausible wrong score.
    grey = (samples >> (sample_bits - 8 if 8 < sample_bits <= 16 else 8)).astype(np.uint8)
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
            return _converted(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        except _ICC_ERRORS:
            flags.add("broken_icc")
    return image.convert("RGB")


def _converted(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """From the colours of a profile to sRGB, by perceptual intent. Raises _ICC_ERRORS."""
    converted = ImageCms.profileToProfile(
        image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert converted is not None  # it is only where the image itself is to be changed
    return converted
