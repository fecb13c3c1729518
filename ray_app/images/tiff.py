"""Directories of tags, the structure that TIFF files and EXIF blocks share. Reads tags; knows nothing of pixels.

A reader of our own because Pillow's prints warnings, follows every pointer and refuses whole images for one bad tag.
"""

import struct
from typing import NamedTuple

ORIENTATION, SUBFILE_TYPE, DNG_VERSION = 274, 254, 50706
_DATA_OFFSETS, _DATA_LENGTHS = (273, 324), (279, 325)  # strips, tiles
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # bytes per value, by kind
MOST_PAGES = 1000  # a hostile chain of directories could hold millions
MOST_STRIPS = 1_000_000
MOST_TAGS = 4096  # of one directory: no writer has 300, and a BigTIFF could claim millions


class TiffError(ValueError):
    """The tags cannot be read."""


class Entry(NamedTuple):
    """One tag's value: its kind, how many, and the inline bytes (the value itself, or the offset where it stands)."""

    kind: int
    number: int
    inline: bytes


class Tiff:
    """A TIFF header and its directories, classic or BigTIFF. Raises TiffError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
        magic = self._unpack("H", 2) if self._order else 0
        if magic not in (42, 43):
            raise TiffError("no TIFF header")
        self._is_big = magic == 43
        self._link = "Q" if self._is_big else "I"
        self._first = self._unpack(self._link, 8 if self._is_big else 4)
        self._entry = struct.Struct(self._order + ("HHQ8s" if self._is_big else "HHI4s"))

    def first_directory(self) -> dict[int, Entry]:
        """The tags of the first page."""
        return self.directory(self._first)

    def directory(self, offset: int) -> dict[int, Entry]:
        """The tags of the directory that stands at `offset`."""
        start, end = self._span(offset)
        return {tag: Entry(*rest) for tag, *rest in self._entry.iter_unpack(self._data[start:end])}

    def count_pages(self) -> int:
        """Directories in the chain, at most MOST_PAGES; a chain that loops or breaks ends there."""
        seen: set[int] = set()
        offset = self._first
        while offset and offset not in seen and len(seen) < MOST_PAGES:
            try:
                _, end = self._span(offset)
            except TiffError:
                break
            seen.add(offset)
            # Many writers leave out the link after the last directory.
            offset = self._unpack(self._link, end) if end + struct.calcsize(self._link) <= len(self._data) else 0
        return len(seen)

    def integers(self, entry: Entry) -> tuple[int, ...]:
        """The values of an integer tag; empty for tags of another kind."""
        code = _INTEGERS.get(entry.kind)
        if code is None or entry.number > MOST_STRIPS:
            return ()
        form = struct.Struct(f"{self._order}{entry.number}{code}")
        if not self._is_elsewhere(entry):
            return form.unpack_from(entry.inline)
        at = self._at(entry)
        if at + form.size > len(self._data):
            raise TiffError("a tag's values lie outside the file")
        return form.unpack_from(self._data, at)

    def octets(self, entry: Entry, most: int) -> bytes:
        """The first `most` bytes of a tag's value, as far as they are there."""
        size = min(_SIZES.get(entry.kind, 0) * entry.number, most)
        if not self._is_elsewhere(entry):
            return entry.inline[:size]
        at = self._at(entry)
        return self._data[at : at + size]

    def data_end(self) -> int:
        """The furthest byte that the first page refers to: of its strips, its tiles and the values of its tags."""
        tags = self.first_directory()
        ends = [self._at(entry) + _SIZES.get(entry.kind, 0) * entry.number for entry in tags.values() if self._is_elsewhere(entry)]
        for offsets, lengths in zip(_DATA_OFFSETS, _DATA_LENGTHS, strict=True):
            if offsets in tags and lengths in tags:
                pairs = zip(self.integers(tags[offsets]), self.integers(tags[lengths]), strict=False)
                ends += [offset + length for offset, length in pairs]
        return max(ends, default=0)

    def _span(self, offset: int) -> tuple[int, int]:
        """Where a directory's entries start and end."""
        code = "Q" if self._is_big else "H"
        start = offset + struct.calcsize(code)
        tags = self._unpack(code, offset)
        end = start + tags * self._entry.size
        if tags > MOST_TAGS:
            raise TiffError("a directory of too many tags")
        if end > len(self._data):
            raise TiffError("a directory runs past the end")
        return start, end

    def _is_elsewhere(self, entry: Entry) -> bool:
        return _SIZES.get(entry.kind, 0) * entry.number > len(entry.inline)

    def _at(self, entry: Entry) -> int:
        return int.from_bytes(entry.inline, "little" if self._order == "<" else "big")

    def _unpack(self, code: str, at: int) -> int:
        try:
            value: int = struct.unpack_from(self._order + code, self._data, at)[0]
        except (struct.error, OverflowError):
            raise TiffError("a pointer leads past the end") from None
        return value


def exif_orientation(exif: bytes) -> int:
    """The orientation that an EXIF block states, 1 to 8; 1 where it states none or 0 (unknown). Raises TiffError."""
    tiff = Tiff(exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0"))  # some writers put the prefix twice
    entry = tiff.first_directory().get(ORIENTATION)
    if entry is None:
        return 1
    values = tiff.integers(entry)
    if not values or not 0 <= values[0] <= 8:
        raise TiffError("an orientation outside 1 to 8")
    return values[0] or 1


def is_camera_raw(tiff: Tiff) -> bool:
    """Whether the first picture is a preview of sensor data (DNG, NEF and kin): scoring it would score the wrong image."""
    tags = tiff.first_directory()
    subfile = tiff.integers(tags[SUBFILE_TYPE]) if SUBFILE_TYPE in tags else ()
    return DNG_VERSION in tags or bool(subfile and subfile[0] & 1)
