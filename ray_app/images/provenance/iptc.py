"""IPTC-IIM, where old press software writes: only the program that made the file is read of it."""

MOST_RESOURCES = 200
MOST_DATASETS = 1000
_PHOTOSHOP = b"Photoshop 3.0\0"
_IPTC = 0x0404
_PROGRAM, _VERSION = (2, 65), (2, 70)


def resource(segment: bytes) -> bytes:
    """The IPTC records in a segment of Photoshop's image resources; empty where there are none."""
    if not segment.startswith(_PHOTOSHOP):
        return b""
    at = len(_PHOTOSHOP)
    for _ in range(MOST_RESOURCES):
        if segment[at : at + 4] != b"8BIM" or at + 12 > len(segment):
            break
        name = segment[at + 6] + 1
        start = at + 6 + name + (name & 1) + 4
        size = int.from_bytes(segment[start - 4 : start], "big")
        if int.from_bytes(segment[at + 4 : at + 6], "big") == _IPTC:
            return segment[start : start + size]
        at = start + size + (size & 1)
    return b""


def program(records: bytes) -> str:
    """The originating program and its version; empty where they are not said."""
    said: dict[tuple[int, int], str] = {}
    at = 0
    for _ in range(MOST_DATASETS):
        size = int.from_bytes(records[at + 3 : at + 5], "big")
        if records[at : at + 1] != b"\x1c" or size & 0x8000 or at + 5 + size > len(records):
            break
        kind = (records[at + 1], records[at + 2])
        if kind in (_PROGRAM, _VERSION):
            said.setdefault(kind, records[at + 5 : at + 5 + size].decode("utf-8", "replace"))
        at += 5 + size
    return f"{said[_PROGRAM]} {said.get(_VERSION, '')}" if _PROGRAM in said else ""
