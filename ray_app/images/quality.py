"""How strongly a JPEG was compressed, from its quantization tables. Knows numbers; reads no file."""

from collections.abc import Mapping, Sequence

# The example table of luminance (ITU-T T.81, Annex K.1), which most encoders scale by a quality.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98,
    112, 100, 103, 99,
)  # fmt: skip


def jpeg_quality(tables: Mapping[int, Sequence[int]]) -> int | None:
    """The quality 1 … 100 at which libjpeg would write the table of luminance nearest to a file's; None where it has none.

    Nearest by the sum of its 64 steps, which falls as quality rises. Encoders with tables of their own (Photoshop, phones) get the
    quality that removes about as much. `tables`: by number, as Pillow gives them; luminance is number 0.
    """
    luminance = tables.get(0)
    if luminance is None or len(luminance) != len(_LUMINANCE):
        return None
    total = sum(luminance)
    return min(range(1, 101), key=lambda quality: (abs(_SUMS[quality] - total), quality))


def _scaled_sum(quality: int) -> int:
    """The sum of the table that libjpeg makes for a quality (jcparam.c): percentages of the example, steps between 1 and 255."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return sum(min(255, max(1, (step * percent + 50) // 100)) for step in _LUMINANCE)


_SUMS = [0, *map(_scaled_sum, range(1, 101))]
