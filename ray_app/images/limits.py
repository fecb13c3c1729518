"""Limit the size of images, estimate the memory of a decode, and survive crashes of decoders.

`ImageLimits` has the default limits, which the scoring server of `touchstone serve` uses.
`BatchLimits` has wider limits for archives, images on the command line, and calls from Python.
docs/formats.md describes where each limit applies. `estimate_demand` estimates the peak memory of
decoding an image from its header (`DecodeCost`). `CrashMarker` is a file that names the image that
this process decodes. `Watchdog` ends a process whose decode exceeds a limit on wall time.
"""

import itertools
import mmap
import os
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from pydantic import Field

from ray_app.child_process import identify_process, is_running
from ray_app.config import Frozen
from ray_app.errors import InputError, Status
from ray_app.images import jpeg

# 1 MP decodes to 3 MB, which is harmless at any ratio.
ALWAYS_ALLOWED_PIXELS = 1_000_000

# Cameras and scanners write their largest images in these formats, which decode row by row or in
# strips. WebP is one because its own limit is a side of 16 383.
LARGEST = frozenset({"JPEG", "TIFF", "WEBP"})

# Matches the limit in the `detail` of a refusal: a field of these limits or of `container_limits`,
# or the `decode_bytes` of a node.
NAMED_LIMIT = r"\bover (?P<limit>(?:container_limits\.)?max_[a-z_]+|decode_bytes)\b"

# Any process has this much memory in addition to its libraries. A decode that needs more waits for
# the budget of its node.
SMALL_BYTES = 384 * 2**20
# A decode limit in seconds is for this number of pixels. Larger images get proportionally more
# time.
LIMIT_PIXELS = 50_000_000

_MAX_BYTES = 2**63 - 1  # A header may claim any size.
_FIXED_BYTES = 8 * 2**20  # The memory that a decoder allocates for the smallest image.
_ROWS_PER_STRIP, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLES, _BITS = 278, 322, 323, 277, 258  # TIFF tags.

# Pillow needs four bytes for a pixel of several channels, and one byte for a pixel of one channel.
# The decoder and the conversion to RGB need more memory in addition. The following numbers were
# measured (tests/images/test_limits.py measures them again) and are upper bounds.
_ONE_CHANNEL = ("1", "L", "P")
# Bytes per pixel that the conversion to RGB needs in addition to the image, by mode.
_CONVERT_BYTES = {
    "RGB": 0,
    "1": 4,
    "L": 4,
    "P": 4,
    "CMYK": 4,
    "YCbCr": 4,
    "RGBX": 4,
    "HSV": 4,
    "I": 7,
    "F": 4,
}
_ALPHA_BYTES, _DEEP_GREY_BYTES = 8, 7
# Bytes per pixel that a decoder needs in addition to the image, for formats whose header does not
# determine them.
_DECODE_BYTES = {"WEBP": 18, "AVIF": 12, "HEIC": 12, "JPEG2000": 20, "PNM": 6}
_MAX_BYTES_PER_PIXEL_LARGEST, _MAX_BYTES_PER_PIXEL = (
    22,
    24,
)  # Preparing an image for detectors needs no more.

# image_id, and the number of calls of `note` and `clear`, which is odd during a decode.
_RECORD = struct.Struct("<qq")
_SUFFIX = ".crumb"
_serial = itertools.count()


class ImageLimits(Frozen):
    """Limits on the images that are accepted, by default those of `touchstone serve`.

    All limits are checked from file sizes and headers before any pixel is decoded.
    """

    max_bytes: int = Field(
        default=32 * 1024**2,
        gt=0,
        description="maximum encoded bytes of one file. Limits the data in flight between storage and decoder",
    )
    max_pixels: int = Field(
        default=50_000_000,
        gt=0,
        description="maximum width × height. 50 MP is 150 MB of RGB, which is acceptable for one of many requests",
    )
    max_whole_pixels: int | None = Field(
        default=None,
        gt=0,
        # Without the key, endpoints, and runs from before it existed, keep their identity.
        exclude_if=lambda pixels: pixels is None,
        description="maximum width × height for formats that a decoder holds in memory more than once (all but JPEG, TIFF, and WebP). null: "
        "max_pixels",
    )
    max_side: int = Field(
        default=16_384,
        gt=0,
        description="maximum longer side in pixels. Resizing one line of a very long side costs as much as a whole image",
    )
    max_aspect: float = Field(
        default=20.0,
        ge=1,
        description="maximum longer ÷ shorter side. 'Short side to 224' would make a 60 000 × 1 image 13 million pixels wide",
    )
    max_ratio: float = Field(
        default=2000.0,
        gt=1,
        description="maximum decoded RGB bytes ÷ encoded bytes, above 1 MP. A photograph has some hundred, a one-bit PNG bomb up to 24 000",
    )
    max_text_bytes: int = Field(
        default=16 * 1024**2,
        gt=0,
        description="maximum bytes of text, EXIF, XMP, and colour profile that are read from one file: far more than cameras and generators write, "
        "far less than a bomb. A file with more is scored, and its finding names what was not read",
    )

    def check_bytes(self, size_bytes: int) -> None:
        """Raise an InputError with limit and observed value if an encoded file is too large."""
        if size_bytes > self.max_bytes:
            reason = f"{size_bytes} bytes is over max_bytes ({self.max_bytes})"
            raise InputError(
                Status.IMAGE_TOO_LARGE, reason, limit=self.max_bytes, observed=size_bytes
            )

    def check_size(
        self, width: int, height: int, size_bytes: int, format_name: str | None = None
    ) -> None:
        """Check the size in pixels that a file declares against the limits.

        Raises InputError with the limit and the observed value.
        """
        short, long = sorted((width, height))
        pixels = width * height
        if short <= 0:
            raise InputError(Status.CORRUPT_IMAGE, f"the header declares {width} × {height} pixels")
        is_whole = format_name is not None and format_name not in LARGEST
        max_pixels = (
            min(self.max_pixels, self.max_whole_pixels or self.max_pixels)
            if is_whole
            else self.max_pixels
        )
        limit: float
        observed: float
        if pixels > max_pixels:
            limit, observed = max_pixels, pixels
            name = "max_pixels" if max_pixels == self.max_pixels else "max_whole_pixels"
            reason = f"{pixels / 1e6:.1f} MP is over {name} ({limit / 1e6:g} MP)"
        elif long > self.max_side:
            limit, observed = self.max_side, long
            reason = f"a side of {long} pixels is over max_side ({limit})"
        elif long > short * self.max_aspect:
            limit, observed = self.max_aspect, long / short
            reason = f"an aspect ratio of {observed:.1f} is over max_aspect ({limit:g})"
        elif pixels > ALWAYS_ALLOWED_PIXELS and pixels * 3 > size_bytes * self.max_ratio:
            limit, observed = self.max_ratio, pixels * 3 / size_bytes
            reason = f"{observed:.0f} decoded bytes per encoded byte is over max_ratio ({limit:g})"
        else:
            return
        raise InputError(
            Status.IMAGE_TOO_LARGE,
            f"{width} × {height} pixels: {reason}",
            limit=limit,
            observed=observed,
        )


class BatchLimits(ImageLimits):
    """Limits on images of archives, which allow those of current cameras, scanners, and screens.

    These limits alone do not keep a worker within its memory. The memory of a decode is therefore
    estimated from the header (`estimate_demand`). All processes of a node reserve memory for large
    images from one budget (`storage.node_budget`).
    """

    max_bytes: int = Field(
        default=512 * 1024**2,
        gt=0,
        description="maximum encoded bytes of one file. The 16-bit TIFF of a 60 MP camera is 361 MB, of a 100 MP camera 606 MB",
    )
    max_pixels: int = Field(
        default=250_000_000,
        gt=0,
        description="maximum width × height. Telephones write 200 MP, the largest cameras 150 MP, in JPEG and TIFF",
    )
    max_whole_pixels: int | None = Field(
        default=120_000_000,
        gt=0,
        exclude_if=lambda pixels: pixels is None,
        description="maximum width × height for formats that a decoder holds in memory more than once (all but JPEG, TIFF, and WebP). Enough for "
        "a 102 MP camera, or an A3 page at 600 dpi. null: max_pixels",
    )
    max_side: int = Field(
        default=65_535,
        gt=0,
        description="maximum longer side in pixels, the limit of JPEG itself. Panoramas and screenshots of whole pages exceed 16 384",
    )
    max_aspect: float = Field(
        default=100.0,
        ge=1,
        description="maximum longer ÷ shorter side. A screenshot of 720 × 40 000 has 56. At 100, 'short side to 440' is 19 MP",
    )
    max_ratio: float = Field(
        default=1e6,
        gt=1,
        description="maximum decoded RGB bytes ÷ encoded bytes, above 1 MP. CCITT G4 has one bit for a white line, so that a blank A3 page at "
        "600 dpi has 140 000. The number of pixels and the node's memory budget limit the cost of a bomb",
    )


class DecodeCost(NamedTuple):
    """The estimated number of pixels and peak memory of decoding one image.

    The encoded file is not part of `peak_bytes`.
    """

    pixels: int
    peak_bytes: int

    @property
    def is_large(self) -> bool:
        """Whether the decode first has to reserve memory (`storage.node_budget`).

        All processes of a node share this memory. A decode is large if it needs more than 384 MiB
        (`SMALL_BYTES`). It is also large if the image has more than 50 million pixels
        (`LIMIT_PIXELS`), because its time limit is longer.
        """
        return self.peak_bytes > SMALL_BYTES or self.pixels > LIMIT_PIXELS

    @property
    def timeout_factor(self) -> float:
        """The factor by which a time limit for this decode is multiplied.

        It is 1 up to 50 million pixels (`LIMIT_PIXELS`), and grows with the number of pixels.
        """
        return max(1.0, self.pixels / LIMIT_PIXELS)


def worst_bytes(limits: ImageLimits) -> int:
    """Return an upper bound of `DecodeCost.peak_bytes` for all images within these limits.

    Use it to plan the memory of processes that decode.
    """
    max_whole_pixels = min(limits.max_whole_pixels or limits.max_pixels, limits.max_pixels)
    return _FIXED_BYTES + max(
        limits.max_pixels * _MAX_BYTES_PER_PIXEL_LARGEST, max_whole_pixels * _MAX_BYTES_PER_PIXEL
    )


def estimate_demand(
    image: ImageFile, data: bytes, format_name: str, sample_bits: int
) -> DecodeCost:
    """Estimate the memory and pixels of decoding an image that is open but not decoded yet."""
    pixels, mode = image.width * image.height, image.mode
    is_deep_grey = mode.startswith("I;16")
    stored = 1 if mode in _ONE_CHANNEL else 2 if is_deep_grey else 4
    converting = (
        _ALPHA_BYTES if "transparency" in image.info else _CONVERT_BYTES.get(mode, _ALPHA_BYTES)
    )
    if sample_bits == 16:  # The low bytes may be decoded, too.
        converting = max(converting, 4)
    extra_bytes = pixels * (_DEEP_GREY_BYTES if is_deep_grey else converting)
    if isinstance(image, JpegImageFile):
        extra_bytes = max(extra_bytes, jpeg.estimate_coefficient_bytes(image, data))
    elif isinstance(image, TiffImageFile):
        extra_bytes = max(extra_bytes, _tiff_piece_bytes(image))
    else:
        extra_bytes = max(extra_bytes, pixels * _DECODE_BYTES.get(format_name, 0))
    return DecodeCost(pixels, min(_FIXED_BYTES + pixels * stored + extra_bytes, _MAX_BYTES))


def estimate_webp_demand(width: int, height: int) -> DecodeCost:
    """Estimate the cost of decoding a WebP before it is opened.

    Use this in place of `estimate_demand`, because the WebP decoder allocates memory for all pixels
    when it opens a file. `formats.read_header_size` returns the width and height.
    """
    return DecodeCost(width * height, _FIXED_BYTES + width * height * (4 + _DECODE_BYTES["WEBP"]))


def _tiff_piece_bytes(image: TiffImageFile) -> int:
    """Return the bytes of the largest unit that libtiff unpacks at once: a strip or a tile.

    Many writers put a whole image into one strip.
    """
    if all(codec == "raw" for codec, *_ in image.tile):
        return 0
    tags = image.tag_v2
    width, height = (
        tags.get(_TILE_WIDTH, image.width),
        tags.get(_TILE_HEIGHT, min(tags.get(_ROWS_PER_STRIP, image.height), image.height)),
    )
    bits = max(tags.get(_BITS, (8,))) * tags.get(_SAMPLES, 1)
    return int(width * height * max(bits / 8, 4))


class CrashMarker:
    """A crash marker: a file that names the image that one thread is decoding.

    If a decode crashes, its process ends without running any `except`. A record in a memory-mapped
    file survives this, because the kernel keeps it. The file is named by process id and process
    start time, so that a later process with the same id is not mistaken for this one. The folder is
    on the node's own disk. `count` counts calls of `note` and `clear`, so the count is odd while an
    image is being decoded. `patience` multiplies the time limit of the current decode.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        pid, started = identify_process()
        self.path = folder / f"{pid}-{started}-{next(_serial)}{_SUFFIX}"
        with open(self.path, "w+b") as file:
            file.write(_RECORD.pack(0, 0))
            file.flush()
            self._map = mmap.mmap(file.fileno(), _RECORD.size)
        self._fields = memoryview(self._map).cast("q")
        self.count = 0
        self.patience = 1.0

    def note(self, image_id: int, patience: float = 1.0) -> None:
        """Record that the decode of an image begins.

        `patience` multiplies the watchdog's wall limit for this image.
        """
        self._fields[0] = image_id
        self.patience = patience
        self.count += 1
        self._fields[1] = self.count

    def clear(self) -> None:
        """Record that the decode ended, with or without an error."""
        self.count += 1
        self._fields[1] = self.count

    def close(self) -> None:
        """Remove the file of the marker. Call this if no decode is in progress when the process ends."""
        self._fields.release()
        self._map.close()
        self.path.unlink(missing_ok=True)

    @staticmethod
    def read_crashed_ids(folder: Path, *, own: Path | None = None) -> set[int]:
        """Return the ids of the images that processes were decoding when they died.

        The file `own` is ignored.
        """
        image_ids: set[int] = set()
        for path in folder.glob("*" + _SUFFIX):
            pid, start_time, _ = path.stem.split("-")
            if path == own or is_running(int(pid), start_time):
                continue
            note = path.read_bytes()
            if len(note) == _RECORD.size:
                image_id, count = _RECORD.unpack(note)
                if count % 2:
                    image_ids.add(image_id)
        return image_ids


class Watchdog:
    """Ends this process with `EXIT_CODE` if the decode of an image takes too long.

    A hang then has the same effect as a crash: other processes learn from the crash marker which
    image caused it. A thread checks the crash marker ten times per time limit. So a hang ends after
    1.0 to 1.1 times the limit, multiplied by the marker's `patience`.

    The thread can run because all decoders release the interpreter lock. `re` does not release it,
    so searches in a file must take at most linear time.
    """

    EXIT_CODE = 86

    def __init__(self, crumb: CrashMarker, wall_limit_s: float) -> None:
        self._marker = crumb
        self._wall_limit_s = wall_limit_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="decode-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        last_count, checks = 0, 0
        while not self._ended.wait(self._wall_limit_s / 10):
            checks = checks + 1 if self._marker.count == last_count else 0
            last_count = self._marker.count
            if last_count % 2 and checks >= 10 * self._marker.patience:
                os._exit(self.EXIT_CODE)
