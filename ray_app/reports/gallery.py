"""Render the images of a run as pages of tiles (`render_gallery_page`).

A tile shows the verdict, and the known and predicted generator and prompt. A page contains its
images and loads nothing. Its only script, which the Content-Security-Policy allows by its hash,
sorts, filters, and enlarges the tiles. Without scripts, the page shows all tiles in the order of
the archive.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ray_app.reports.format import truncate
from ray_app.reports.html import jpeg_uri, render, script_hash
from ray_app.reports.run import NEAREST, WORDS
from ray_app.reports.tiles import sort_attributes, tile_texts, verdict_choices
from ray_app.runs.document import RunSummary

_MAX_NAME_WIDTH = 60


class GalleryTile(NamedTuple):
    """One image of a gallery.

    Attributes:
        row: The result row of the image, with the columns of `ray_app.runs.schema`.
        picture: JPEG bytes of the image. None if it cannot be shown.
        why: Reason why `picture` is None; "" if it is not.
    """

    row: Mapping[str, Any]
    picture: bytes | None
    why: str = ""


class PageNumber(NamedTuple):
    """The position of a page in a gallery.

    Attributes:
        page: Number of the page, from 1.
        pages: Number of all pages.
    """

    page: int
    pages: int


def page_name(page: int) -> str:
    """Return the file name of page `page` of a gallery; page 1 is `index.html`."""
    return "index.html" if page == 1 else f"page-{page:05d}.html"


def render_gallery_page(
    tiles: Sequence[GalleryTile],
    place: PageNumber,
    *,
    run: str,
    shown: str,
    images: int,
    first: int,
    version: str = "",
    summary: RunSummary,
) -> str:
    """Render one HTML page of a gallery.

    Args:
        tiles: The tiles of the page.
        place: Number of the page, and of all pages.
        run: URL of the run.
        shown: Text that describes which images of the run the gallery shows.
        images: Number of images on all pages.
        first: Number of the first tile of the page among all images, from 1.
        version: Version of Touchstone.
        summary: Summary of the run.
    """
    return render(
        "gallery.html",
        tiles=[_describe_tile(tile) for tile in tiles],
        place=place,
        page_name=page_name,
        run=run,
        shown=shown,
        images=images,
        first=first,
        version=version,
        demonstration=summary.ensemble.demonstration,
        error_rates=summary.error_rates,
        script_hash=script_hash("tiles.js"),
        verdict_choices=verdict_choices([tile.row for tile in tiles]),
        notes=(NEAREST, WORDS),
        is_profiled=any(
            "generator_confidence" in tile.row or "prompt_likelihood" in tile.row for tile in tiles
        ),
    )


def _describe_tile(tile: GalleryTile) -> dict[str, Any]:
    row = tile.row
    is_sized = row.get("width") and row.get("height")
    path = row["uri"] if row["member"] is None else row["member"]
    return {
        "row": row,
        "picture": jpeg_uri(tile.picture) if tile.picture else None,
        "missing": tile.why,
        "texts": tile_texts(row),
        "attributes": sort_attributes(row)
        | {
            "data-pixels": row["width"] * row["height"] if is_sized else "",
            "data-name": truncate(path.rpartition("/")[2], _MAX_NAME_WIDTH)
            or "a file without a name",
        },
    }
