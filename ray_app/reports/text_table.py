"""Columns and paragraphs of plain text that fit a given width. Knows words and widths; knows nothing of what they say."""

import textwrap
from collections.abc import Collection, Sequence

from ray_app.reports import wording

GAP = "  "
_NARROWEST = 10


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, right: Collection[int] = (), wrap: Collection[int] = ()
) -> list[str]:
    """Aligned lines under `heads`; cells of the columns in `wrap` are broken into lines until all fits `width`, others never.

    `right`: columns that are aligned to the right. Words are never broken, so that a path or a hash can be copied.
    """
    widths = [max(wording.columns(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    floors = [_longest_word([row[column] for row in [heads, *rows]]) if column in wrap else widths[column] for column in range(len(heads))]
    while sum(widths) + len(GAP) * (len(heads) - 1) > width:
        spare, column = max((have - least, column) for column, (have, least) in enumerate(zip(widths, floors, strict=True)))
        if spare <= 0:
            break
        widths[column] -= 1
    lines = []
    for row in [heads, *rows]:
        cells = [paragraph(cell, size) if column in wrap else [cell] for column, (cell, size) in enumerate(zip(row, widths, strict=True))]
        for index in range(max(map(len, cells))):
            lines.append(aligned([cell[index] if index < len(cell) else "" for cell in cells], widths, right))
    return lines


def paragraph(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` columns, broken at spaces only; one empty line for no text."""
    return textwrap.wrap(text, max(width, _NARROWEST), break_long_words=False, break_on_hyphens=False) or [""]


def _longest_word(cells: Sequence[str]) -> int:
    return max([_NARROWEST, *(wording.columns(word) for cell in cells for word in cell.split())])


def aligned(cells: Sequence[str], widths: Sequence[int], right: Collection[int]) -> str:
    """One line of cells, each filled up to its width; those of the columns in `right` from the left."""
    padded = []
    for column, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - wording.columns(cell))
        padded.append(space + cell if column in right else cell + space)
    return GAP.join(padded).rstrip()
