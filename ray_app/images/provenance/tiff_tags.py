"""Metadata tags of a TIFF file: it is an EXIF block itself, and holds XMP, IPTC and C2PA as values of tags."""

from ray_app.images.provenance.found import MOST_BYTES, Found
from ray_app.images.tiff import Tiff, TiffError

_XMP, _IPTC, _C2PA = 700, 33723, 52545


def find(data: bytes) -> Found:
    """The metadata of a TIFF's first page."""
    found = Found()
    try:
        tiff = Tiff(data)
        tags = tiff.first_directory()
    except TiffError:
        return found
    found.exif = data
    if _XMP in tags:
        found.add_xmp(tiff.octets(tags[_XMP], MOST_BYTES + 1))
    if _IPTC in tags:
        found.iptc = tiff.octets(tags[_IPTC], MOST_BYTES)
    if _C2PA in tags:
        found.add_jumbf(tiff.octets(tags[_C2PA], 48), tags[_C2PA].number)
    return found
