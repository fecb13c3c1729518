"""JPEG XL headers before decoding: `read_jxl_header` gives size, bits and animation (ISO/IEC 18181-1 §D, 18181-2).

Our own because no library at hand gives them without decoding, and a file of thirty bytes may claim a gigapixel.
"""

from typing import NamedTuple

CODESTREAM, CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_MOST_BOXES = 1000
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


class JxlHeader(NamedTuple):
    """`size`: (width, height), turned as the file asks. `bits`: per sample, 8 where it does not say."""

    size: tuple[int, int]
    bits: int
    is_animated: bool


def read_jxl_header(data: bytes) -> JxlHeader:
    """Of a codestream, or of the first one in a container. Raises EOFError where it ends early, ValueError where there is none."""
    bits = _Bits(_codestream(data))
    width, height = _size(bits)
    if bits.flag():  # the usual: 8 bits, upright, one picture
        return JxlHeader((width, height), 8, False)
    orientation, is_animated = 1, False
    if bits.flag():
        orientation = 1 + bits.number(3)
        if bits.flag():  # the size that it is meant to be shown in
            _size(bits)
        if bits.flag():
            _skip_preview(bits)
        is_animated = bits.flag()
        if is_animated:
            bits.choice((100, 0), (1000, 0), (1, 10), (1, 30))
            bits.choice((1, 0), (1001, 0), (1, 8), (1, 10))
            bits.choice((0, 0), (0, 3), (0, 16), (0, 32))
            bits.flag()
    is_float = bits.flag()
    depth = bits.choice((32, 0), (16, 0), (24, 0), (1, 6)) if is_float else bits.choice((8, 0), (10, 0), (12, 0), (1, 6))
    return JxlHeader((height, width) if orientation > 4 else (width, height), depth, is_animated)


class _Bits:
    """Numbers of a codestream, least significant bit first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def number(self, bits: int) -> int:
        if bits > self._left:
            raise EOFError("the JPEG XL header is cut off")
        found = self._value & ((1 << bits) - 1)
        self._value >>= bits
        self._left -= bits
        return found

    def flag(self) -> bool:
        return bool(self.number(1))

    def choice(self, *ways: tuple[int, int]) -> int:
        """One of four ways to write a number, each an offset and how many bits are added to it."""
        offset, bits = ways[self.number(2)]
        return offset + self.number(bits)


def _size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.flag()

    def side() -> int:
        return 8 * (1 + bits.number(5)) if is_small else bits.choice((1, 9), (1, 13), (1, 18), (1, 30))

    height = side()
    ratio = bits.number(3)
    if not ratio:
        return side(), height
    across, down = _RATIOS[ratio - 1]
    return height * across // down, height


def _skip_preview(bits: _Bits) -> None:
    is_divided = bits.flag()

    def side() -> int:
        return bits.choice((16, 0), (32, 0), (1, 5), (33, 9)) if is_divided else bits.choice((1, 6), (65, 8), (321, 10), (1345, 12))

    side()
    if not bits.number(3):
        side()


def _codestream(data: bytes) -> bytes:
    """The first bytes of the codestream, after its mark."""
    if data.startswith(CONTAINER):
        at = len(CONTAINER)
        for _ in range(_MOST_BOXES):
            size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
            header = 16 if size == 1 else 8
            size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
            if kind in (b"jxlc", b"jxlp"):
                data = data[at + header + 4 * (kind == b"jxlp") :][:64]
                break
            if len(data) < at + header or not kind:
                raise EOFError("the JPEG XL container is cut off before its picture")
            if size < header:
                raise ValueError("a JPEG XL container without a picture")
            at += size
    if not data.startswith(CODESTREAM):
        raise ValueError("no JPEG XL codestream")
    return data[2:64]
