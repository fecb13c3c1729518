"""A run's images as pages of tiles (`render_gallery_page`): each with its verdict, and its
generator and words, known and predicted.

A page loads nothing: its pictures stand in it. It runs one script, its own, which the policy names
by its hash: it sorts, filters and enlarges the tiles of that page, and without it they all stand
there in the order of the archive.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ray_app.reports.format import shortened
from ray_app.reports.html import jpeg_uri, render, script_hash
from ray_app.reports.run import NEAREST, WORDS
from ray_app.reports.tiles import sort_attributes, tile_texts, verdict_choices
from ray_app.runs.document import RunSummary

_LONGEST_NAME = 60


class GalleryTile(NamedTuple):
    """One image: its result row (`runs.schema`) as a dictionary, and its picture as JPEG bytes, or
    in words why there is none.
    """

    row: Mapping[str, Any]
    picture: bytes | None
    why: str = ""


class PageNumber(NamedTuple):
    """Which page of how many, both from 1."""

    page: int
    pages: int


def page_name(page: int) -> str:
    """The file of a page, from 1; the first is `index.html`."""
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
    """One page. `shown`: which images of the run, in words; `images`: how many on all pages;
    `first`: number of the first tile; `summary`: the run's summary.
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
            "data-name": shortened(path.rpartition("/")[2], _LONGEST_NAME)
            or "a file without a name",
        },
    }
