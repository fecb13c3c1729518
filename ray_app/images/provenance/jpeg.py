"""Metadata segments of a JPEG, up to its first scan: EXIF and XMP (APP1), C2PA (APP11), IPTC (APP13), comment."""

from ray_app.images.provenance import iptc
from ray_app.images.provenance.found import MOST_BYTES, Found

MOST_SEGMENTS = 4000  # a manifest of 8 MiB takes 128; a hostile file could hold millions of empty ones
_XMP, _EXTENDED = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_APP1, _APP11, _APP13, _COMMENT = 0xE1, 0xEB, 0xED, 0xFE
_SCAN, _END = 0xDA, 0xD9
_JUMBF_HEADER = 8  # "JP", box instance (2), packet number (4): ISO 19566-5, annex D


def find(data: bytes) -> Found:
    """The metadata of a JPEG."""
    found = Found()
    extended = _Extended()
    at = 2
    for _ in range(MOST_SEGMENTS):
        if at + 4 > len(data) or data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (_SCAN, _END) or not at + 4 <= end <= len(data):
            break
        if marker in (_APP1, _APP11, _APP13, _COMMENT):
            _take(found, extended, marker, data[at + 4 : end])
        at = end
    if packet := extended.packet():
        found.add_xmp(packet)
    return found


def _take(found: Found, extended: "_Extended", marker: int, body: bytes) -> None:
    if marker == _APP1:
        if body.startswith(b"Exif\0"):
            found.add_exif(body)
        elif body.startswith(_XMP):
            found.add_xmp(body[len(_XMP) :])
        elif body.startswith(_EXTENDED):
            extended.add(body[len(_EXTENDED) :])
    elif marker == _APP11 and body.startswith(b"JP"):
        if body[4:8] == b"\0\0\0\1":
            found.add_jumbf(body[_JUMBF_HEADER : _JUMBF_HEADER + 48], len(body) - _JUMBF_HEADER)
        elif found.manifest_bytes:
            found.manifest_bytes += len(body) - _JUMBF_HEADER
    elif marker == _APP13 and not found.iptc:
        found.iptc = iptc.resource(body) or b"\0"  # a second one is not searched: there may be thousands
    elif marker == _COMMENT and "comment" not in found.texts:
        found.add_text("comment", body.decode("utf-8", "replace"))


class _Extended:
    """XMP that did not fit one segment: pieces with a digest, the full length and their offset (XMP part 3, §1.1.3.1)."""

    def __init__(self) -> None:
        self._digest, self._packet, self._missing = b"", bytearray(), 0

    def add(self, piece: bytes) -> None:
        digest, body = piece[:32], piece[40:]
        full, offset = int.from_bytes(piece[32:36], "big"), int.from_bytes(piece[36:40], "big")
        if not self._digest and full <= MOST_BYTES:
            self._digest, self._packet, self._missing = digest, bytearray(full), full
        if digest == self._digest and offset + len(body) <= len(self._packet):
            self._packet[offset : offset + len(body)] = body
            self._missing -= len(body)

    def packet(self) -> bytes:
        return bytes(self._packet) if self._missing == 0 else b""
