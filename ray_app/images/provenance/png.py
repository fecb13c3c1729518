"""Metadata chunks of a PNG: text (tEXt, zTXt, iTXt with XMP), eXIf, and C2PA's caBX. What is compressed is inflated up to a limit."""

import zlib

from ray_app.images.provenance.found import MOST_BYTES, MOST_TEXTS, Found

MOST_CHUNKS = 10_000  # 32 MiB of pixels in libpng's usual 8 KiB pieces are 4,096
MOST_INFLATED = 2**20  # of all texts together
_XMP = "XML:com.adobe.xmp"


def find(data: bytes) -> Found:
    """The metadata of a PNG."""
    found, budget, texts = Found(), MOST_INFLATED, 0
    at = 8
    for _ in range(MOST_CHUNKS):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        start = at + 8
        at = start + size + 4
        if at > len(data) or kind == b"IEND":
            break
        if kind == b"IDAT":
            continue
        if kind == b"eXIf":
            found.add_exif(data[start : start + min(size, MOST_BYTES)])
        elif kind == b"caBX":
            found.add_jumbf(data[start : start + 48], size)
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and size <= MOST_INFLATED and texts < MOST_TEXTS:
            texts += 1
            budget -= _add_text(found, kind, data[start : start + size], min(budget, MOST_BYTES + 1))
            if budget <= 0:
                break
    return found


def _add_text(found: Found, kind: bytes, body: bytes, most: int) -> int:
    """Bytes of text, inflated where they are compressed."""
    keyword, _, rest = body.partition(b"\0")
    is_compressed = kind == b"zTXt"
    if kind == b"zTXt":
        rest = rest[1:]  # the method
    elif kind == b"iTXt":
        is_compressed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # flag and method, language, translated keyword
    text = _inflated(rest, most) if is_compressed else rest[:most]
    name = keyword[:79].decode("latin-1")
    if kind == b"iTXt" and name == _XMP:
        found.add_xmp(text)
    elif len(text) <= MOST_BYTES:
        found.add_text(name, text.decode("utf-8" if kind == b"iTXt" else "latin-1", "replace"))
    return len(text)


def _inflated(data: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error:
        return b""
