"""Metadata chunks of a WebP: EXIF, XMP and C2PA in its RIFF container."""

from ray_app.images.provenance.found import MOST_BYTES, Found

MOST_CHUNKS = 10_000  # an animation has one for each frame


def find(data: bytes) -> Found:
    """The metadata of a WebP."""
    found = Found()
    at = 12
    for _ in range(MOST_CHUNKS):
        if at + 8 > len(data):
            break
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        start = at + 8
        at = start + size + (size & 1)
        if start + size > len(data):
            break
        if kind == b"EXIF":
            found.add_exif(data[start : start + min(size, MOST_BYTES)])
        elif kind == b"XMP " and size <= MOST_BYTES:
            found.add_xmp(data[start : start + size])
        elif kind == b"C2PA":
            found.add_jumbf(data[start : start + 48], size)
    return found
