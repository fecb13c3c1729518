"""What an image may cost before it is refused. Knows numbers and their reasons; knows nothing of formats or Pillow."""

from pydantic import Field

from ray_app.config import Frozen
from ray_app.errors import InputError, Status

ALWAYS_ALLOWED_PIXELS = 1_000_000  # 1 MP decodes to 3 MB whatever its file weighs: no ratio can make that dangerous


class ImageLimits(Frozen):
    """The intake limits; all are checked from sizes and headers before any pixel is decoded (specs/intake.md §4.2)."""

    max_bytes: int = Field(
        default=32 * 1024**2, gt=0, description="Encoded bytes of one file: bounds what is in flight between storage and decoder."
    )
    max_pixels: int = Field(
        default=50_000_000, gt=0, description="Width × height: 50 MP is 150 MB of RGB, above any phone, below a decompression bomb."
    )
    max_side: int = Field(
        default=16_384, gt=0, description="Longer side in pixels: a resize of one line of a huge side costs as much as a whole image."
    )
    max_aspect: float = Field(
        default=20.0, ge=1, description="Longer ÷ shorter side: 'short side to 224' would make a 60 000 × 1 image 13 million pixels wide."
    )
    max_ratio: float = Field(
        default=2000.0,
        gt=1,
        description="Decoded RGB bytes ÷ encoded bytes, above 1 MP: a photograph stays in the hundreds, a one-bit PNG bomb reaches 24 000.",
    )
    max_text_bytes: int = Field(
        default=16 * 1024**2,
        gt=0,
        description="Text, EXIF, XMP and colour profile held beside the pixels: far above what cameras and generators write, below a bomb.",
    )

    def check_bytes(self, size_bytes: int) -> None:
        """Refuse an encoded file by its size alone. Raises InputError naming the limit and what was observed."""
        if size_bytes > self.max_bytes:
            reason = f"{size_bytes} bytes is over max_bytes ({self.max_bytes})"
            raise InputError(Status.IMAGE_TOO_LARGE, reason, limit=self.max_bytes, observed=size_bytes)

    def check_size(self, width: int, height: int, size_bytes: int) -> None:
        """Refuse a width × height that a file of `size_bytes` declares. Raises InputError naming the limit and what was observed."""
        short, long = sorted((width, height))
        pixels = width * height
        if short <= 0:
            raise InputError(Status.CORRUPT_IMAGE, f"the header declares {width} × {height} pixels")
        limit: float
        observed: float
        if pixels > self.max_pixels:
            limit, observed = self.max_pixels, pixels
            reason = f"{pixels / 1e6:.1f} MP is over max_pixels ({limit / 1e6:g} MP)"
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
        raise InputError(Status.IMAGE_TOO_LARGE, f"{width} × {height} pixels: {reason}", limit=limit, observed=observed)
