"""JPEGs on a GPU (`NvJpeg`), where detectors look at images in their own size; and whether scores bear that (`require_parity`).

nvJPEG is native code that reads what strangers wrote. It sees a file only after a core has decoded all of it: the decode stage has refused
what is cut off, broken or over a limit, and hands on no file that it could not decode. What is out of the ordinary stays with the core.
"""

import io
import warnings
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from PIL import Image

from ray_app.detectors.detector import Detector
from ray_app.detectors.golden import formula_image
from ray_app.detectors.precision import TOLERANCE
from ray_app.errors import ConfigError
from ray_app.images import DecodedImage, ImageLimits, decode_image
from ray_app.images.facts import ImageFileFacts, inspect_bytes
from ray_app.images.jpeg import open_header
from ray_app.images.limits import demand_of

DecodeJpeg = Callable[[torch.Tensor], torch.Tensor]  # (bytes,) uint8 on the host → (3, height, width) uint8, on any device

# (width, height), quality, subsampling, progressive: odd sides, so that blocks are cut, and both ways in which colour is stored.
MADE = ((160, 120, 75, "4:2:0", False), (257, 193, 95, "4:2:0", False), (224, 224, 90, "4:4:4", False), (203, 311, 85, "4:2:0", True))
_IDS = ((1, 2, 3), (0, 1, 2))  # of components in Y, Cb, Cr; other files may hold RGB, or anything


def on_gpu(device: str) -> DecodeJpeg:
    """torchvision's nvJPEG."""

    def decode(data: torch.Tensor) -> torch.Tensor:
        from torchvision.io import decode_jpeg

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            made: torch.Tensor = decode_jpeg(data, "RGB", device=device)
        return made

    return decode


class NvJpeg:
    """One file that decoded before → its pixels, by `decode`; None where a core has to do it. `counts`: how many there were of each."""

    def __init__(self, decode: DecodeJpeg) -> None:
        self._decode = decode
        self.counts = {"nvjpeg": 0}

    def __call__(self, data: bytes) -> DecodedImage | None:
        """Ordinary JPEGs of three components, 8 bits each, that are not large; of others, and of what fails, nothing is made."""
        facts = inspect_bytes(data)
        if facts.format != "JPEG" or (size := ordinary_size(data)) is None:
            return None
        try:
            pixels = self._decode(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).contiguous().cpu().numpy()
        except RuntimeError:  # what torchvision raises, whatever nvJPEG does not know
            return None
        if pixels.shape != (size[1], size[0], 3):
            return None
        self.counts["nvjpeg"] += 1
        found = ImageFileFacts(facts.sha256, facts.format, *size, mode="RGB")
        return DecodedImage(Image.fromarray(pixels), found)


def ordinary_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG that every decoder reads alike but for rounding; None of one with grey, CMYK or RGB inside, and of a large
    one, which takes its turn on the node.
    """
    try:
        image = open_header(data, set())
        plain = image.mode == "RGB" and image.bits == 8 and tuple(part[0] for part in image.layer) in _IDS
        if not plain or image.info.get("adobe_transform", 1) != 1 or demand_of(image, data, "JPEG").is_large:
            return None
    except Exception:  # a header that Pillow reads otherwise on its own is the core's business
        return None
    return image.size


def require_parity(detectors: Iterable[Detector], nvjpeg: NvJpeg) -> None:
    """Score made JPEGs by both decoders. Raises ConfigError where some score moves by more than its card allows: what bf16 may move it by
    where the card leaves precision to the machine, and what fp32 may where it does not.
    """
    for detector in detectors:
        card = detector.card
        allowed = TOLERANCE["fp32" if card.precision == "fp32" else "bf16"]
        for name, data in made_jpegs():
            image = nvjpeg(data)
            if image is None:
                raise ConfigError(
                    f"jpeg_decoder nvjpeg: it does not decode {name} here", hint="leave jpeg_decoder out: the scores of libjpeg are exact"
                )
            expected, score = (_score(detector, pixels) for pixels in (decode_image(data, ImageLimits()).pixels, image.pixels))
            if not abs(score - expected) <= allowed * max(1.0, abs(expected)):
                raise ConfigError(
                    f"jpeg_decoder nvjpeg: the score of {card.name} moves from {expected:.4f} to {score:.4f} on {name}, "
                    f"more than its card allows ({allowed:g})",
                    hint="leave jpeg_decoder out, or this detector",
                )


def made_jpegs() -> Iterator[tuple[str, bytes]]:
    """JPEGs of an image by formula, which has all frequencies, and of the same image smoothed."""
    for width, height, quality, subsampling, progressive in MADE:
        pixels = formula_image(width, height)
        smooth = np.cumsum(np.cumsum(pixels.astype(np.int64) - 127, axis=0), axis=1)
        for kind, made in (("formula", pixels), ("smooth", (np.abs(smooth) // 64 % 256).astype(np.uint8))):
            file = io.BytesIO()
            Image.fromarray(made).save(file, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
            yield f"{kind} {width} × {height} (quality {quality}, {subsampling})", file.getvalue()


def _score(detector: Detector, image: Image.Image) -> float:
    return float(detector.score(detector.prepare(image)[None])[0])
