"""Write a finished run as pages of thumbnails with their rows (`make_gallery`).

`touchstone runs gallery` calls this function. Rows and manifest are read as a stream, with one page in
memory. The pages contain new small images, not the original files.
"""

import json
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app import __version__
from ray_app.archives import ManifestMember, MemberReader, load_guard
from ray_app.cluster.progress import Progress
from ray_app.errors import ConfigError, InputError, Status
from ray_app.inference.small_pictures import ThumbnailLimits, ThumbnailMaker
from ray_app.reports.format import VERDICT_PHRASES, describe_status, escape_invisible
from ray_app.runs import (
    CurrentRows,
    RunDirectory,
    current_tables,
    document,
    schema,
    selection,
    summary,
)
from ray_app.scoring import pictures
from ray_app.storage import Fetcher, Store

if TYPE_CHECKING:
    from ray_app.reports import gallery

TILE = ThumbnailLimits(side_px=640, max_bytes=60_000)  # An enlarged tile of a page.
PER_PAGE = 60
_CONCURRENCY = 4  # Thumbnails that are generated while the next files are read.
# The file that marks a gallery. It is written first, so an interrupted gallery has it, too.
NOTE = "gallery.json"
_TILE_COLUMNS = [
    "image_id",
    "uri",
    "member",
    "input",
    "status",
    "detail",
    "score",
    "probability",
    "calibrated",
    schema.FINDING,
    schema.GROUNDS,
    "provenance",
    "verdict",
    "width",
    "height",
    *summary.PROFILE_COLUMNS,
]
_SELECTION_COLUMNS = [
    "image_id",
    "score",
    "verdict",
    "predicted_generator",
    "generator_family",
    "generator_confidence",
]
_ALL = selection.RowFilter()
_PAGE = re.compile(r"page-\d{5,}\.html")


def make_gallery(
    url: str,
    out: str,
    row_filter: selection.RowFilter = _ALL,
    max_images: int | None = None,
    *,
    per_page: int = PER_PAGE,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write HTML pages with thumbnails of a finished run's images and their results.

    Images are in the order of the archive, so the same run gives the same pages. An image that
    cannot be read has a tile with the reason.

    Args:
        url: The run directory.
        out: The folder of the gallery; any fsspec URL.
        row_filter: Which images to show, for example by verdict or by predicted generator.
        max_images: The maximum number of images: those with the highest scores. None shows all.
        per_page: The number of images on a page.
        quiet: Whether to show no progress.

    Returns:
        The content of `gallery.json`: the selection, the number of images, and the number of pages.

    Raises:
        ConfigError: If the run is not finished, or `out` contains something else. Also if images
            are selected by a generator that the run does not predict.
    """
    from ray_app.reports import gallery

    run, store = RunDirectory.open(url), Store.open(out)
    run.describe_finished()
    if row_filter.generator is not None:
        selection.require_known_generator(run, row_filter.generator)
    names = store.names("")
    if (names or store.folders("")) and NOTE not in names:
        raise ConfigError(
            f"{store.url} is not empty, and is not a gallery (pages of images) that could be replaced",
            hint="set --out to a new or empty folder",
        )
    highest, images = _highest(run, row_filter, max_images)
    pages = max(math.ceil(images / per_page), 1)
    summarized = document.RunSummary.model_validate(run.read_json("summary.json"))
    facts = {
        "run": run.store.url,
        "out": store.url,
        "verdict": row_filter.verdict,
        "generator": row_filter.generator,
        "most": max_images,
        "images": images,
        "pages": pages,
    }
    store.write(NOTE, json.dumps(facts, indent=2, ensure_ascii=False).encode())
    progress = Progress(images, done=0, name="gallery") if images and not quiet else None
    with closing(ThumbnailMaker(run.limits(), TILE)) as pictured:
        tiles = _tiles(run, row_filter, highest, pictured)
        for page in range(1, pages + 1):
            page_tiles = list(islice(tiles, per_page))
            html = gallery.render_gallery_page(
                page_tiles,
                gallery.PageNumber(page, pages),
                run=run.store.url,
                shown=_describe_selection(row_filter, max_images),
                images=images,
                first=(page - 1) * per_page + 1,
                version=__version__,
                summary=summarized,
            )
            store.write(gallery.page_name(page), html.encode())
            if progress is not None:
                progress.advance(len(page_tiles), sum(tile.picture is None for tile in page_tiles))
    if progress is not None:
        progress.close()
    for name in store.names(""):  # Delete further pages of an earlier, longer gallery.
        if _PAGE.fullmatch(name) and name > gallery.page_name(pages):
            store.delete(name)
    return facts


def _describe_selection(row_filter: selection.RowFilter, max_images: int | None) -> str:
    """Return a description of the selected images, for people."""
    parts = [VERDICT_PHRASES[row_filter.verdict]] if row_filter.verdict else []
    if row_filter.generator:
        parts.append(
            "like no known generator"
            if row_filter.generator == selection.UNKNOWN
            else f"attributed to {escape_invisible(row_filter.generator)}"
        )
    parts += ["the highest scores"] if max_images else []
    return ", ".join(parts) or "the whole run"


def _highest(
    run: RunDirectory, row_filter: selection.RowFilter, max_images: int | None
) -> tuple[npt.NDArray[np.int64] | None, int]:
    """Return the sorted ids of the images with the highest scores, and the number of images to show.

    Args:
        run: The run.
        row_filter: The images to show.
        max_images: The maximum number of images, or None.

    Returns:
        The ids are None if all images that match the filter are shown.
    """
    ids, scores, count = np.empty(0, np.int64), np.empty(0), 0
    for table in current_tables(run, _SELECTION_COLUMNS):
        rows = row_filter.select(table)
        count += len(rows)
        if max_images is not None:
            ids = np.concatenate([ids, rows["image_id"].to_numpy()])
            scores = np.concatenate([scores, pc.fill_null(rows["score"], -math.inf).to_numpy()])
            best = np.argsort(-scores, kind="stable")[:max_images]
            ids, scores = ids[best], scores[best]
    return (None, count) if max_images is None else (np.sort(ids), len(ids))


def _tiles(
    run: RunDirectory,
    row_filter: selection.RowFilter,
    highest: npt.NDArray[np.int64] | None,
    pictured: ThumbnailMaker,
) -> "Iterator[gallery.GalleryTile]":
    images = MemberReader(Fetcher(guard=load_guard(run.store)), max_bytes=run.limits().max_bytes)
    for table, listed in CurrentRows.read(run).members(_TILE_COLUMNS):
        rows = row_filter.select(table)
        if highest is not None:
            rows = rows.filter(pc.is_in(rows["image_id"], pa.array(highest)))
        for start in range(0, len(rows), PER_PAGE):
            batch = rows.slice(start, PER_PAGE).to_pylist()
            yield from _load_tiles(
                images, batch, [listed[row["image_id"]] for row in batch], pictured
            )


def _load_tiles(
    images: MemberReader,
    rows: Sequence[dict[str, Any]],
    members: Sequence[ManifestMember],
    pictured: ThumbnailMaker,
) -> "Iterator[gallery.GalleryTile]":
    """Yield tiles in order, without reading files again that had another status than `ok`."""
    read = images.read(
        [member for row, member in zip(rows, members, strict=True) if row["status"] == Status.OK]
    )
    with ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="gallery") as threads:
        pending: deque[tuple[dict[str, Any], Future[tuple[bytes, str]] | str]] = deque()
        for row in rows:
            if row["status"] != Status.OK:
                pending.append(
                    (
                        row,
                        "; ".join(
                            filter(
                                None,
                                [describe_status(row["status"]) or row["status"], row["detail"]],
                            )
                        ),
                    )
                )
            else:
                _, data = next(read)
                pending.append(
                    (
                        row,
                        pictures.describe_missing(data)
                        if isinstance(data, InputError)
                        else threads.submit(pictured.make, data),
                    )
                )
                del data
            if len(pending) > _CONCURRENCY:
                yield _tile(*pending.popleft())
        for row, picture in pending:
            yield _tile(row, picture)


def _tile(row: dict[str, Any], picture: "Future[tuple[bytes, str]] | str") -> "gallery.GalleryTile":
    from ray_app.reports import gallery

    try:
        return (
            gallery.GalleryTile(row, None, picture)
            if isinstance(picture, str)
            else gallery.GalleryTile(row, picture.result()[0])
        )
    except InputError as error:
        return gallery.GalleryTile(row, None, pictures.describe_missing(error))
