"""Define the basic steps of perturbations, such as `jpeg`, `resize`, and `crop`.

A step is a function that changes an image. The step `call` runs a function of the user.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from inspect import signature
from typing import Annotated, Any

from PIL import Image
from pydantic import AfterValidator, Field

from ray_app.errors import ConfigError
from ray_app.transforms import ops
from ray_app.transforms.registry import Rng, register_step

Quality = Annotated[int, Field(ge=1, le=100, description="quality of the codec")]
Side = Annotated[int, Field(ge=1, le=65535)]
Scale = Annotated[float, Field(gt=0, le=16)]


def _check_order(bounds: Any) -> None:
    if isinstance(bounds, tuple) and bounds[0] > bounds[1]:
        raise ValueError(
            f"the first bound must not exceed the second, got {bounds[0]} and {bounds[1]}"
        )


def _check_jpeg(quality: Any) -> None:
    _check_order(quality)


@register_step("jpeg", check=_check_jpeg)
def compress_jpeg(
    image: Image.Image, rng: Rng, quality: Quality | tuple[Quality, Quality]
) -> Image.Image:
    """Compress as JPEG with halved chroma (4:2:0), by Pillow.

    Two numbers as `quality` are the bounds of a random quality. All integers from the lower to the
    upper bound are equally likely.
    """
    if isinstance(quality, tuple):
        quality = int(rng.integers(*quality, endpoint=True))
    return ops.jpeg(image, quality)


@register_step("webp")
def compress_webp(image: Image.Image, quality: Quality) -> Image.Image:
    """Compress as lossy WebP."""
    return ops.webp(image, quality)


def _check_avif(quality: int) -> None:
    if not ops.has_avif():
        raise ValueError(
            "this Pillow has no AVIF; install pillow 11.3 or newer, or leave out the step avif"
        )


@register_step("avif", check=_check_avif)
def compress_avif(image: Image.Image, quality: Quality) -> Image.Image:
    """Compress as AVIF."""
    return ops.avif(image, quality)


_SIZES = ("scale", "short_side", "long_edge", "screen", "square")


def _check_resize(**parameters: Any) -> None:
    if sum(parameters[name] is not None for name in _SIZES) != 1:
        raise ValueError(f"resize needs exactly one of {', '.join(_SIZES)}")
    _check_order(parameters["scale"])


@register_step("resize", check=_check_resize)
def resize(
    image: Image.Image,
    rng: Rng,
    scale: Annotated[
        Scale | tuple[Scale, Scale] | None,
        Field(description="factor of both sides; two numbers are the bounds of a random factor"),
    ] = None,
    short_side: Annotated[
        Side | None, Field(description="shorter side in pixels; shrinks and enlarges")
    ] = None,
    long_edge: Annotated[
        Side | None, Field(description="maximum longer side in pixels; only shrinks")
    ] = None,
    screen: Annotated[
        tuple[Side, Side] | None,
        Field(description="width and height to fit, in the orientation of the image; only shrinks"),
    ] = None,
    square: Annotated[
        Side | None, Field(description="both sides in pixels; changes the aspect ratio")
    ] = None,
    filter: Annotated[ops.Filter, Field(description="filter of Pillow")] = "bicubic",
) -> Image.Image:
    """Resize, by exactly one of `scale`, `short_side`, `long_edge`, `screen`, and `square`."""
    size = image.size
    if long_edge is not None:
        target = ops.capped_size(size, long_edge)
    elif screen is not None:
        target = ops.fitted_size(size, screen)
    elif square is not None:
        target = square, square
    elif short_side is not None:
        target = ops.scaled_size(size, short_side / min(size))
    elif isinstance(scale, tuple):
        target = ops.scaled_size(size, float(rng.uniform(*scale)))
    else:
        target = ops.scaled_size(size, scale or 1.0)
    return ops.resize(image, target, filter)


def _check_odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError(f"kernel must be odd, got {kernel}")
    return kernel


def _check_blur(sigma: float | None, kernel: int | None) -> None:
    if sigma is None and kernel is None:
        raise ValueError("blur needs a sigma, a kernel, or both")


@register_step("blur", check=_check_blur)
def blur(
    image: Image.Image,
    sigma: Annotated[
        float | None, Field(gt=0, le=64, description="standard deviation in pixels")
    ] = None,
    kernel: Annotated[
        Annotated[int, AfterValidator(_check_odd)] | None,
        Field(ge=1, le=255, description="side of the kernel in pixels, odd"),
    ] = None,
) -> Image.Image:
    """Blur by a Gaussian with `sigma`, `kernel`, or both.

    With `sigma` alone, scipy's filter is applied to uint8 channels, as in robustness suites. With
    `kernel` alone, sigma is derived from the kernel's size as in OpenCV. With both, the kernel is
    applied in float, and the result is rounded once.
    """
    if kernel is None:
        return ops.scipy_blur(image, sigma or 0.0)
    taps = ops.opencv_taps(kernel) if sigma is None else ops.gaussian_taps(kernel, sigma)
    return ops.blur(image, taps)


def _check_noise(sigma: float | None, variance: float | None) -> None:
    if (sigma is None) == (variance is None):
        raise ValueError("noise needs either a sigma or a variance")


@register_step("noise", check=_check_noise)
def add_noise(
    image: Image.Image,
    rng: Rng,
    sigma: Annotated[
        float | None, Field(gt=0, le=255, description="standard deviation, of 255")
    ] = None,
    variance: Annotated[
        float | None, Field(gt=0, le=65025, description="square of sigma, instead of it")
    ] = None,
) -> Image.Image:
    """Add Gaussian noise, by its `sigma` or its `variance`."""
    return ops.add_noise(image, sigma if sigma is not None else math.sqrt(variance or 0.0), rng)


@register_step("crop", keeps_place=False)
def crop(
    image: Image.Image,
    share: Annotated[float, Field(gt=0, le=1, description="fraction of both sides that stays")],
) -> Image.Image:
    """Crop the centre of the image, with `share` of its width and of its height."""
    return ops.centre_crop(image, share)


@register_step("random-square", keeps_place=False)
def crop_square(
    image: Image.Image,
    rng: Rng,
    share: Annotated[
        float, Field(gt=0, le=1, description="smallest side, as a fraction of the short side")
    ],
    low: Annotated[Side, Field(description="smallest side in pixels")] = 1,
    high: Annotated[Side, Field(description="largest side in pixels")] = 65535,
) -> Image.Image:
    """Crop to a square at a random position.

    The side of the square is random. Its maximum is the short side of the image, or `high` if that
    is less. Its minimum is `share` of the maximum, or `low` if that is more. If the short side of
    the image is below `low`, it is the side of the square.
    """
    return ops.random_square(image, low, high, share, rng)


@register_step("gamma")
def apply_gamma(
    image: Image.Image,
    gamma: Annotated[float, Field(gt=0, le=8, description="exponent; above 1 is darker")],
) -> Image.Image:
    """Raise pixel values, scaled to 0–1, to the power of `gamma`."""
    return ops.apply_gamma(image, gamma)


@register_step("sharpen")
def sharpen(
    image: Image.Image,
    percent: Annotated[int, Field(ge=1, le=500, description="strength in percent")],
    radius: Annotated[float, Field(gt=0, le=16, description="radius in pixels")] = 1.0,
) -> Image.Image:
    """Sharpen by an unsharp mask."""
    return ops.sharpen(image, percent, radius)


@register_step("call", keeps_place=False)
def call(
    image: Image.Image,
    rng: Rng,
    path: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
            description="MODULE:FUNCTION, as Python imports it",
        ),
    ],
    arguments: Annotated[
        Mapping[str, Any], Field(description="arguments of the function, by name")
    ] = {},
) -> Image.Image:
    """Call a function that you wrote, as a step of a perturbation.

    The function receives the RGB image and `arguments` by name, and returns a PIL image. If the
    function has a parameter `rng`, it also receives a NumPy generator. If the function raises
    ValueError, the perturbed image has no score.
    """
    function = import_function(path)
    extra = {"rng": rng} if "rng" in signature(function).parameters else {}
    result = function(image, **arguments, **extra)
    if not isinstance(result, Image.Image):
        raise TypeError(f"the function {path} returned {type(result).__name__}, not a PIL image")
    return result.convert("RGB")


@cache
def import_function(path: str) -> Callable[..., Any]:
    """Return the function that the step `call` names as MODULE:FUNCTION.

    Raises:
        ConfigError: The function cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        function: Callable[..., Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"op call: {path} cannot be imported: {error}",
            hint="install the module on every machine, or set PYTHONPATH to the absolute path of its folder",
        ) from error
    return function
