"""An id → the name of its file, which never leaves its folder; a Content-Type and bytes → the ending. Knows no storage.

The names are those of DFLIP-3K's own downloader, `<id>.<subtype of Content-Type>` (specs/localization.md §5.1), with ids kept whole
where they have dots, and the ending corrected where the bytes say another format.
"""

import hashlib
import re
from collections.abc import Iterable

_UNSAFE = re.compile(r"[^\w.+=,@-]")
_LONGEST = 150  # bytes of UTF-8; the usual file systems end at 255, and the ending and a store's own prefix want room
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)

# Subtypes under which a format is sent, the usual one first.
_SUBTYPES = {
    "JPEG": ("jpeg", "jpg"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tiff", "tif"),
    "AVIF": ("avif",),
    "HEIC": ("heic", "heif"),
    "JPEG2000": ("jp2", "jpx"),
    "JXL": ("jxl",),
    "PNM": ("pnm",),
    "RAW": ("raw",),
}

ENDINGS = frozenset(subtype for subtypes in _SUBTYPES.values() for subtype in subtypes)


def safe_name(name: str) -> str:
    """An id as a file is named after it, without ending: itself, where it is harmless on every file system; else a harmless form of it
    and eight digits of its hash.
    """
    plain = _UNSAFE.sub("_", name).lstrip(".")
    while len(plain.encode()) > _LONGEST:
        plain = plain[:-1]
    if plain == name and plain and not plain.endswith(".") and not _RESERVED.fullmatch(plain):
        return name
    return marked(plain or "_", name)


def marked(plain: str, name: str) -> str:
    """A name with eight digits of a hash of the id, which no other id has."""
    return f"{plain.rstrip('.')}~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def stems(ids: Iterable[str]) -> tuple[list[str], int]:
    """The names of ids in their order, no two of which differ only in case, and of how many that had to be mended."""
    taken: set[str] = set()
    chosen: list[str] = []
    cases = 0
    for name in ids:
        stem = safe_name(name)
        cases += stem.casefold() in taken
        while stem.casefold() in taken:  # an id may be spelt as the mark of another
            stem = marked(stem, name)
        taken.add(stem.casefold())
        chosen.append(stem)
    return chosen, cases


def ending(content_type: str | None, image_format: str) -> str:
    """The ending, without its dot: the Content-Type's subtype where it agrees with what the bytes are, else the bytes' own."""
    subtype = (content_type or "").partition(";")[0].strip().lower().rpartition("/")[2]
    known = _SUBTYPES.get(image_format, (image_format.lower(),))
    return subtype if subtype in known else known[0]
