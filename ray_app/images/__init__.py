"""Decode image files to RGB pixels.

`decode_image` returns the pixels and facts of a file, such as its format and size. If the file
cannot be decoded, it raises `ImageRefused` with a status, such as `corrupt_image`.
`peek_image` reads only the header of an image, and `sniff_format` returns the format of a file.
"""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.images.decode import PeekedImage, decode_image, get_decoder_name, peek_image
    from ray_app.images.facts import (
        FLAG_MEANING,
        DecodedImage,
        ImageFileFacts,
        ImageRefused,
        inspect_bytes,
    )
    from ray_app.images.formats import sniff_format
    from ray_app.images.limits import (
        NAMED_LIMIT,
        BatchLimits,
        CrashMarker,
        DecodeCost,
        ImageLimits,
        Watchdog,
    )
else:
    __getattr__ = on_first_use(__name__)
