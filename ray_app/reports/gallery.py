"""A run's images as pages of tiles (`render_gallery_page`): each with its verdict, and its
generator and words, known and predicted.

A page loads nothing: its pictures stand in it. It runs one script, its own, which the policy names
by its hash: it sorts, filters and enlarges the tiles of that page, and without it they all stand
there in the order of the archive.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ray_app.ensembles.finding import error_rates
from ray_app.identification.generators import family_title, title_of
from ray_app.reports import format as wording
from ray_app.reports.html import jpeg_uri, render, script_hash
from ray_app.reports.run import NEAREST, WORDS, beginning, generator_in_words
from ray_app.runs.document import EnsembleSummary

_CUT = 160  # characters of a prompt before it folds


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


class TileText(NamedTuple):
    """A tile's text on generator or words, and its source; `opening`: the first of it, where it is
    long.
    """

    term: str
    said: str
    opening: str | None
    small: str = ""


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
    ensemble: EnsembleSummary,
) -> str:
    """One page. `shown`: which images of the run, in words; `images`: how many on all pages;
    `first`: number of the first tile; `ensemble`: what gave the verdicts, as the run's summary has
    it.
    """
    return render(
        "gallery.html",
        tiles=[
            (tile, jpeg_uri(tile.picture) if tile.picture else None, tile_texts(tile.row))
            for tile in tiles
        ],
        place=place,
        page_name=page_name,
        run=run,
        shown=shown,
        images=images,
        first=first,
        version=version,
        demonstration=ensemble.demonstration,
        error_rates=error_rates(ensemble.name, ensemble.thresholds),
        script_hash=script_hash("gallery.js"),
        verdicts={
            "all",
            *(
                tile.row["verdict"] if tile.row["verdict"] in wording.VERDICT_WORDS else "none"
                for tile in tiles
            ),
        },
        notes=(NEAREST, WORDS),
        is_uncalibrated=any(tile.row["calibrated"] is False for tile in tiles),
        is_profiled=any(
            "generator_confidence" in tile.row or "prompt_likelihood" in tile.row for tile in tiles
        ),
    )


def tile_texts(row: Mapping[str, Any]) -> list[TileText]:
    """Generator and words of a row, what is known before what is predicted; nothing where there is
    neither.
    """
    given = row.get("input") or {}
    probability, likelihood = row.get("generator_probability"), row.get("prompt_likelihood")
    named = generator_in_words(
        row.get("predicted_generator"), row.get("generator_family"), row.get("generator_ranking")
    )
    sure = (
        f"{100 * probability:.0f} % among the known"
        if row.get("predicted_generator") and probability is not None
        else ""
    )
    likely = "" if likelihood is None or math.isnan(likelihood) else f"likelihood {likelihood:.2f}"
    entries = [
        ("Label", given.get("label"), ""),
        ("Generator, known", _title(given.get("generator")), ""),
        (
            "Generator, were it fake" if row.get("verdict") == "real" else "Generator, predicted",
            named,
            sure,
        ),
        ("Words, known", given.get("prompt"), ""),
        ("Words, predicted", row.get("predicted_prompt"), likely),
    ]
    texts = [(term, str(said), small) for term, said, small in entries if said not in (None, "")]
    return [
        TileText(term, said, beginning(said, _CUT) if len(said) > _CUT else None, small)
        for term, said, small in texts
    ]


def _title(name: Any) -> str | None:
    """A generator as its data set calls it, with its title where that is another word."""
    if name is None or name == "":
        return None
    title = title_of(str(name))
    title = family_title(str(name)) if title == str(name) else title
    return str(name) if title == str(name) else f"{title} ({name})"
