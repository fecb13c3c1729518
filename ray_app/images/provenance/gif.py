"""Metadata extensions of a GIF, before its first frame and after it as far as the limit goes: comment, XMP, C2PA."""

from contextlib import suppress

from ray_app.images.provenance.found import MOST_BYTES, Found

MOST_BLOCKS = 10_000  # of at most 255 bytes: 2.5 MB of frames
_EXTENSION, _IMAGE, _COMMENT, _APPLICATION = 0x21, 0x2C, 0xFE, 0xFF


def find(data: bytes) -> Found:
    """The metadata of a GIF."""
    found = Found()
    with suppress(IndexError):  # the file ends in the middle of a block
        _walk(data, found)
    return found


def _walk(data: bytes, found: Found) -> None:
    at = 13 + _table_bytes(data[10])
    left = MOST_BLOCKS
    while left > 0:
        introducer = data[at]
        if introducer == _IMAGE:
            start = at + 11 + _table_bytes(data[at + 9])
        elif introducer == _EXTENSION:
            start = at + 2
        else:
            return
        end, blocks = _end_of_blocks(data, start, left)
        left -= blocks
        if introducer == _EXTENSION and left > 0:
            _take(found, data, data[at + 1], start, end)
        at = end + 1


def _take(found: Found, data: bytes, label: int, start: int, end: int) -> None:
    if label == _COMMENT and end - start <= MOST_BYTES:
        found.add_text("comment", _joined(data, start, end).decode("utf-8", "replace"))
    elif label == _APPLICATION and data[start] == 11:
        name, body = data[start + 1 : start + 12], start + 12
        if name == b"XMP DataXMP" and end - body <= MOST_BYTES:
            # The packet is not cut into blocks: its letters are read as lengths, and a run-out of 257 bytes ends any such reading.
            packet = data[body:end]
            found.add_xmp(packet[: packet.rfind(b">") + 1])
        elif name.startswith(b"C2PA_GIF"):
            found.add_jumbf(data[body + 1 : body + 49], end - body)


def _end_of_blocks(data: bytes, at: int, most: int) -> tuple[int, int]:
    """Where the terminator of a chain of blocks stands, and how many blocks there were."""
    blocks = 1
    while (length := data[at]) and blocks < most:
        at += length + 1
        blocks += 1
    return at, blocks


def _joined(data: bytes, at: int, end: int) -> bytes:
    pieces = []
    while at < end:
        pieces.append(data[at + 1 : at + 1 + data[at]])
        at += data[at] + 1
    return b"".join(pieces)


def _table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
