"""Intake limits (`ImageLimits`, `BatchLimits`); the peak memory of decoding an image, estimated
from its header (`Demand`, `demand_of`); and, of a decode in this process, the crash marker that
names its image (`Breadcrumb`) and the wall limit (`Watchdog`).

`ImageLimits` are those of the endpoint, and the default; `BatchLimits` those of archives, of the
command line's pictures and of Python. docs/formats.md says where each is listed.
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

from ray_app.child_process import is_running, own_process
from ray_app.config import Frozen
from ray_app.errors import InputError, Status
from ray_app.images import jpeg

# 1 MP decodes to 3 MB whatever its file weighs: no ratio can make that dangerous
ALWAYS_ALLOWED_PIXELS = 1_000_000

# Cameras and scanners write their largest pictures in these, which decode row by row or in strips
# (WebP for its own side of 16 383).
LARGEST = frozenset({"JPEG", "TIFF", "WEBP"})

# How a refusal's `detail` names the limit that was crossed: a field here, one of
# `container_limits`, or `decode_bytes` of a node.
NAMED_LIMIT = r"\bover (?P<limit>(?:container_limits\.)?max_[a-z_]+|decode_bytes)\b"

# any process has room for this beside its libraries; what takes more waits for its turn on a node
SMALL_BYTES = 384 * 2**20
# a decode limit in seconds is meant for so many pixels; larger images have as much longer
LIMIT_PIXELS = 50_000_000

_MOST = 2**63 - 1  # what a header claims may be anything
_FIXED = 8 * 2**20  # whatever a decoder allocates for the smallest image
_ROWS_PER_STRIP, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLES, _BITS = 278, 322, 323, 277, 258  # TIFF tags

# Pillow keeps four bytes for a pixel of several channels, one for a pixel of one. Beside the
# picture stand what its decoder holds and what becomes of it on the way to RGB. The figures were
# measured (tests/images/test_limits.py measures them again) and are upper bounds.
_NARROW = ("1", "L", "P")
# Bytes per pixel that are held beside the picture until it is RGB, by its mode.
_CONVERTING = {
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
_WITH_ALPHA, _DEEP_GREY = 8, 7
# Bytes per pixel that a decoder holds beside the picture, of formats whose header says nothing of
# that.
_DECODING = {"WEBP": 18, "AVIF": 12, "HEIC": 12, "JPEG2000": 20, "PNM": 6}
_WORST_OF_LARGEST, _WORST = 22, 24  # to prepare an image in every way takes no more

# image_id; how often it was noted or cleared: odd while a decode is under way
_NOTE = struct.Struct("<qq")
_SUFFIX = ".crumb"
_serial = itertools.count()


class ImageLimits(Frozen):
    """The intake limits; all are checked from sizes and headers before any pixel is decoded
    (specs/intake.md §4.2).
    """

    max_bytes: int = Field(
        default=32 * 1024**2,
        gt=0,
        description="Encoded bytes of one file: bounds what is in flight between storage and decoder.",
    )
    max_pixels: int = Field(
        default=50_000_000,
        gt=0,
        description="Width × height: 50 MP is 150 MB of RGB, what a request may cost beside many others.",
    )
    max_whole_pixels: int | None = Field(
        default=None,
        gt=0,
        # endpoints, and runs that were made before the key existed, keep their identity
        exclude_if=lambda pixels: pixels is None,
        description="The same of formats that a decoder holds as a whole, more than once (all but JPEG, TIFF and WebP); null = max_pixels.",
    )
    max_side: int = Field(
        default=16_384,
        gt=0,
        description="Longer side in pixels: a resize of one line of a huge side costs as much as a whole image.",
    )
    max_aspect: float = Field(
        default=20.0,
        ge=1,
        description="Longer ÷ shorter side: 'short side to 224' would make a 60 000 × 1 image 13 million pixels wide.",
    )
    max_ratio: float = Field(
        default=2000.0,
        gt=1,
        description="Decoded RGB bytes ÷ encoded bytes, above 1 MP: a photograph stays in the hundreds, a one-bit PNG bomb reaches 24 000.",
    )
    max_text_bytes: int = Field(
        default=16 * 1024**2,
        gt=0,
        description="Text, EXIF, XMP and colour profile that are read of one file: far above what cameras and generators write, below a "
        "bomb. A file with more is scored, and its finding names what was not read.",
    )

    def check_bytes(self, size_bytes: int) -> None:
        """Refuse an encoded file by its size alone. Raises InputError naming the limit and what was
        observed.
        """
        if size_bytes > self.max_bytes:
            reason = f"{size_bytes} bytes is over max_bytes ({self.max_bytes})"
            raise InputError(
                Status.IMAGE_TOO_LARGE, reason, limit=self.max_bytes, observed=size_bytes
            )

    def check_size(
        self, width: int, height: int, size_bytes: int, format_name: str | None = None
    ) -> None:
        """Refuse a width × height that a file of `size_bytes` declares. Raises InputError naming
        the limit and what was observed.
        """
        short, long = sorted((width, height))
        pixels = width * height
        if short <= 0:
            raise InputError(Status.CORRUPT_IMAGE, f"the header declares {width} × {height} pixels")
        is_whole = format_name is not None and format_name not in LARGEST
        most = (
            min(self.max_pixels, self.max_whole_pixels or self.max_pixels)
            if is_whole
            else self.max_pixels
        )
        limit: float
        observed: float
        if pixels > most:
            limit, observed = most, pixels
            name = "max_pixels" if most == self.max_pixels else "max_whole_pixels"
            reason = f"{pixels / 1e6:.1f} MP is over {name} ({limit / 1e6:g} MP)"
        elif long > self.max_side:
            limit, observed = self.max_side, long
            reason = f"a side of {long} is over max_side ({limit})"
        elif long > short * self.max_aspect:
            limit, observed = self.max_aspect, long / short
            reason = f"an aspect of {observed:.1f} is over max_aspect ({limit:g})"
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
    """What an archive may hold: pictures as the cameras, scanners and screens of this year make
    them.

    No single number here makes a worker safe: what decoding takes is reckoned from the header, and
    large images share a budget of their node (`demand_of`, `storage.node_budget`).
    """

    max_bytes: int = Field(
        default=512 * 1024**2,
        gt=0,
        description="Encoded bytes of one file: a 60 MP camera's 16-bit TIFF is 361 MB, a 100 MP one's 606 MB.",
    )
    max_pixels: int = Field(
        default=250_000_000,
        gt=0,
        description="Width × height: telephones make 200 MP, the largest cameras 150 MP, in JPEG and TIFF.",
    )
    max_whole_pixels: int | None = Field(
        default=120_000_000,
        gt=0,
        exclude_if=lambda pixels: pixels is None,
        description="The same of formats that a decoder holds as a whole, more than once (all but JPEG, TIFF and WebP): a 102 MP camera's "
        "pictures, an A3 page at 600 dpi; null = max_pixels.",
    )
    max_side: int = Field(
        default=65_535,
        gt=0,
        description="Longer side in pixels: JPEG's own; panoramas and screenshots of whole pages go beyond 16 384.",
    )
    max_aspect: float = Field(
        default=100.0,
        ge=1,
        description="Longer ÷ shorter side: a screenshot of 720 × 40 000 has 56; 'short side to 440' is 19 MP at 100.",
    )
    max_ratio: float = Field(
        default=1e6,
        gt=1,
        description="Decoded RGB bytes ÷ encoded bytes, above 1 MP: CCITT G4 has one bit for a white line, so that a blank A3 page at "
        "600 dpi reaches 140 000. What a bomb costs is bounded by its pixels and by the node's budget of memory.",
    )


class Demand(NamedTuple):
    """What decoding one image asks for: `peak_bytes` of memory beside the encoded file."""

    pixels: int
    peak_bytes: int

    @property
    def is_large(self) -> bool:
        """Whether it takes more memory than any process has room for, or more time than a limit is
        meant for.
        """
        return self.peak_bytes > SMALL_BYTES or self.pixels > LIMIT_PIXELS

    @property
    def patience(self) -> float:
        """How many times a decode limit in seconds it may take."""
        return max(1.0, self.pixels / LIMIT_PIXELS)


def worst_bytes(limits: ImageLimits) -> int:
    """What no image within these limits goes beyond."""
    whole = min(limits.max_whole_pixels or limits.max_pixels, limits.max_pixels)
    return _FIXED + max(limits.max_pixels * _WORST_OF_LARGEST, whole * _WORST)


def demand_of(image: ImageFile, data: bytes, format_name: str) -> Demand:
    """Of an image that was opened and not decoded."""
    pixels, mode = image.width * image.height, image.mode
    is_deep_grey = mode.startswith("I;16")
    stored = 1 if mode in _NARROW else 2 if is_deep_grey else 4
    converting = _WITH_ALPHA if "transparency" in image.info else _CONVERTING.get(mode, _WITH_ALPHA)
    beside = pixels * (_DEEP_GREY if is_deep_grey else converting)
    if isinstance(image, JpegImageFile):
        beside = max(beside, jpeg.coefficient_bytes(image, data))
    elif isinstance(image, TiffImageFile):
        beside = max(beside, _tiff(image))
    else:
        beside = max(beside, pixels * _DECODING.get(format_name, 0))
    return Demand(pixels, min(_FIXED + pixels * stored + beside, _MOST))


def webp_demand(width: int, height: int) -> Demand:
    """Of a WebP, whose decoder allocates its canvas when it is opened."""
    return Demand(width * height, _FIXED + width * height * (4 + _DECODING["WEBP"]))


def _tiff(image: TiffImageFile) -> int:
    """libtiff unpacks a strip or a tile at a time; many writers put a whole image into one strip."""
    if all(codec == "raw" for codec, *_ in image.tile):
        return 0
    tags = image.tag_v2
    width, height = (
        tags.get(_TILE_WIDTH, image.width),
        tags.get(_TILE_HEIGHT, min(tags.get(_ROWS_PER_STRIP, image.height), image.height)),
    )
    bits = max(tags.get(_BITS, (8,))) * tags.get(_SAMPLES, 1)
    return int(width * height * max(bits / 8, 4))


class Breadcrumb:
    """A note of the image being decoded by one thread, in a file of its own in `folder` (local to
    the node).

    A decode that crashes takes its process along, and no `except` runs. A note in a mapped file
    outlives it: the kernel keeps it. The file is named by process id and process start time, so
    that a process which comes later under the same id is not mistaken for it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        pid, started = own_process()
        self.path = folder / f"{pid}-{started}-{next(_serial)}{_SUFFIX}"
        with open(self.path, "w+b") as file:
            file.write(_NOTE.pack(0, 0))
            file.flush()
            self._map = mmap.mmap(file.fileno(), _NOTE.size)
        self._fields = memoryview(self._map).cast("q")
        self.count = 0
        self.patience = 1.0

    def note(self, image_id: int, patience: float = 1.0) -> None:
        """From now on this image is being decoded, for so many times the wall limit at most."""
        self._fields[0] = image_id
        self.patience = patience
        self.count += 1
        self._fields[1] = self.count

    def clear(self) -> None:
        """The decode is over, however it ended."""
        self.count += 1
        self._fields[1] = self.count

    def close(self) -> None:
        """Remove the file: this process ends well, and with nothing under way."""
        self._fields.release()
        self._map.close()
        self.path.unlink(missing_ok=True)

    @staticmethod
    def left_in(folder: Path, *, own: Path | None = None) -> set[int]:
        """The ids that dead processes were decoding. `own`: a file that is not looked at."""
        left: set[int] = set()
        for path in folder.glob("*" + _SUFFIX):
            pid, start_time, _ = path.stem.split("-")
            if path == own or is_running(int(pid), start_time):
                continue
            note = path.read_bytes()
            if len(note) == _NOTE.size:
                image_id, count = _NOTE.unpack(note)
                if count % 2:
                    left.add(image_id)
        return left


class Watchdog:
    """Ends this process with `EXIT_CODE` if one noted decode lasts longer than the wall limit: a
    hang then costs the same as a crash.

    A thread that looks ten times per limit, so a hang is ended after 1.0 to 1.1 limits (times the
    note's `patience`). It gets its turn since all decoders run without the interpreter lock. `re`
    does not: what it looks for in a file must take no more than linear time.
    """

    EXIT_CODE = 86

    def __init__(self, crumb: Breadcrumb, wall_limit_s: float) -> None:
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
        seen, checks = 0, 0
        while not self._ended.wait(self._wall_limit_s / 10):
            checks = checks + 1 if self._marker.count == seen else 0
            seen = self._marker.count
            if seen % 2 and checks >= 10 * self._marker.patience:
                os._exit(self.EXIT_CODE)
